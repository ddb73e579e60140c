"""Score a policy on any data against any reference: `python -m scripts.evaluate POLICY [FILE...] OPTION=VALUE ...`."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fed.tracking import steps
from scripts.command import Command, write_json
from scripts.options import at_least, no_folder, option
from scripts.policies import PolicyOptions, loading_of
from scripts.prompts import RowOptions, check_rows, client_rows, rows_of

if TYPE_CHECKING:
    from fed.data.rows import Preference
    from fed.model.policy import Policy
    from feedback.evaluation import Scores
    from feedback.policies import Found

CLIENT = "client"
BETA = 0.1  # of a policy whose run is not known


@dataclass(frozen=True)
class Options(PolicyOptions, RowOptions):
    """The options of the command."""

    reference: str | None = option(
        None, "What it is compared with: a policy, or none; null: what the run began with, or the adapter's base."
    )
    by: list[str] = option(
        [], "Columns whose values are scored apart too; client: the run's clients, on held-out pairs."
    )
    text: str | None = option(
        None,
        "Text that has nothing to do with the data: records with a field text, or paragraphs of a .txt; its loss "
        "against the reference's shows what was forgotten.",
    )
    beta: float | None = option(None, "Scales rewards, and the loss; null: the run's, else 0.1.")
    max_length: int | None = option(None, "Tokens of prompt and response together; null: the run's, else 1024.")
    max_prompt_length: int | None = option(
        None, "Tokens of the longest prompt; null: the run's, else half of max_length."
    )
    chat_template: str | None = option(None, "A file, or none; null: the run's, else the tokenizer's.")
    system_prompt: str | None = option(None, "A system text before prompts without one; null: the run's.")
    text_as_chat: bool | None = option(None, "Pairs that are text become conversations; null: as the run had it.")
    batch_size: int = option(16, "Pairs at a time.")
    out: str | None = option(None, "A file for all numbers, as JSON; null: none.")


COMMAND = Command(
    "python -m scripts.evaluate POLICY [FILE...]",
    "Scores a policy (a run's folder, a model's directory or a hub name) on pairs of files or of a data set, without "
    "any on the run's test pairs: accuracy, margin and loss with 95 % intervals, and perplexity.",
    Options,
    (
        ("python -m scripts.evaluate data/fedpo/DATE_TIME", "the run's own test pairs"),
        ("python -m scripts.evaluate data/fedpo/DATE_TIME by=[client]", "each client's held-out pairs"),
        ("python -m scripts.evaluate data/fedpo/DATE_TIME other.jsonl by=[group]", "other pairs, by their group"),
        ("python -m scripts.evaluate DIR reward_bench.parquet reference=none", "RewardBench's rows, by its sections"),
    ),
    (("OUT", "metrics of all rows, of each group, of RewardBench's sections, and of the text"),),
    names=("POLICY", "FILE"),
    needed=1,
    more=True,
)


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code."""
    return COMMAND.main(arguments, carry_out)


def carry_out(plain: list[str], options: Options) -> None:
    """Score the policy, print a table and write the numbers.

    Raises:
        ValueError: For a mistake of the user's.
        CannotWrite: If the disk refuses the file.
    """
    name, *files = plain
    check_rows(options, files)
    no_folder(out=options.out)
    at_least(1, batch_size=options.batch_size)
    at_least(2, max_length=options.max_length)
    if CLIENT in options.by and (files or options.datasets):
        raise ValueError("by=[client] is for the run's own pairs; leave the files and datasets= out")
    steps.say_loading()
    from fed.distributed import launch
    from feedback.policies import find

    found = find(name, options.round)
    if CLIENT in options.by:
        rows = client_rows(options, found)[: options.limit]
    else:
        rows = rows_of(options, files, found, "responses")
    with launch.joined(options.device, 60) as device:
        report = _scored(options, found, rows, device)
    print(_table(report))
    if options.out is not None:
        write_json(Path(options.out), report)
        print(f"all numbers: {options.out}")


def _scored(options: Options, found: "Found", rows: "list[Preference]", device: Any) -> dict[str, Any]:
    """Score the rows and the text with the policy and its reference."""
    from feedback import reward_bench
    from feedback.evaluation import Scores
    from feedback.forgetting import documents, forgotten

    texts = [] if options.text is None else documents(options.text)
    reference, (loss, beta) = _reference(options, found), _loss(options, found)
    steps.say(f"scoring {len(rows)} rows")
    (own, own_text), base = _read(options, found, reference, rows, texts, device)
    scores = Scores.of_reads(own, None if base is None else base[0], loss, beta)
    groups = {column: scores.by(column) for column in _columns(options, scores)}
    report: dict[str, Any] = {
        "policy": found.name,
        "reference": None if reference is None else "the adapter's base" if reference is found else reference.name,
        "dropped": dict(own.dropped),
        "all": scores.metrics(),
        "by": groups,
    }
    if bench := reward_bench.section_scores(groups.get(reward_bench.COLUMN, {})):
        report["reward_bench"] = bench
    if own_text is not None:
        report["text"] = forgotten(own_text, None if base is None else base[1])
    return report


def _read(
    options: Options,
    found: "Found",
    reference: "Found | None",
    rows: "list[Preference]",
    texts: Sequence[str],
    device: Any,
) -> Any:
    """Return how policy and reference read the rows and the texts."""
    from fed.cpu.runtime import set_up
    from feedback.asking import Wanted, how_to_read
    from feedback.evaluation import both, read
    from feedback.forgetting import text_losses

    wanted = Wanted(options.chat_template, options.system_prompt, options.text_as_chat, options.max_prompt_length)
    longest = found.longest(options.max_length)
    set_up(None, keep_freed=True)
    done = [0]
    count = steps.Count("{done} rows are scored")

    def on_pairs(pairs: int) -> None:
        done[0] += pairs
        count.reached(done[0])

    def score(policy: "Policy") -> Any:
        asking, size = how_to_read(found, policy, wanted, longest), options.batch_size
        own = read(policy, rows, asking, batch_size=size, on_pairs=on_pairs)
        return own, text_losses(policy, texts, longest, batch_size=size, on_pairs=on_pairs) if texts else None

    return both(found, reference, loading_of(options, device, longest), score)


def _columns(options: Options, scores: "Scores") -> list[str]:
    """Return the columns to score by; rows of RewardBench are scored by its subsets unasked."""
    from feedback import reward_bench

    known = {name for names in reward_bench.SECTIONS.values() for name in names}
    subsets = {row.extra.get(reward_bench.COLUMN) for row in scores.rows}
    asked = [reward_bench.COLUMN] if subsets <= known and reward_bench.COLUMN not in options.by else []
    return [*options.by, *asked]


def _reference(options: Options, found: "Found") -> "Found | None":
    """Return what the policy is compared with; the policy itself for its adapter's base."""
    from feedback.policies import find

    if options.reference == "none":
        return None
    if options.reference is not None:
        return find(options.reference)
    if found.has_adapter:
        return found
    if found.reference is None:
        steps.remark(
            f"nothing tells what {found.name} began with, so it is scored by its log-probs alone; reference= names it"
        )
    return found.reference


def _loss(options: Options, found: "Found") -> tuple[Any, float]:
    """Return the loss and what scales rewards: those of the run, else DPO's."""
    from dataclasses import replace
    from functools import partial

    from losses.preference import dpo
    from run.prepare import objective_of
    from run.resume import check_code

    if found.config is None or found.run is None:
        beta = BETA if options.beta is None else options.beta
        return partial(dpo, beta=beta), beta
    config = found.config
    check_code(found.run, config, trusts=options.trust_code, key="trust_code")
    if options.beta is not None:
        if "beta" not in config.loss:
            raise ValueError(f"beta={options.beta:g} has no effect on the loss of {found.name}; leave it out")
        config = replace(config, loss={**config.loss, "beta": options.beta})
    objective = objective_of(config, frozenset())
    return objective.loss, objective.beta


def _table(report: Mapping[str, Any]) -> str:
    """Return the metrics as text, a line for each group."""
    rows = [("all", report["all"])]
    rows += [(f"{column} {value}", found) for column, groups in report["by"].items() for value, found in groups.items()]
    lines = [("", "pairs", "accuracy", "margin", "loss", "perplexity")]
    lines += [
        (
            name,
            f"{found['examples']:,}",
            _interval(found, "accuracy"),
            _interval(found, "margin"),
            _interval(found, "loss"),
            f"{found['perplexity']:.4g}",
        )
        for name, found in rows
    ]
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    text += [f"left out: {number} {reason}" for reason, number in report["dropped"].items()]
    if bench := report.get("reward_bench"):
        text.append("RewardBench  " + "  ".join(f"{name} {score:.3f}" for name, score in bench.items()))
    if found := report.get("text"):
        told = f"text: {found['tokens']:,} tokens of {found['documents']} documents, loss {found['loss_per_token']:.4f}"
        if "difference" in found:
            told += f" a token, {_interval(found, 'difference', '+.4f')} against the reference"
        text.append(told)
    return "\n".join(text)


def _interval(found: Mapping[str, Any], name: str, form: str = ".3f") -> str:
    if found.get(name) is None:
        return "-"
    ends = [found.get(f"{name}_{end}", math.nan) for end in ("low", "high")]
    shown = "" if any(map(math.isnan, ends)) else f" [{ends[0]:{form}}, {ends[1]:{form}}]"
    return f"{found[name]:{form}}{shown}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
