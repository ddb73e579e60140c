"""Responses drawn for prompts: by hand, and by several processes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fed.config.groups import ModelSettings
from fed.data.collate import Layout
from fed.distributed.ranks import arrange
from fed.model.generation import Draws, generate
from fed.model.loading import load_policy
from fed.model.placement import Placement
from fed.model.policy import Policy
from fed.seeding import seed_globals
from support.ranks import in_ranks
from support.scripted import save_scripted

CPU = torch.device("cpu")
TEXTS = ("Hel", "Hello", "Hello you", "He", "Hello you there")


def demo_policy(device: torch.device = CPU) -> Policy:
    seed_globals(0, "model")
    return load_policy(ModelSettings(), Placement(device, arrange(1, CPU)), layout=Layout(), max_length=64)


def drawn(
    temperature: float, seed: int = 0, batch_size: int = 2, end: int = 256, device: torch.device = CPU
) -> list[tuple[int, ...]]:
    policy = demo_policy(device)
    policy.tokenizer.eos_token = policy.tokenizer.convert_ids_to_tokens(end)
    prompts = policy.tokenizer(list(TEXTS))["input_ids"]
    before = torch.random.get_rng_state()
    found = generate(policy, prompts, Draws(12, batch_size, seed, temperature, top_p=0.9))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert policy.model.config._attn_implementation == "packed"
    return found


def test_temperature_0_takes_the_likeliest_token(device: torch.device):
    policy = demo_policy(device)
    policy.model.set_attn_implementation("sdpa")
    expected = []
    for prompt in policy.tokenizer(list(TEXTS))["input_ids"]:
        ids = list(prompt)
        for _ in range(12):
            ids.append(int(policy.model(torch.tensor([ids], device=device)).logits[0, -1].argmax()))
        expected.append(tuple(ids[len(prompt) :]))
    assert drawn(0.0, device=device) == drawn(0.0, batch_size=5, device=device) == expected


def test_a_response_ends_with_the_end_of_text_in_one_process_and_in_two():
    whole = drawn(1.0, end=1)
    assert all(1 not in response for response in whole)
    end = whole[0][5]
    expected = [response[: response.index(end) + 1] if end in response else response for response in whole]
    assert 1 <= len(expected[0]) <= 6
    assert drawn(1.0, end=end) == expected
    assert in_ranks(2, drawn, 1.0, 0, 2, end) == [expected] * 2


def test_draws_depend_on_the_seed_only(device: torch.device):
    first = drawn(1.0, device=device)
    assert first == drawn(1.0, device=device) != drawn(1.0, seed=1, device=device)
    assert all(1 <= len(response) <= 12 for response in first)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_processes_that_share_a_model_draw_what_one_draws(temperature: float):
    """There are three batches, so one of two processes repeats another's batch."""
    assert in_ranks(2, drawn, temperature) == [drawn(temperature)] * 2


def test_a_response_is_drawn_alike_whatever_stands_beside_it(device: torch.device):
    """Its batch, its place and the processes do not change it: only its prompt, the seed and its numbers do."""
    policy = demo_policy(device)
    prompts = policy.tokenizer(list(TEXTS))["input_ids"]
    draws = Draws(12, 2, temperature=0.8, top_p=0.95)
    whole = generate(policy, prompts, draws)
    for place in (4, 0, 2):
        alone = generate(policy, [prompts[place]], draws, numbers=[(place,)])
        assert alone == [whole[place]]
    assert generate(policy, [prompts[0]] * 3, draws, numbers=[(0,), (0,), (1,)])[0] == whole[0]
    assert len(set(generate(policy, [prompts[0]] * 9, draws, numbers=[(0, n) for n in range(9)]))) > 1


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_tokens_are_drawn_as_often_as_their_probability_says(top_p: float):
    """20,000 draws of one token: each share within 4 standard errors of the softmax of logits / temperature."""
    policy, count = demo_policy(), 20_000
    prompt = policy.tokenizer(["Hello"])["input_ids"][0]
    policy.model.set_attn_implementation("sdpa")
    with torch.no_grad():
        probabilities = (policy.model(torch.tensor([prompt])).logits[0, -1].double() / 2.0).softmax(-1)
    policy.model.set_attn_implementation("packed")
    if top_p < 1:
        values, order = probabilities.sort(descending=True)
        kept = order[(values.cumsum(-1) - values) < top_p]
        probabilities = torch.zeros_like(probabilities).scatter(0, kept, probabilities[kept])
        probabilities /= probabilities.sum()
    draws = Draws(1, 2000, temperature=2.0, top_p=top_p)
    drawn = torch.tensor(generate(policy, [prompt] * count, draws)).flatten()
    found = torch.bincount(drawn, minlength=len(probabilities)) / count
    error = (probabilities * (1 - probabilities) / count).sqrt()
    assert bool((found[probabilities == 0] == 0).all())
    assert float(((found - probabilities).abs() - 4.5 * error).max()) <= 0
    assert float((found - probabilities).abs().max()) < 0.01 and (probabilities > 0).sum() > 5


def test_a_stop_string_ends_a_response(tmp_path: Path):
    folder = save_scripted(tmp_path, "abcdefgh")
    policy = load_policy(ModelSettings(name_or_path=str(folder)), Placement(CPU), layout=Layout())
    prompts = policy.tokenizer(["a", "xb", "?"])["input_ids"]
    decode = policy.tokenizer.decode

    def texts(**how: Any) -> list[str]:
        return [decode(response) for response in generate(policy, prompts, Draws(20, 3, temperature=0.0, **how))]

    end = policy.tokenizer.eos_token
    assert texts() == [f"bcdefgh{end}", f"cdefgh{end}", f"abcdefgh{end}"]
    assert texts(stop_strings=("ef", "zz")) == ["bcdef", "cdef", "abcdef"]
    assert texts(stop=tuple(policy.tokenizer("c")["input_ids"])) == ["bc", "c", "abc"]
    assert len(texts(stop_strings=("ef",), fixed_length=True)[0].replace(end, "#")) == 20
