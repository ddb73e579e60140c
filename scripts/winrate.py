"""Win rates of judgements: `python -m scripts.winrate FILE... OPTION=VALUE ...`."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fed.config.explain import counted, listed
from fed.reports.statistics import with_interval
from fed.reports.winrate_png import winrate_picture
from fed.tracking import steps
from scripts.command import Command, write_json
from scripts.options import no_folder, option

if TYPE_CHECKING:
    from feedback.winrates import Battle


@dataclass(frozen=True)
class Options:
    """The options of the command."""

    model: str | None = option(
        None,
        "The generator whose wins are counted, against each other; null: of two rounds the later, else each first one.",
    )
    by: str | None = option(None, "A column whose values are counted apart too; group for one.")
    out: str | None = option(None, "A file for all numbers, as JSON; null: none.")
    picture: str | None = option(
        None,
        "A file for the rates against rounds, NAME.png: of models that scripts.generate round=N has named MODEL@N; "
        "null: none.",
    )


COMMAND = Command(
    "python -m scripts.winrate FILE...",
    "Counts how often one model's responses win against another's, in files that scripts.judge wrote: plainly, and as "
    "if both were equally long. With more than two models also their Bradley-Terry strengths.",
    Options,
    (
        ("python -m scripts.judge new.jsonl old.jsonl judge=helpful model=NAME out=judged.jsonl", "first, the judge"),
        ("python -m scripts.winrate judged.jsonl", "one pair of models"),
        ("python -m scripts.winrate ab.jsonl bc.jsonl ac.jsonl out=rates.json", "three models"),
        ("python -m scripts.winrate round1.jsonl round2.jsonl picture=rates.png", "a curve over rounds"),
    ),
    (
        ("OUT", "win rates with their intervals, the counts behind them, and strengths"),
        ("PICTURE", "plain and length-controlled rates against rounds"),
    ),
    page=("docs/ai_feedback.md", "asking, judging and what to do with it"),
    names=("FILE",),
    needed=1,
    more=True,
)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_prompt(value: Any) -> bool:
    turns = value if isinstance(value, list) else []
    return _is_text(value) or all(
        isinstance(turn, dict) and _is_text(turn.get("role")) and _is_text(turn.get("content")) for turn in turns or [0]
    )


# What a judgement must hold.
FIELDS: dict[str, Callable[[Any], bool]] = {
    "prompt": _is_prompt,
    "response_a": _is_text,
    "response_b": _is_text,
    "winner": lambda value: value is None or (_is_text(value) and value in ("a", "b", "tie")),
}


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code."""
    return COMMAND.main(arguments, carry_out)


def carry_out(files: list[str], options: Options) -> None:
    """Print the win rates and write them.

    Raises:
        ValueError: For a mistake of the user's.
        CannotWrite: If the disk refuses the file.
    """
    from feedback.winrates import strengths

    no_folder(out=options.out, picture=options.picture)
    lines = [line for file in files for line in _lines(file)]
    found = _judged(files, lines)
    models = list(dict.fromkeys(name for battle in found for name in (battle.a, battle.b)))
    if options.model is not None and options.model not in models:
        raise ValueError(f"model={options.model} is none of the generators: {', '.join(models)}")
    rates = [_rate(a, b, each) for (a, b), each in _by_pair(found, options.model, models).items()]
    by_round = _by_round(rates) if options.picture is not None else []
    report: dict[str, Any] = {"unjudged": sum(line["winner"] is None for line in lines), "rates": rates}
    if options.by is not None:
        report["by"] = _by(options.by, lines, options.model or models[0])
    if len(models) > 2:
        report["strengths"] = strengths(found)
        if not report["strengths"]:
            steps.remark("no strengths: some model never lost or never won, or some never met; judge more pairs")
    _print(report)
    if options.out is not None:
        write_json(Path(options.out), report)
    if options.picture is not None:
        winrate_picture(by_round, Path(options.picture))
        print(f"picture: {options.picture}")


def _judged(files: Sequence[str], lines: Sequence[dict[str, Any]]) -> "list[Battle]":
    """Return the judgements of two models' responses.

    Raises:
        ValueError: If there is none.
    """
    from feedback.winrates import battles

    judged = battles(lines)
    if not judged:
        raise ValueError(f"{' and '.join(files)}: no pair has a judgement")
    found = [battle for battle in judged if battle.a != battle.b]
    if not found:
        raise ValueError(
            f"{' and '.join(files)}: both responses of each pair are of one generator, {judged[0].a}; "
            "have scripts.judge compare two files, one of each policy"
        )
    if len(found) < len(judged):
        steps.remark(f"left out: {counted(len(judged) - len(found), 'pair')} of one generator's own responses")
    return found


def _by_pair(
    found: "Sequence[Battle]", model: str | None, models: Sequence[str]
) -> "dict[tuple[str, str], list[Battle]]":
    """Return the judgements of each pair of models, as wins of the first; of `model` alone if it is given."""
    from feedback.winrates import turned

    pairs: dict[tuple[str, str], list[Battle]] = {}
    for battle in found:
        first = model or _first(battle.a, battle.b, models)
        battle = battle if battle.a == first else turned(battle)
        if battle.a == first:
            pairs.setdefault((battle.a, battle.b), []).append(battle)
    return pairs


def _lines(file: str) -> list[dict[str, Any]]:
    """Read the judgements of a file.

    Raises:
        ValueError: If it holds something else.
    """
    from fed.data.readers import records_of

    if not Path(file).is_file():
        raise ValueError(f"there is no file {file}; give files that scripts.judge wrote")
    found = list(records_of(Path(file)))
    for where, fields in found:
        for name, is_right in FIELDS.items():
            if name not in fields:
                raise ValueError(f"{where}: no field {name!r}; give files that scripts.judge wrote")
            if not is_right(fields[name]):
                raise ValueError(f"{where}: {name} is {fields[name]!r:.60}; give files that scripts.judge wrote")
    return [dict(fields) for _, fields in found]


def _rate(a: str, b: str, found: "Sequence[Battle]") -> dict[str, Any]:
    from feedback.winrates import as_metrics, length_controlled, standard_error, win_rate

    values = [battle.value for battle in found]
    return {
        "model": a,
        "against": b,
        "prompts": len({battle.prompt for battle in found}),
        "wins": values.count(1.0),
        "ties": values.count(0.5),
        "losses": values.count(0.0),
        **as_metrics(win_rate(found), length_controlled(found)),
        "standard_error": standard_error(found),
        "mean_characters_more": sum(battle.longer for battle in found) / len(found),
    }


def _first(a: str, b: str, models: Sequence[str]) -> str:
    """Return the model whose wins are counted: of two rounds the later one, else the one that was named first."""
    if (of_a := _round_of(a)) is not None and (of_b := _round_of(b)) is not None:
        return a if of_a > of_b else b
    return min(a, b, key=models.index)


def _round_of(model: str) -> int | None:
    """Return the round in a name as scripts.generate gives it, MODEL@ROUND; None if there is none."""
    name, _, number = model.rpartition("@")
    number = number.removeprefix("round-")
    return int(number) if name and number.isdecimal() else None


def _by_round(rates: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rates of models that are named by a round, with it.

    Raises:
        ValueError: If there is none.
    """
    rounds = [_round_of(rate["model"]) for rate in rates]
    found = [
        {**rate, "model": rate["model"].rpartition("@")[0], "round": number}
        for rate, number in zip(rates, rounds, strict=True)
        if number is not None
    ]
    if not found:
        names = listed([rate["model"] for rate in rates])
        raise ValueError(f"picture= draws rates against rounds, but no model is named MODEL@ROUND: {names}")
    return found


def _by(column: str, lines: Sequence[dict[str, Any]], model: str) -> dict[str, Any]:
    """Return the rates of each value of a column.

    Raises:
        ValueError: If no line has it.
    """
    from feedback.winrates import battles, turned

    if not any(column in line for line in lines):
        raise ValueError(f"by={column} names no column of the judgements")
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(str(line.get(column)), []).append(line)
    found = {}
    for value, own in sorted(groups.items()):
        turned_round = [battle if battle.a == model else turned(battle) for battle in battles(own)]
        of_model = [battle for battle in turned_round if battle.a == model]
        if of_model:
            found[value] = _rate(model, "all", of_model)
    return found


def _print(report: dict[str, Any]) -> None:
    for rate in report["rates"]:
        print(f"{rate['model']} against {rate['against']}: {_text(rate)}")
    for value, rate in report.get("by", {}).items():
        print(f"  {value}: {_text(rate)}")
    if report["unjudged"]:
        steps.remark(f"{counted(report['unjudged'], 'pair')} without a judgement")
    for name, strength in report.get("strengths", {}).items():
        print(f"  strength {strength:.3f}  {name}")


def _text(rate: dict[str, Any]) -> str:
    def shown(name: str) -> str:
        return with_interval(rate[name], rate[f"{name}_low"], rate[f"{name}_high"])

    return (
        f"win rate {shown('win_rate')}, length-controlled {shown('length_controlled')}; {rate['wins']} won, "
        f"{rate['ties']} ties, {rate['losses']} lost on {counted(rate['prompts'], 'prompt')}, "
        f"{rate['mean_characters_more']:+.0f} characters"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
