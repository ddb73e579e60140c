"""Responses with a judgement, in whatever way it is written, become pairs; ties and missing ones are counted."""

from collections.abc import Callable, Sequence
from itertools import combinations

from fed.data.fields import Rows, needed_prompt, number, pair, preference, response_of, values_of
from fed.data.implied import pairs
from fed.data.records import Record
from fed.data.rows import Prompt, Response, Skip, usable
from fed.data.source import Reading

Verdict = Callable[[Record, tuple[str, str]], float | None]  # below 0: the first is better; above 0: the second
TIE, UNJUDGED = Skip("a tie"), Skip("no judgement")
SIDES = (
    ("response_0", "response_1"),
    ("response_1", "response_2"),
    ("response1", "response2"),
    ("output_1", "output_2"),
    ("response_a", "response_b"),
    ("answer_a", "answer_b"),
    ("conversation_a", "conversation_b"),
)
SCORES = (("score_0", "score_1"), ("score_1", "score_2"), ("score_a", "score_b"))


def _sides(record: Record) -> tuple[str, str] | None:
    return next((sides for sides in SIDES if record.has(*sides)), None)


def is_judged(record: Record) -> bool:
    """Return True if the record has two responses and says which is better."""
    return _sides(record) is not None and _judgement(record) is not None


def _judgement(record: Record) -> Verdict | None:
    """Return the reader of which side is better, below 0 for the first and above 0 for the second."""
    for names, read in JUDGEMENTS:
        if record.has(*names):
            return read
    return None


def _index(name: str) -> Verdict:
    """Return the reader of a field that counts the better side from 0."""

    def read(record: Record, sides: tuple[str, str]) -> float | None:
        value = number(record, name)
        if value is not None and value not in (-1, 0, 1):
            raise ValueError(f"{record.where}: {name!r} is {value:g}, expected 0 or 1, or -1 for a tie")
        return None if value is None else {0: -1.0, 1: 1.0}.get(int(value), 0.0)

    return read


def _preferred(record: Record, sides: tuple[str, str]) -> float | None:
    """Read `preference`: 1 or 2, or a number between (AlpacaEval's); 0 and 1.5 are ties. Also a side's own name."""
    value = record.value("preference")
    if isinstance(value, str) and not value.replace(".", "", 1).isdigit():
        return _winner_of(record, "preference", sides)
    value = number(record, "preference")
    if sides[0][-1] == "0" and value is not None:  # response_0 and response_1: the number of the better one
        value += 1
        if not 1 <= value <= 2:
            raise ValueError(f"{record.where}: 'preference' is {value - 1:g}, expected 0 or 1, or 0.5 for a tie")
    if value is not None and value != 0 and not 1 <= value <= 2:
        raise ValueError(f"{record.where}: 'preference' is {value:g}, expected 1 or 2, or 1.5 or 0 for a tie")
    return None if value is None else 0.0 if value == 0 else value - 1.5


def _winner(record: Record, sides: tuple[str, str]) -> float | None:
    return _winner_of(record, "winner", sides)


def _winner_of(record: Record, name: str, sides: tuple[str, str]) -> float | None:
    """Read the name of a side: "response_a", "model_a", "a"; or one that begins with "tie"."""
    value = record.label(name)
    if value is None or not value.strip():
        return None
    text = value.strip().lower()
    if text.startswith(("tie", "both")) or text in ("neither", "equal", "same"):
        return 0.0
    ends = [side[-1] for side in sides]
    matches = [text == side or text.rpartition("_")[2] == end for side, end in zip(sides, ends, strict=True)]
    if matches.count(True) != 1:
        raise ValueError(f"{record.where}: {name!r} is {value!r:.40}, expected {sides[0]}, {sides[1]} or tie")
    return -1.0 if matches[0] else 1.0


def _strength(name: str) -> Verdict:
    return lambda record, sides: number(record, name)


def _by_scores(names: tuple[str, str]) -> Verdict:
    def read(record: Record, sides: tuple[str, str]) -> float | None:
        first, second = (number(record, name) for name in names)
        return None if first is None or second is None else second - first

    return read


JUDGEMENTS: tuple[tuple[tuple[str, ...], Verdict], ...] = (
    (("better_response_id",), _index("better_response_id")),
    (("chosen_idx",), _index("chosen_idx")),
    (("preference",), _preferred),
    (("winner",), _winner),
    (("overall_preference",), _strength("overall_preference")),
    (("preference_strength",), _strength("preference_strength")),
    *((names, _by_scores(names)) for names in SCORES),
)


def two_judged(record: Record, reading: Reading) -> Rows:
    """Yield the pair of two responses and a judgement."""
    sides, read = _sides(record), _judgement(record)
    assert sides is not None and read is not None
    verdict = read(record, sides)
    values = [record.value(side) for side in sides]
    if verdict is None or verdict == 0:
        yield UNJUDGED if verdict is None else TIE
    else:
        renamed = {"chosen": values[verdict > 0], "rejected": values[verdict < 0]}
        known = {name: value for name, value in record.fields.items() if name not in sides}
        if all(isinstance(value, str) for value in values):
            needed_prompt(record)
        yield from pairs(Record(record.where, record.part, {**known, **renamed}, record.read), reading)


def pairs_by_index(record: Record, reading: Reading) -> Rows:
    """Yield the pairs of the original DPO code's data: responses, and [better, worse] as their numbers."""
    prompt = needed_prompt(record)
    responses = [response_of(record, "a response", value, prompt) for value in values_of(record, "responses")]
    target = record.value("sft_target")
    if reading.needs == "imitated" and target is not None:
        found = response_of(record, "sft_target", target, prompt)
        yield found if isinstance(found, Skip) else usable(preference(record, prompt, found, None))
        return
    for two in values_of(record, "pairs"):
        if not (isinstance(two, list) and len(two) == 2 and all(_is_place(place, responses) for place in two)):
            raise ValueError(f"{record.where}: 'pairs' has {two!r:.40}, expected two numbers of responses, from 0")
        yield pair(record, prompt, responses[two[0]], responses[two[1]])


def _is_place(value: object, of: Sequence[object]) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(of)


RANKS = (("scores", 1), ("score", 1), ("ranks", -1), ("rank", -1))  # 1: the highest is best; -1: the lowest


def is_ranked(record: Record) -> bool:
    """Return True if the record has several responses and their scores or ranks, or names the best."""
    values = [record.fields.get(name) for name in ("responses", *(name for name, _ in RANKS))]
    first, *ranks = (isinstance(value, list) or (isinstance(value, str) and value.startswith("[")) for value in values)
    return first and (any(ranks) or record.has("chosen_idx"))


def ranked(record: Record, reading: Reading) -> Rows:
    """Yield pairs of several responses with scores or ranks, or of the best one and the others."""
    prompt = needed_prompt(record)
    responses = [response_of(record, "a response", value, prompt) for value in values_of(record, "responses")]
    lists = ((name, sign) for name, sign in RANKS if isinstance(record.fields.get(name), list | str))
    name, sign = next(lists, ("chosen_idx", 1))
    if name == "chosen_idx":
        best = number(record, name)
        if best is None or best == -1:
            yield UNJUDGED
            return
        if best not in range(len(responses)):
            raise ValueError(f"{record.where}: 'chosen_idx' is {best:g}, but there are {len(responses)} responses")
        values: list[object] = [float(place == best) for place in range(len(responses))]
    else:
        values = values_of(record, name)
        if len(values) != len(responses):
            raise ValueError(f"{record.where}: {len(responses)} responses but {len(values)} {name}")
    scores = [_score(record, name, value, sign) for value in values]
    # Of the responses beside a best one nothing is known, not even that they tie.
    yield from _by_value(record, prompt, list(zip(scores, responses, strict=True)), reading, ties=name != "chosen_idx")


def _score(record: Record, name: str, value: object, sign: int) -> float | None:
    if value is None or value != value:
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"{record.where}: {name!r} has {value!r:.40}, expected numbers") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise record.wrong(name, "a list of numbers")
    return sign * value


def _by_value(
    record: Record,
    prompt: Prompt,
    scored: Sequence[tuple[float | None, Response | Skip]],
    reading: Reading,
    *,
    ties: bool,
) -> Rows:
    known = [(value, response) for value, response in scored if value is not None]
    if len(known) < 2:
        yield UNJUDGED
        return
    if reading.pairs_per_prompt == "best_worst":
        known = [max(known, key=lambda one: one[0]), min(known, key=lambda one: one[0])]
    for (first, one), (second, other) in combinations(known, 2):
        if first != second:
            yield pair(record, prompt, *((one, other) if first > second else (other, one)))
        elif ties:
            yield TIE
