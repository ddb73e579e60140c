"""Score responses with a reward model: `python -m scripts.reward_model MODEL [FILE...] OPTION=VALUE ...`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fed.tracking import steps
from scripts.command import Command
from scripts.options import at_least, no_folder, option
from scripts.policies import PolicyOptions, loading_of
from scripts.prompts import RowOptions, check_rows, rows_of

if TYPE_CHECKING:
    from feedback.evaluation import Read


@dataclass(frozen=True)
class Options(PolicyOptions, RowOptions):
    """The options of the command."""

    max_length: int | None = option(None, "Tokens of prompt and response together; null: the run's, else 1024.")
    text_as_chat: bool | None = option(None, "Text becomes conversations; null: as the run had it.")
    batch_size: int = option(16, "Pairs at a time.")
    out: str | None = option(None, "A file for the records with their scores, as JSON lines; null: none.")


COMMAND = Command(
    "python -m scripts.reward_model MODEL [FILE...]",
    "Scores responses with a reward model: a run of main.py loss=reward, its directory, or another model for sequence "
    "classification with one label. Of pairs it counts how often the chosen response has the higher score.",
    Options,
    (
        ("python -m scripts.reward_model data/fedpo/DATE_TIME", "the own test pairs of a run of main.py loss=reward"),
        ("python -m scripts.reward_model data/fedpo/DATE_TIME responses.jsonl out=scored.jsonl", "other responses"),
        ("python -m scripts.judge new.jsonl old.jsonl judge=reward_model:data/fedpo/DATE_TIME", "it judges"),
    ),
    (("OUT", "the records, with score, or score_chosen and score_rejected"),),
    page=("docs/ai_feedback.md", "asking, judging and what to do with it"),
    names=("MODEL", "FILE"),
    needed=1,
    more=True,
)


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code."""
    return COMMAND.main(arguments, carry_out)


def carry_out(plain: list[str], options: Options) -> None:
    """Score the rows, print what the scores say and write them.

    Raises:
        ValueError: For a mistake of the user's.
        CannotWrite: If the disk refuses the file.
    """
    name, *files = plain
    check_rows(options, files)
    no_folder(out=options.out)
    at_least(1, batch_size=options.batch_size)
    at_least(2, max_length=options.max_length)
    steps.say_loading()
    from fed.cpu.runtime import set_up
    from fed.distributed import launch
    from feedback.asking import Wanted
    from feedback.policies import find
    from feedback.reward_model import RewardModel

    set_up(None, keep_freed=True)
    found = find(name, options.round)
    rows = rows_of(options, files, found, "responses")
    with launch.joined(options.device, 60) as device:
        loading = loading_of(options, device, found.longest(options.max_length))
        model = RewardModel(found, loading, Wanted(text_as_chat=options.text_as_chat), options.batch_size)
        steps.say(f"scoring {len(rows)} rows")
        scored = model.read(rows)
    print(_summary(scored))
    if options.out is not None:
        _write(Path(options.out), scored)
        print(f"scores: {options.out}")


def _summary(scored: "Read") -> str:
    from fed.intervals import wilson
    from fed.reports.statistics import with_interval

    scores, count = scored.logps, len(scored.rows)
    left_out = "".join(f"; left out: {number} {reason}" for reason, number in scored.dropped.items())
    left_out += f"; cut to max_length: {scored.cut}" if scored.cut else ""
    if not _are_pairs(scored) or scores.rejected is None:
        spread = float(scores.chosen.std()) if count > 1 else 0.0
        return f"{count} responses, mean score {float(scores.chosen.mean()):.3f}, deviation {spread:.3f}{left_out}"
    accuracy = float((scores.chosen > scores.rejected).double().mean())
    ties = int((scores.chosen == scores.rejected).sum())
    return (
        f"{count} pairs, accuracy {with_interval(accuracy, *wilson(accuracy, count))}, margin "
        f"{float((scores.chosen - scores.rejected).mean()):.3f}{f', {ties} ties' if ties else ''}{left_out}"
    )


def _are_pairs(scored: "Read") -> bool:
    return all(row.rejected is not None for row in scored.rows)


def _write(path: Path, scored: "Read") -> None:
    """Write each row with its scores.

    Raises:
        CannotWrite: If the disk refuses it.
    """
    from fed.data.rows import said
    from feedback.asking import as_json, columns_of
    from feedback.job_files import write_lines

    lines, are_pairs = [], _are_pairs(scored)
    for place, row in enumerate(scored.rows):
        line: dict[str, Any] = {**columns_of(row), **as_json(row)}
        if are_pairs and row.rejected is not None and scored.logps.rejected is not None:
            line |= {"chosen": said(row.chosen), "rejected": said(row.rejected)}
            line |= {"score_chosen": float(scored.logps.chosen[place])}
            line |= {"score_rejected": float(scored.logps.rejected[place])}
        else:
            line |= {"completion": said(row.chosen), "score": float(scored.logps.chosen[place])}
        lines.append(line)
    write_lines(path, lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
