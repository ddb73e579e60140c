"""Responses that policy and reference give to the same prompts, for people to read."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GenerationConfig

from fed.data.examples import Example
from fed.data.order import by_length
from fed.model.policy import Policy
from fed.model.randomness import switch_off
from fed.seeding import generator

NEVER = -1  # the id of no token


@dataclass(frozen=True)
class Draws:
    """The settings of drawing responses.

    Attributes:
        max_new_tokens: Tokens of the longest response.
        batch_size: Prompts at a time.
        seed: The seed of the draws.
        temperature: Divides the logits; 0 takes the likeliest token.
        top_p: Only the likeliest tokens are drawn, as many as have this share of the probability.
        stop: Tokens that end a response, besides the tokenizer's end-of-text.
        fixed_length: Nothing ends a response before it has `max_new_tokens` tokens.
    """

    max_new_tokens: int
    batch_size: int
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[int, ...] = ()
    fixed_length: bool = False


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
        decode = policy.tokenizer.decode  # type: ignore[attr-defined]
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


@torch.no_grad()
def generate(policy: Policy, prompts: Sequence[Sequence[int]], draws: Draws) -> list[tuple[int, ...]]:
    """Draw a response to each prompt, in token ids, with the token that ends it if one was drawn.

    Processes that share the policy all call this. Each draws for whole batches of prompts of like length, so that their
    number does not change the responses. Each prompt has at least one token.
    """
    ends, ranks = () if draws.fixed_length else _ends(policy, draws), policy.ranks
    config = _generation_config(policy, draws)
    batches = by_length(list(map(len, prompts)), draws.batch_size)
    own: dict[int, tuple[int, ...]] = {}
    with _generating(policy), torch.random.fork_rng():
        for _, place, _ in ranks.turns(len(batches)):
            torch.manual_seed(int(generator(draws.seed, "generate", place).integers(2**31)))
            drawn = _batch(policy, [prompts[i] for i in batches[place]], config)
            own.update((i, _until(response, ends)) for i, response in zip(batches[place], drawn, strict=True))
    found = {i: response for one in ranks.gather(own) for i, response in one.items()}
    return [found[i] for i in range(len(prompts))]


def _ends(policy: Policy, draws: Draws) -> tuple[int, ...]:
    return tuple({policy.tokenizer.eos_token_id, *draws.stop})


def _generation_config(policy: Policy, draws: Draws) -> GenerationConfig:
    how = {"do_sample": True, "temperature": draws.temperature, "top_p": draws.top_p, "top_k": 0}
    # Processes that hold a model together take equally many steps, so none may stop at end-of-text. Without any
    # `eos_token_id`, transformers would take the model's own.
    stop = NEVER if policy.root is not None or draws.fixed_length else list(_ends(policy, draws))
    return GenerationConfig(
        max_new_tokens=draws.max_new_tokens,
        eos_token_id=stop,
        pad_token_id=min(_ends(policy, draws)),
        **(how if draws.temperature else {}),
    )


@contextmanager
def _generating(policy: Policy) -> Iterator[None]:
    """Prepare the model to generate inside the context: attention that has a cache, evaluation mode, plain draws.

    What a model's own generation_config.json adds (beams, penalties, forbidden words) would bend its distribution.
    """
    model, is_packed = policy.model, policy.layout.packing
    packed, its_own = model.config._attn_implementation, model.generation_config
    if is_packed:
        model.set_attn_implementation(policy.attention)
    model.generation_config = GenerationConfig()
    model.eval()
    try:
        yield
    finally:
        model.generation_config = its_own
        if is_packed:
            model.set_attn_implementation(packed)
        switch_off(model)


def _batch(policy: Policy, prompts: Sequence[Sequence[int]], config: GenerationConfig) -> list[list[int]]:
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), policy.tokenizer.eos_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # padded on the left: the response follows the last token
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    inputs: dict[str, Any] = {"input_ids": ids.to(policy.device), "attention_mask": mask.to(policy.device)}
    drawn = policy.compute(lambda: policy.model.generate(**inputs, generation_config=config))
    return drawn[:, longest:].tolist()  # type: ignore[no-any-return]


def _until(response: list[int], ends: Sequence[int]) -> tuple[int, ...]:
    """Cut the response behind the first token that ends it."""
    first = next((place for place, token in enumerate(response) if token in ends), len(response))
    return tuple(response[: first + 1])
