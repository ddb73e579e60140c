"""Responses drawn from a policy for prompts, in token ids.

Shapes: B prompts of a batch, T tokens of prompt and response so far, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation.streamers import BaseStreamer

from fed.data.order import by_length
from fed.model.policy import Policy
from fed.model.randomness import switch_off
from fed.seeding import generator

NEVER = -1  # the id of no token
KEYS_AND_VALUES = (DynamicLayer, DynamicSlidingWindowLayer)  # what a model with attention alone keeps of a text
# Called with the places of prompts of a batch and their responses.
OnBatch = Callable[[Sequence[int], Sequence[tuple[int, ...]]], None]


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
        stop_strings: Texts that end a response, whose last token ends behind the first of them.
        fixed_length: Nothing ends a response before it has `max_new_tokens` tokens.
    """

    max_new_tokens: int
    batch_size: int
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    fixed_length: bool = False


@torch.no_grad()
def generate(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    draws: Draws,
    *,
    numbers: Sequence[tuple[int, ...]] | None = None,
    on_batch: OnBatch = lambda places, responses: None,
) -> list[tuple[int, ...]]:
    """Draw a response to each prompt, in token ids, with the token that ends it if one was drawn.

    A response depends on its prompt, the seed and the prompt's numbers, not on the prompts beside it (but for the
    rounding of larger matrices). Prompts of like length make a batch, the longest first.

    Args:
        policy: The model. Processes that share it all call this; each draws for whole batches.
        prompts: Token ids, at least one each.
        draws: How responses are drawn.
        numbers: What tells the draws of one prompt from those of others; None: its place.
        on_batch: Called with the responses of each batch that this process has drawn.
    """
    numbers = [(place,) for place in range(len(prompts))] if numbers is None else numbers
    ends, ranks = ends_of(policy, draws), policy.ranks
    batches = by_length(list(map(len, prompts)), draws.batch_size)
    own: dict[int, tuple[int, ...]] = {}
    with generating(policy):
        for _, batch, counts in ranks.turns(len(batches)):
            policy.between()
            places = batches[batch]
            drawn = draw_batch(policy, [prompts[i] for i in places], draws, [numbers[i] for i in places])
            responses = [_until_text(policy, _until(response, ends), draws) for response in drawn]
            own.update(zip(places, responses, strict=True))
            if counts:
                on_batch(places, responses)
    found = {i: response for one in ranks.gather(own) for i, response in one.items()}
    return [found[i] for i in range(len(prompts))]


def ends_of(policy: Policy, draws: Draws) -> tuple[int, ...]:
    """Return the tokens that end a response; () if nothing does."""
    return () if draws.fixed_length else tuple(sorted({policy.tokenizer.eos_token_id, *draws.stop}))


@contextmanager
def generating(policy: Policy) -> Iterator[None]:
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


def draw_batch(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    draws: Draws,
    numbers: Sequence[tuple[int, ...]],
    streamer: BaseStreamer | None = None,
) -> list[list[int]]:
    """Draw a response to each prompt of one batch, inside `generating`; ended ones are filled up.

    Args:
        policy: The model.
        prompts: Token ids, at least one each.
        draws: How responses are drawn.
        numbers: What tells the draws of one prompt from those of others.
        streamer: One of transformers', which is given the tokens as they are drawn; for one prompt only.
    """
    longest, inputs = max(map(len, prompts)), _padded(policy, prompts)
    how: dict[str, Any] = {"generation_config": _generation_config(policy, draws), "streamer": streamer}
    if draws.stop_strings and not draws.fixed_length and policy.root is None:
        how["tokenizer"] = policy.tokenizer
    if draws.temperature:
        how["logits_processor"] = LogitsProcessorList([_OwnDraws(draws, numbers, longest, policy.device)])
    if (cache := _read_once(policy, prompts)) is not None:
        how["past_key_values"] = cache
    drawn = policy.compute(lambda: policy.model.generate(**inputs, **how))
    return drawn[:, longest:].tolist()  # type: ignore[no-any-return]


def _padded(policy: Policy, prompts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Return token ids and their mask, (B, T), padded on the left: a response follows the last token."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), policy.tokenizer.eos_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return {"input_ids": ids.to(policy.device), "attention_mask": mask.to(policy.device)}


def _read_once(policy: Policy, prompts: Sequence[Sequence[int]]) -> DynamicCache | None:
    """Read each prompt up to its last token, equal ones once, and return the keys and values of all, a row each.

    None if no two are equal, or the model keeps something else of what it has read.
    """
    numbers = {prompt: row for row, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    if policy.root is not None or len(numbers) == len(prompts) or min(map(len, numbers)) == 1:
        return None
    once = GenerationConfig(
        max_new_tokens=1, eos_token_id=NEVER, pad_token_id=policy.tokenizer.eos_token_id, return_dict_in_generate=True
    )
    inputs = _padded(policy, [prompt[:-1] for prompt in numbers])
    cache = policy.compute(lambda: policy.model.generate(**inputs, generation_config=once)).past_key_values
    if type(cache) is not DynamicCache or any(type(layer) not in KEYS_AND_VALUES for layer in cache.layers):
        return None
    cache.batch_select_indices(torch.tensor([numbers[tuple(prompt)] for prompt in prompts], device=policy.device))
    return cache


def _generation_config(policy: Policy, draws: Draws) -> GenerationConfig:
    ends = ends_of(policy, draws)
    # Processes that hold a model together take equally many steps, so none may stop at end-of-text. Without any
    # `eos_token_id`, transformers would take the model's own.
    may_stop = policy.root is None and bool(ends)
    return GenerationConfig(
        max_new_tokens=draws.max_new_tokens,
        eos_token_id=list(ends) if may_stop else NEVER,
        stop_strings=list(draws.stop_strings) if may_stop and draws.stop_strings else None,
        pad_token_id=min(ends, default=policy.tokenizer.eos_token_id),
    )


class _OwnDraws(LogitsProcessor):  # type: ignore[misc]  # transformers has no types here
    """Draws each row's next token with that row's own random numbers, and leaves only that token possible."""

    def __init__(self, draws: Draws, numbers: Sequence[tuple[int, ...]], start: int, device: torch.device) -> None:
        drawn = [generator(draws.seed, "generate", *own).random(draws.max_new_tokens) for own in numbers]
        self._uniform = torch.from_numpy(np.stack(drawn)).float().to(device)  # (B, max_new_tokens)
        self._draws, self._start = draws, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores of 0 for the drawn token of each row and -inf for all others, both (B, V).

        Args:
            input_ids: Prompts and the tokens drawn so far, (B, T).
            scores: The logits of the next token, (B, V).
        """
        uniform = self._uniform[:, input_ids.shape[1] - self._start, None].to(scores.device)
        probabilities = (scores.float() / self._draws.temperature).softmax(-1)
        if self._draws.top_p < 1:
            probabilities, order = probabilities.sort(descending=True)
            before = probabilities.cumsum(-1) - probabilities
            probabilities = probabilities * (before < self._draws.top_p)  # the likeliest one always stays
        reached = probabilities.cumsum(-1)
        place = (reached <= uniform * reached[:, -1:]).sum(-1, keepdim=True)
        # Rounding may lead behind the last token that is possible.
        last = probabilities.shape[-1] - 1 - (probabilities > 0).flip(-1).int().argmax(-1, keepdim=True)
        place = place.minimum(last)
        token = order.gather(-1, place) if self._draws.top_p < 1 else place
        return torch.full_like(scores, -torch.inf).scatter(-1, token, 0.0)


def _until(response: list[int], ends: Sequence[int]) -> tuple[int, ...]:
    """Cut the response behind the first token that ends it."""
    first = next((place for place, token in enumerate(response) if token in ends), len(response))
    return tuple(response[: first + 1])


def _until_text(policy: Policy, response: tuple[int, ...], draws: Draws) -> tuple[int, ...]:
    """Cut the response behind the token in which a stop string ends."""
    if draws.fixed_length or not draws.stop_strings:
        return response

    def holds_one(ids: Sequence[int]) -> bool:
        text = policy.tokenizer.decode(ids)
        return any(stop in text for stop in draws.stop_strings)

    while response and holds_one(response[:-1]):
        response = response[:-1]
    return response
