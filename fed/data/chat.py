"""Conversations as token ids, through the tokenizer's chat template.

Special tokens are those that the template wrote. What people wrote is text, also where it spells a special token.
"""

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer as Backend

from fed.data.rows import ASSISTANT, HUMAN, Chat, Preference, Response, Skip, Turn, said

MARKER = re.compile(f"({HUMAN}|{ASSISTANT})")
# One private character for each special token that people wrote, and one for each that the template wrote.
PEOPLE, TEMPLATES = 0xF0000, 0x100000
PROBE = "answer"
NO_PREFIX = "the chat template begins an answer otherwise than it asks for one: the prompt ends before"
JOINED = "the last tokens of the prompt join with the answer: the prompt ends before them"


@dataclass(frozen=True)
class ChatSettings:
    """The settings that turn conversations into text; the names are those of the keys.

    The template of a file is the tokenizer's by now.
    """

    chat_template: str | None = None  # "none": no template, but HH's markers
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    system_prompt: str | None = None
    text_as_chat: bool = False


def read_template(path: str) -> str:
    """Read the file of a chat template.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"chat_template={path} cannot be read ({error}); give a text file") from error


class PairIds(NamedTuple):
    """One pair as token ids, before it is cut to a length."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int] | None
    remark: str = ""  # on where the prompt ends, if that is not where the template asks for an answer


def in_form(row: Preference, settings: ChatSettings) -> Preference:
    """Return the row as the settings want it: text as a conversation, or a conversation as text."""
    if settings.text_as_chat and isinstance(row.prompt, str):
        row = _as_chat(row)
    if not isinstance(row.prompt, Chat):
        return row
    if settings.system_prompt and (not row.prompt.turns or row.prompt.turns[0].role != "system"):
        turns = (Turn("system", settings.system_prompt), *row.prompt.turns)
        row = replace(row, prompt=row.prompt._replace(turns=turns))
    return _as_text(row) if settings.chat_template == "none" else row


def _as_chat(row: Preference) -> Preference:
    """Return a row of text as a conversation: HH's markers divide turns, other text is one turn of the user."""
    assert isinstance(row.prompt, str) and isinstance(row.chosen, str)
    text = f"\n\n{row.prompt}" if row.prompt.startswith(HUMAN.strip()) else row.prompt
    before, *rest = MARKER.split(text)
    if not rest:
        turns, responses = [Turn("user", row.prompt)], [row.chosen, row.rejected]
    else:
        turns = [Turn("system", before.strip())] if before.strip() else []
        for marker, text in zip(rest[::2], rest[1::2], strict=True):
            turns.append(Turn("user" if marker == HUMAN else "assistant", text.strip()))
        if turns[-1] == ("assistant", "", ""):
            turns.pop()
        responses = [said(one).strip() if one is not None else None for one in (row.chosen, row.rejected)]
    chosen, rejected = (None if text is None else Turn("assistant", said(text)) for text in responses)
    assert chosen is not None
    return replace(row, prompt=Chat(tuple(turns)), chosen=chosen, rejected=rejected)


def _as_text(row: Preference) -> Preference:
    """Return a conversation as text with HH's markers."""
    assert isinstance(row.prompt, Chat)
    mark = {"user": f"{HUMAN} ", "assistant": f"{ASSISTANT} "}
    parts = [mark.get(turn.role, "\n\n") + said(turn) for turn in row.prompt.turns]
    chosen, rejected = (None if one is None else f" {said(one)}" for one in (row.chosen, row.rejected))
    assert chosen is not None
    return replace(row, prompt="".join(parts) + ASSISTANT, chosen=chosen, rejected=rejected)


def without_oldest(prompt: Chat) -> Chat | None:
    """Return the conversation without its oldest turn of the user and the answers to it; None: only one is left."""
    system = [turn for turn in prompt.turns[:1] if turn.role == "system"]
    users = [place for place, turn in enumerate(prompt.turns) if turn.role == "user"]
    if len(users) < 2:
        return None
    return prompt._replace(turns=(*system, *prompt.turns[users[1] :]))


class ChatTokens:
    """The token ids of conversations in one tokenizer.

    Args:
        tokenizer: A tokenizer of transformers.
        kwargs: Values for variables of its chat template.

    Raises:
        ValueError: If it has no chat template, or the template cannot be rendered at all.
    """

    def __init__(self, tokenizer: Any, kwargs: Mapping[str, Any] | None = None) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "the data holds conversations, but the tokenizer has no chat template; give a model that has one, such "
                "as model=smollm2-135m, chat_template=FILE, or chat_template=none, which writes HH's markers"
            )
        self._tokenizer, self._kwargs = tokenizer, dict(kwargs or {})
        added = tokenizer.added_tokens_decoder.values()
        self._special = sorted({token.content for token in added if token.special and token.content}, key=len)[::-1]
        self._pattern = re.compile("|".join(map(re.escape, self._special)) or r"(?!)")
        self._tail, self._end = self._turn_end()

    @property
    def ends_in(self) -> str:
        """The special token with which the template ends an assistant's turn; "" if with none."""
        return self._end

    def pairs(self, rows: Sequence[Preference]) -> Iterator[PairIds | Skip]:
        """Yield the token ids of each row, whose prompts are conversations, or why it has none."""
        texts = [self._texts_of_row(row) for row in rows]
        every = [(text, each.is_marked) for each in texts if not isinstance(each, Skip) for text in each.texts]
        found = iter(self._ids(every))
        for each in texts:
            yield each if isinstance(each, Skip) else self._pair(each, [next(found) for _ in each.texts])

    def prompts(self, chats: Sequence[Chat]) -> Iterator[list[int] | Skip]:
        """Yield the token ids of each conversation up to where the template asks for an answer, or why it has none."""
        texts = [self._texts(chat, ()) for chat in chats]
        found = iter(self._ids([(each.texts[0], each.is_marked) for each in texts if not isinstance(each, Skip)]))
        for each in texts:
            yield each if isinstance(each, Skip) else next(found)

    def _pair(self, rendered: "_Texts", found: Sequence[list[int]]) -> PairIds | Skip:
        """Divide whole conversations into the prompt, with which all of them begin, and responses."""
        (prompt, *_), remark, texts, last = found, "", rendered.texts, rendered.last
        shared = _shared(found)
        if not shared:
            return Skip("the chat template writes no token before the answer")
        end = [] if self._end else [self._tokenizer.eos_token_id]
        chosen, *rejected = [[*ids[shared:], *end] for ids in found[1:]]
        if shared < len(prompt):
            is_prefix = all(text.startswith(texts[0]) for text in texts)
            if not is_prefix and last and last not in texts[0][: _shared(texts)]:
                return Skip("the chat template writes the question otherwise once it is answered")
            remark = JOINED if is_prefix else NO_PREFIX
        return PairIds(prompt[:shared], chosen, rejected[0] if rejected else None, remark)

    def _texts_of_row(self, row: Preference) -> "_Texts | Skip":
        assert isinstance(row.prompt, Chat)
        return self._texts(row.prompt, [response for response in (row.chosen, row.rejected) if response is not None])

    def _texts(self, chat: Chat, responses: Sequence[Response]) -> "_Texts | Skip":
        """Render the prompt and the whole conversation with each response."""
        turns = (*chat.turns, *map(_as_turn, responses))
        messages, tools = list(map(_message, turns)), chat.tools
        people = (tools, *(text for turn in turns for text in turn))
        is_marked = any(text and self._pattern.search(text) for text in people)
        if is_marked:
            if any(ord(character) >= PEOPLE for text in people for character in text):
                return Skip("spells a special token and holds private characters")
            messages, tools = [self._marked(message) for message in messages], self._mark(tools)
        schemas = json.loads(tools) if tools else None
        prompt, ends = messages[: len(chat.turns)], messages[len(chat.turns) :]
        try:
            texts = [self._render(prompt, schemas, generation=True)]
            texts += [self._until_end(self._render([*prompt, one], schemas, generation=False)) for one in ends]
        except Exception as error:  # templates raise their own, and whatever their code meets in a message
            reason = " ".join(str(error).split())
            return Skip(f"refused by the chat template ({type(error).__name__}: {reason:.100})")
        return _Texts(texts, is_marked, str(prompt[-1]["content"] or "").strip() if prompt else "")

    def _render(self, messages: Sequence[Mapping[str, Any]], tools: Any, *, generation: bool) -> str:
        text: str = self._tokenizer.apply_chat_template(
            list(messages), tools=tools, tokenize=False, add_generation_prompt=generation, **self._kwargs
        )
        return text

    def _turn_end(self) -> tuple[str, str]:
        """Find what a template writes after an assistant's last turn, and how much of it ends every such turn."""
        short = [{"role": "user", "content": "question"}, {"role": "assistant", "content": PROBE}]
        try:
            tail = self._render(short, None, generation=False).rpartition(PROBE)[2]
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"the chat template refuses a conversation of user and assistant ({reason:.200}); give another with "
                "chat_template=FILE, or chat_template=none"
            ) from error
        try:
            longer = self._render([*short, {"role": "user", "content": "thanks"}], None, generation=False)
            always = tail[: _shared([tail, longer.rpartition(PROBE)[2]])]
        except Exception:  # of templates that want an answer to every question
            always = tail
        ends = [match.end() for match in self._pattern.finditer(always)] or [
            match.end() for match in self._pattern.finditer(tail)
        ]
        return tail, tail[: ends[-1]] if ends else ""

    def _until_end(self, text: str) -> str:
        """Cut what follows the end of the last turn."""
        if text.endswith(self._tail):
            return text[: len(text) - len(self._tail)] + self._end
        ends = [match.end() for match in self._pattern.finditer(text)]
        return text[: ends[-1]] if ends and self._end else text

    def _mark(self, text: str) -> str:
        return self._pattern.sub(lambda match: chr(PEOPLE + self._special.index(match[0])), text)

    def _marked(self, message: Mapping[str, Any]) -> dict[str, Any]:
        return {key: _each_text(value, self._mark) for key, value in message.items()}

    def _ids(self, texts: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """Turn texts into ids; in those that are marked, private characters stand for what people wrote."""
        plain = [text for text, is_marked in texts if not is_marked]
        found = iter(self._tokenizer(plain, add_special_tokens=False, **ONLY_IDS)["input_ids"] if plain else [])
        return [self._ids_of_marked(text) if is_marked else next(found) for text, is_marked in texts]

    def _ids_of_marked(self, text: str) -> list[int]:
        for place, special in enumerate(self._special):
            text = text.replace(special, chr(TEMPLATES + place))
        for place, special in enumerate(self._special):
            text = text.replace(chr(PEOPLE + place), special)
        return list(self._renamed.encode(text, add_special_tokens=False).ids)

    @functools.cached_property
    def _renamed(self) -> Backend:
        """The tokenizer with its special tokens under private names, so that their own names are plain text."""
        name = {special: chr(TEMPLATES + place) for place, special in enumerate(self._special)}
        rules = json.loads(self._tokenizer.backend_tokenizer.to_str())
        for token in rules["added_tokens"]:
            if token["special"]:
                token["content"] = name.get(token["content"], token["content"])
        vocabulary = rules["model"]["vocab"]
        if isinstance(vocabulary, dict):
            rules["model"]["vocab"] = {name.get(token, token): place for token, place in vocabulary.items()}
        else:
            rules["model"]["vocab"] = [[name.get(token, token), score] for token, score in vocabulary]
        if rules["model"].get("unk_token") in name:
            rules["model"]["unk_token"] = name[rules["model"]["unk_token"]]
        rules["post_processor"] = None
        return Backend.from_str(json.dumps(rules))


class _Texts(NamedTuple):
    texts: list[str]  # the prompt's, then those of whole conversations
    is_marked: bool
    last: str  # what the last message of the prompt says


ONLY_IDS = {"return_attention_mask": False, "return_token_type_ids": False}


def _shared(several: Sequence[Sequence[object]]) -> int:
    """Return how many items all begin with."""
    shortest = min(map(len, several))
    return next((place for place in range(shortest) if len({one[place] for one in several}) > 1), shortest)


def _as_turn(response: Response) -> Turn:
    return response if isinstance(response, Turn) else Turn("assistant", response)


def _message(turn: Turn) -> dict[str, Any]:
    more = json.loads(turn.more) if turn.more else {}
    return {"role": turn.role, "content": turn.content, **more}


def _each_text(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): _each_text(item, change) for key, item in value.items()}
    return [_each_text(item, change) for item in value] if isinstance(value, list) else value
