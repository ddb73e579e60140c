"""Responses that policy and reference give to the same prompts, to be read by people."""

from collections.abc import Mapping, Sequence
from typing import Any

from fed.data.tokens import Example
from fed.model.generation import generate
from fed.model.policy import Policy


class Sampler:
    """Draws a response to each prompt at every evaluation, each time with the same random numbers.

    What it draws first, from a model that is not trained yet, are the reference's responses.

    Args:
        examples: Whose prompts are used, cut to their last `max_prompt_length` tokens.
        max_length: Tokens of prompt and response.
        max_prompt_length: What it leaves of `max_length` is for the response.
        batch_size: Prompts at a time.
        seed: Of the draws.
    """

    def __init__(
        self, examples: Sequence[Example], *, max_length: int, max_prompt_length: int, batch_size: int, seed: int
    ) -> None:
        self._prompts = [example.prompt[-max_prompt_length:] for example in examples]
        self._how = {"max_new_tokens": max_length - max_prompt_length, "batch_size": batch_size, "seed": seed}
        self._reference: list[str] = []

    def draw(self, policy: Policy) -> list[dict[str, str]]:
        """`prompt`, `reference` and `policy`, as text without special tokens, of each prompt.

        Of several processes that share the policy, all call this.
        """
        decode = policy.tokenizer.decode  # type: ignore[attr-defined]
        responses = generate(policy, self._prompts, **self._how)
        texts = [decode(response, skip_special_tokens=True) for response in responses]
        self._reference = self._reference or texts
        return [
            {"prompt": decode(prompt), "reference": reference, "policy": text}
            for prompt, reference, text in zip(self._prompts, self._reference, texts, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on cannot draw again."""
        return {"reference": self._reference}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self._reference = list(state["reference"])
