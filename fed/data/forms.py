"""The forms in which people publish preferences, recognised by the fields of a record.

Ties and missing judgements make no pair and are counted; a record of no known form is an error. docs/data.md lists
the forms.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from fed.data.fields import (
    CONVERSATIONS,
    PROMPTS,
    Rows,
    as_chat,
    needed_prompt,
    preference,
    response_of,
    tools_of,
    with_system,
)
from fed.data.implied import pairs
from fed.data.judged import UNJUDGED, is_judged, is_ranked, pairs_by_index, ranked, two_judged
from fed.data.messages import are_messages, turns
from fed.data.records import Record, Unusable
from fed.data.rows import Chat, Preference, Skip, Turn, said, usable
from fed.data.source import Reading, Source

COMPLETIONS = ("completion", "output", "response")


class Form(NamedTuple):
    """A form of records."""

    name: str
    fits: Callable[[Record], bool]
    rows: Callable[[Record, Reading], Rows]


def own_rows(source: Source) -> Rows:
    """Yield the rows of records whose form is recognised.

    Raises:
        ValueError: If a record has no known form, or another one than the record before it, or misses a field.
    """
    first: tuple[Form, str] | None = None
    for record in source.own_records():
        form = _form_of(record, first[0] if first else None, source.reading)
        if first is None:
            first = form, record.where
            source.forms.setdefault(form.name, record.where)
        elif form is not first[0]:
            raise ValueError(
                f"{record.where} holds {form.name}, but {first[1]} holds {first[0].name}; put records of one form "
                "into a file or folder of their own"
            )
        try:
            yield from form.rows(record, source.reading)
        except Unusable as error:
            yield Skip(str(error))


def _form_of(record: Record, before: Form | None, reading: Reading) -> Form:
    for form in (*FORMS[:-1], QUESTIONS) if reading.needs == "prompts" else FORMS:
        if form.fits(record):
            return form
    if before is TALKS and any(record.has(name) for name in CONVERSATIONS):  # null, or an empty list
        return before
    raise ValueError(
        f"{record.where}: the record has {record.names()}, which is no known form of preferences; docs/data.md lists "
        "them, and columns.chosen=NAME says which field is which"
    )


def _completion(record: Record) -> str | None:
    return next((name for name in COMPLETIONS if record.has(name)), None)


def _labelled(record: Record, reading: Reading) -> Rows:
    """Yield the response if it is labelled as a good one."""
    label = record.value("label")
    if isinstance(label, str):
        label = {"true": 1, "false": 0, "1": 1, "0": 0}.get(label.strip().lower(), label)
    if label is None:
        yield UNJUDGED
    elif label not in (0, 1):
        raise ValueError(f"{record.where}: 'label' is {label!r:.40}, expected true or false")
    elif not label:
        yield Skip("labelled as a bad response")
    else:
        yield from _imitated(record, reading)


def _imitated(record: Record, reading: Reading) -> Rows:
    """Yield the response to the prompt."""
    prompt, name = needed_prompt(record), _completion(record)
    assert name is not None
    found = response_of(record, name, record.value(name), prompt)
    yield found if isinstance(found, Skip) else usable(preference(record, as_chat(prompt, found), found, None))


def _each_turn(record: Record, reading: Reading) -> Rows:
    """Yield every turn of the assistant as the response to what stands before it."""
    name = next((name for name in CONVERSATIONS if are_messages(record.fields.get(name))), None)
    if name is None:
        raise Unusable("empty conversation")
    answers = each_answer(with_system(record, turns(record, name)), tools_of(record))
    found = [usable(preference(record, row.prompt, row.chosen, None)) for row in answers]
    yield from found or [Skip("no assistant turn")]


def _question(record: Record, reading: Reading) -> Rows:
    """Yield the prompt without any response; of a conversation, what stands before the assistant's last turn."""
    prompt = needed_prompt(record)
    if isinstance(prompt, Chat) and prompt.turns[-1].role == "assistant":
        prompt = prompt._replace(turns=prompt.turns[:-1])
    is_empty = not (prompt if isinstance(prompt, str) else any(map(said, prompt.turns)))
    yield Skip("empty prompt") if is_empty else preference(record, prompt, "", None)


def each_answer(conversation: Sequence[Turn], tools: str = "") -> Iterator[Preference]:
    """Yield every turn of the assistant but the first of all, as the response to imitate to the turns before it."""
    for place, turn in enumerate(conversation):
        if turn.role == "assistant" and place:
            yield Preference(Chat(tuple(conversation[:place]), tools), turn, None)


def imitated(question: str, answer: str) -> Preference | Skip:
    """Return the row of one question and an answer to imitate."""
    return usable(Preference(Chat((Turn("user", question),)), Turn("assistant", answer), None))


def _is_conversation(record: Record) -> bool:
    return any(are_messages(record.fields.get(name)) for name in CONVERSATIONS)


def _is_single(record: Record) -> bool:
    return _completion(record) is not None and any(record.has(name) for name in PROMPTS)


TALKS = Form("conversations", _is_conversation, _each_turn)
QUESTIONS = Form("prompts", lambda record: any(record.has(name) for name in (*PROMPTS, *CONVERSATIONS)), _question)
FORMS = (
    Form("pairs of chosen and rejected", lambda record: record.has("chosen", "rejected"), pairs),
    Form("two responses with a judgement", is_judged, two_judged),
    Form("responses with pairs of their numbers", lambda record: record.has("responses", "pairs"), pairs_by_index),
    Form("responses with scores or ranks", is_ranked, ranked),
    Form("single responses labelled good or bad", lambda record: record.has("label") and _is_single(record), _labelled),
    Form("single responses", _is_single, _imitated),
    TALKS,
)
