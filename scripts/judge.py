"""Judge pairs of responses: `python -m scripts.judge FILE [FILE] judge=NAME OPTION=VALUE ...`."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fed.config.explain import counted
from fed.tracking import steps
from scripts.command import Command, write_json
from scripts.judges import JudgeOptions, judge_of
from scripts.options import at_least, no_folder, option

if TYPE_CHECKING:
    from feedback.preferences import Matched


@dataclass(frozen=True)
class Options(JudgeOptions):
    """The options of the command."""

    pairs: str = option("first", "Of several responses to a prompt the first two are compared, or all.")
    limit: int | None = option(None, "So many pairs at most, the first ones; null: all.")
    out: str = option("preferences.jsonl", "The file to write; a job that was ended goes on where it was.")
    annotations: str | None = option(None, "A file for the same in AlpacaEval's form, annotations.json.")


COMMAND = Command(
    "python -m scripts.judge FILE [FILE] judge=NAME",
    "Has pairs of responses judged: two responses to each prompt of one file, those of two files, or pairs that people "
    "judged before. The result trains as it is.",
    Options,
    (
        ("python -m scripts.judge four.jsonl judge=helpful model=gpt-4o-mini", "a served model, in both orders"),
        ("python -m scripts.judge a.jsonl b.jsonl judge=lexicon 'rule={sorry: -1}'", "a rule over words"),
        ("python -m scripts.judge pairs.jsonl judge=policy:data/fedpo/DATE_TIME", "a policy's own implicit reward"),
    ),
    (
        ("OUT", "prompt, response_a, response_b, winner (a, b, tie, null), who judged, how, and what was answered"),
        ("ANNOTATIONS", "instruction, output_1, output_2, preference (1, 2, 1.5, null), annotator"),
    ),
    page=("docs/ai_feedback.md", "asking, judging and what to do with it"),
    names=("FILE", "FILE"),
    needed=1,
)


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code."""
    return COMMAND.main(arguments, carry_out)


def carry_out(files: list[str], options: Options) -> int:
    """Judge the pairs; return 1 if none has a judgement at the end.

    Raises:
        ValueError: For a mistake of the user's.
        CannotContinue: If the judge cannot be asked any more, or the disk refuses a file.
    """
    no_folder(out=options.out, annotations=options.annotations)
    if options.pairs not in ("first", "all"):
        raise ValueError(f"pairs={options.pairs} is unknown; expected first or all")
    at_least(1, limit=options.limit)
    from feedback.job_files import JobFile
    from feedback.preferences import annotations, judge_pairs

    matched = read_pairs(files, options)
    judge = judge_of(options)
    decides = {
        **{name: value for name, value in asdict(options).items() if name in ("pairs", "limit", "max_length")},
        "digest": matched.digest(),
        **judge.about,
    }
    with JobFile(Path(options.out), decides, lambda line: line["number"]) as file:
        if file.lines:
            steps.remark(f"going on behind {len(file.lines)} judgements of {options.out}.part")
        judge_pairs(judge, matched.pairs, file, steps.Count("{done} pairs are judged").reached)
        lines = file.finish()
    if options.annotations is not None:
        write_json(Path(options.annotations), list(annotations(lines, matched.pairs)))
    return report(options.out, lines)


def read_pairs(files: Sequence[str], options: Options) -> "Matched":
    """Read the pairs of responses that files hold, and print what is left over.

    Raises:
        ValueError: If a file cannot be read, or holds no pair.
    """
    from dataclasses import replace

    from fed.data.source import Reading
    from feedback.preferences import pairs_of
    from load_data import load_file

    reading = Reading(needs="responses")
    loaded = [load_file(file, reading=reading) for file in files]
    for file, found in zip(files, loaded, strict=True):
        if found.skipped:
            left_out = ", ".join(f"{number} {reason}" for reason, number in found.skipped.items())
            steps.remark(f"{file}: left out: {left_out}")
    matched = pairs_of([found.rows for found in loaded], options.pairs)  # type: ignore[arg-type]
    if matched.alone:
        steps.remark(f"{counted(matched.alone, 'prompt')} without a second response")
    if matched.same:
        steps.remark(f"{counted(matched.same, 'pair')} of equal responses, which nobody is asked about")
    if not matched.pairs:
        raise ValueError(f"{' and '.join(map(str, files))}: no prompt has two different responses")
    return replace(matched, pairs=matched.pairs[: options.limit])


def report(out: str, lines: Sequence[Mapping[str, Any]]) -> int:
    """Print what was judged; return 1 if nothing was."""
    from fed.intervals import wilson

    counts = Counter(line["winner"] for line in lines)
    a, b, ties = counts["a"], counts["b"], counts["tie"]
    for reason, number in Counter(line["problem"] for line in lines if "problem" in line).items():
        steps.remark(f"{counted(number, 'pair')} without a judgement: {reason}")
    judged = a + b + ties
    steps.remark(f"{out}: {counted(judged, 'pair')} judged: a {a}, b {b}, ties {ties}")
    both_orders = [line for line in lines if "raw_ab" in line and "raw_ba" in line]
    if both_orders and judged:
        steps.remark(f"  asked in both orders; a judge that goes by the place gives ties: {ties / judged:.1%}")
    if judged and all((line["generator_a"], line["generator_b"]) == ("chosen", "rejected") for line in lines):
        steps.remark(f"  agrees with the choice in {a} of {counted(judged, 'pair')}, {a / judged:.3f}")
    elif a + b:
        low, high = wilson(a / (a + b), a + b)
        steps.remark(f"  a wins {a / (a + b):.3f} [{low:.3f}, {high:.3f}] of those that are no ties")
    return 0 if judged else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
