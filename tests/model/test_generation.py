"""Responses drawn for prompts: by hand, and by several processes."""

import pytest
import torch

from fed.config.groups import ModelSettings
from fed.data.collate import Layout
from fed.distributed.ranks import arrange
from fed.model.loading import load_policy
from fed.model.placement import Placement
from fed.model.policy import Policy
from fed.model.samples import Draws, generate
from fed.seeding import seed_globals
from support.ranks import in_ranks

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
    whole = drawn(1.0, end=0)
    assert all(0 not in response for response in whole)
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
