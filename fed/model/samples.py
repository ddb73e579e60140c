"""Responses that policy and reference give to the same prompts, for people to read."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fed.data.examples import Example
from fed.model.generation import Draws, generate
from fed.model.policy import Policy


class Sampler:
    """A sampler of a response to each prompt at every evaluation, each time with the same random numbers.

    The first call sees an untrained model: its responses are the reference's.

    Args:
        examples: The examples whose prompts are used, cut to their last `max_prompt_length` tokens.
        max_prompt_length: Tokens of the longest prompt.
        draws: How responses are drawn. The tokens that end the examples' preferred responses end drawn ones too.
    """

    def __init__(self, examples: Sequence[Example], *, max_prompt_length: int, draws: Draws) -> None:
        self._prompts = [example.prompt[-max_prompt_length:] for example in examples]
        self._chosen = [example.chosen for example in examples]
        ends = sorted({chosen[-1] for chosen in self._chosen})  # a chat template may end turns in its own way
        self._draws = replace(draws, stop=(*draws.stop, *ends))
        self._reference: list[str] = []

    def draw(self, policy: Policy) -> list[dict[str, str]]:
        """Return a row for each prompt: `prompt`, `chosen` (the data's response), `reference` and `policy`, as text.

        Special tokens of drawn responses are shown with `fixed_length` only. If several processes share the policy, all
        of them call this.
        """
        decode = policy.tokenizer.decode
        how = {"skip_special_tokens": not self._draws.fixed_length}
        texts = [decode(response, **how) for response in generate(policy, self._prompts, self._draws)]
        self._reference = self._reference or texts
        prompts = [decode(prompt) for prompt in self._prompts]
        chosen = [decode(response, skip_special_tokens=True) for response in self._chosen]
        return [
            {"prompt": prompt, "chosen": own, "reference": reference, "policy": text}
            for prompt, own, reference, text in zip(prompts, chosen, self._reference, texts, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return the reference's responses, which a resumed run cannot draw again."""
        return {"reference": self._reference}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._reference = list(state["reference"])


def with_different_prompts(examples: Iterable[Example], count: int, *, max_prompt_length: int) -> list[Example]:
    """Return the first examples, at most `count`, whose prompts differ in their last `max_prompt_length` tokens."""
    first: dict[tuple[int, ...], Example] = {}
    for example in examples:
        first.setdefault(tuple(example.prompt[-max_prompt_length:]), example)
        if len(first) == count:
            break
    return list(first.values())
