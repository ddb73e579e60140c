"""Responses that policy and reference give to the same prompts, to be read by people."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from fed.data.order import by_length
from fed.data.tokens import Example
from fed.model.policy import Policy
from fed.seeding import generator


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


NEVER = -1


ATTENTION = "sdpa"  # the packed one has no cache of keys and values


@torch.no_grad()
def generate(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[tuple[int, ...]]:
    """A response to each prompt, in token ids, end-of-text included where it was reached.

    The same whatever the number of processes that share the prompts: each draws for whole batches of like length.

    Args:
        policy: Of several processes that share it, all call this.
        prompts: Token ids, at least one each.
        max_new_tokens: Tokens of the longest response.
        batch_size: Prompts at a time.
        temperature: Of the distribution drawn from; 0 takes the likeliest token.
        top_p: Share of the probability whose likeliest tokens are drawn from.
        seed: Of the draws.
    """
    end, ranks = policy.tokenizer.eos_token_id, policy.ranks
    draws = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {}
    # Processes that hold a model together take equally many steps: none may stop at end-of-text. No token is -1; given
    # none, transformers would take the model's own.
    stops = NEVER if policy.root is not None else end
    config = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=stops, pad_token_id=end, **draws)
    batches = by_length(list(map(len, prompts)), batch_size)
    own: dict[int, tuple[int, ...]] = {}
    with _with_cache(policy.model), torch.random.fork_rng():
        for _, place, _ in ranks.turns(len(batches)):
            torch.manual_seed(int(generator(seed, "generate", place).integers(2**31)))
            drawn = _batch(policy, [prompts[i] for i in batches[place]], config)
            own.update((i, _until(response, end)) for i, response in zip(batches[place], drawn, strict=True))
    found = {i: response for one in ranks.gather(own) for i, response in one.items()}
    return [found[i] for i in range(len(prompts))]


def _batch(policy: Policy, prompts: Sequence[Sequence[int]], config: GenerationConfig) -> list[list[int]]:
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), policy.tokenizer.eos_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # padded on the left: what follows the last token is to be drawn
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    inputs: dict[str, Any] = {"input_ids": ids.to(policy.device), "attention_mask": mask.to(policy.device)}
    drawn = policy.compute(lambda: policy.model.generate(**inputs, generation_config=config))
    return drawn[:, longest:].tolist()  # type: ignore[no-any-return]


def _until(response: list[int], end: int) -> tuple[int, ...]:
    return tuple(response[: response.index(end) + 1] if end in response else response)


@contextmanager
def _with_cache(model: Any) -> Iterator[None]:
    """The model as it generates: attention that knows a cache, and no activations thrown away."""
    attention, training = model.config._attn_implementation, model.training
    model.set_attn_implementation(ATTENTION)
    model.eval()
    try:
        yield
    finally:
        model.set_attn_implementation(attention)
        model.train(training)
