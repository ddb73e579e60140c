"""A conversation with a policy, or with a policy and its reference side by side."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from transformers import TextStreamer

from fed.data.rows import HUMAN, Chat, Preference, Skip, Turn
from fed.model.generation import Draws, draw_batch, generating
from fed.model.lora import adapter_off
from fed.model.policy import Policy
from feedback.asking import Asking, Wanted, how_to_ask
from feedback.policies import Found, Loading, load


@dataclass(frozen=True)
class Side:
    """One that answers: the policy, or its reference."""

    name: str
    policy: Policy
    asking: Asking
    off: bool = False  # with the adapter off

    def ready(self) -> AbstractContextManager[None]:
        """Return the context in which it answers."""
        return adapter_off(self.policy.model) if self.off else nullcontext()


def sides(found: Found, loading: Loading, wanted: Wanted, draws: Draws, *, compare: bool) -> list[Side]:
    """Load the policy and, to compare, its reference: without its adapter, or the weights that the run began with.

    Raises:
        ValueError: If they cannot be loaded, or no reference is known.
    """

    def loaded(name: str, one: Found) -> Side:
        policy, own = load(one, loading), wanted
        if wanted.chat_template is None and not getattr(policy.tokenizer, "chat_template", None):
            own = replace(wanted, chat_template="none")
        asking = how_to_ask(one, policy, own, draws.max_new_tokens)
        if asking.chat.chat_template == "none":  # turns are text with HH's markers
            asking = replace(asking, stop_strings=(HUMAN,))
        return Side(name, policy, asking)

    side = loaded("policy", found)
    if not compare:
        return [side]
    if found.has_adapter:
        return [replace(side, name="reference", off=True), side]
    if found.reference is None:
        raise ValueError(f"compare=true needs a run's folder or an adapter; what {found.name} began with is not known")
    return [loaded("reference", found.reference), side]


class Conversation:
    """A conversation of one user with one side or both; each side remembers its own answers.

    Args:
        both: Who answers.
        draws: How responses are drawn.
    """

    def __init__(self, both: Sequence[Side], draws: Draws) -> None:
        self._turns: dict[str, list[Turn]] = {side.name: [] for side in both}
        self._draws, self._count = draws, 0

    def answer(self, side: Side, question: str, write: Callable[[str], object]) -> str:
        """Draw an answer, and call `write` with each piece of it as soon as it is there.

        Raises:
            ValueError: If the chat template refuses the conversation.
        """
        turns = self._turns[side.name]
        chat = Chat((*turns, Turn("user", question)))
        (ids,) = side.asking.ids(side.policy, [Preference(chat, "", None)])
        if isinstance(ids, Skip):
            raise ValueError(f"the question cannot be asked: {ids.reason}")
        draws = replace(self._draws, stop=side.asking.stop, stop_strings=side.asking.stop_strings)
        with side.ready(), generating(side.policy):
            streamer = _Streamer(side, write)
            (drawn,) = draw_batch(side.policy, [ids], draws, [(self._count,)], streamer)
        text = side.asking.text(side.policy, drawn).strip()
        turns += [Turn("user", question), Turn("assistant", text)]
        return text

    def close(self) -> None:
        """End the exchange: the next question has other random numbers."""
        self._count += 1


class _Streamer(TextStreamer):  # type: ignore[misc]  # transformers has no types here
    """Hands text on as it becomes certain, up to a stop string."""

    def __init__(self, side: Side, write: Callable[[str], object]) -> None:
        super().__init__(side.policy.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write, self._stops = write, side.asking.stop_strings
        self._text, self._written = "", 0

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Write what is certain not to be the beginning of a stop string."""
        self._text += text
        ends = [place for stop in self._stops if (place := self._text.find(stop)) >= 0]
        hold = 0 if stream_end else max((len(stop) - 1 for stop in self._stops), default=0)
        certain = min([*ends, max(len(self._text) - hold, 0)])
        if certain > self._written:
            self._write(self._text[self._written : certain])
            self._written = certain
