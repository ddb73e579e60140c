"""Responses drawn during evaluation."""

from dataclasses import replace
from typing import Any

import torch
from transformers import GenerationConfig

from fed.data.examples import Example
from fed.model.generation import Draws, generate
from fed.model.policy import Policy
from fed.model.samples import Sampler, with_different_prompts
from fed.tracking.line_files import read_lines
from support.command_line import CommandLine
from support.pairs import examples

SMALL = ("comm_round=2", "client_num_in_total=2", "n_train_examples=40", "n_test_examples=16", "max_length=112")


def sampler(max_prompt_length: int = 3, max_new_tokens: int = 9, **how: Any) -> Sampler:
    return Sampler(examples(5), max_prompt_length=max_prompt_length, draws=Draws(max_new_tokens, batch_size=2, **how))


def test_an_untrained_policy_responds_as_the_reference_and_a_changed_one_does_not(policy: Policy) -> None:
    drawn = sampler()
    first = drawn.draw(policy)
    assert len(first) == 5 and all(row["policy"] == row["reference"] for row in first)
    decoded = policy.tokenizer.decode  # type: ignore[attr-defined]
    assert [row["chosen"] for row in first] == [decoded(e.chosen, skip_special_tokens=True) for e in examples(5)]
    assert drawn.draw(policy) == first, "the same random numbers each time"
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(3.0)
    changed = drawn.draw(policy)
    assert [row["reference"] for row in changed] == [row["reference"] for row in first]
    assert [row["policy"] for row in changed] != [row["policy"] for row in first]


def test_what_the_models_authors_say_of_generating_bends_no_draw(policy: Policy) -> None:
    plain = sampler().draw(policy)
    own = GenerationConfig(num_beams=4, min_p=0.9, max_time=1e-9, return_dict_in_generate=True, stop_strings=["a"])
    policy.model.generation_config = own
    assert sampler().draw(policy) == plain
    assert policy.model.generation_config is own, "it goes into the folder of the trained model"


def test_a_prompt_is_cut_at_its_start_and_a_response_at_its_end(policy: Policy) -> None:
    decoded = policy.tokenizer.decode  # type: ignore[attr-defined]
    for row, example in zip(sampler(max_prompt_length=2, max_new_tokens=4).draw(policy), examples(5), strict=True):
        assert row["prompt"] == decoded(example.prompt[-2:])
        assert len(row["policy"].encode()) <= 4 * 4, "four tokens of this tokenizer"


def test_responses_of_fixed_length_go_on_where_others_end(policy: Policy) -> None:
    """The head is made to end every response at once."""
    policy.model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(policy.model.lm_head.weight))
    policy.model.lm_head.bias = torch.nn.Parameter(100 * torch.eye(policy.model.lm_head.out_features)[7])
    prompts = [example.prompt for example in examples(5)]
    assert generate(policy, prompts, Draws(9, batch_size=2, stop=(7,))) == [(7,)] * 5
    assert generate(policy, prompts, Draws(9, batch_size=2, stop=(7,), fixed_length=True)) == [(7,) * 9] * 5


def test_a_prompt_of_several_pairs_is_drawn_for_once() -> None:
    one, two, three = (Example((prompt,), (2,), (3,)) for prompt in (5, 6, 7))
    pairs = [one, replace(one, chosen=(3,), rejected=(4,)), two, three]
    found = [with_different_prompts(pairs, count, max_prompt_length=4) for count in (2, 9)]
    assert found == [[one, two], [one, two, three]]
    longer = [replace(one, prompt=(start, 5)) for start in (1, 2)]
    assert with_different_prompts(longer, 9, max_prompt_length=1) == longer[:1]


def test_a_run_draws_as_its_keys_say(command_line: CommandLine) -> None:
    def drawn(*options: str) -> list[str]:
        result = command_line(*SMALL, "sample_during_eval=true", *options)
        assert result.code == 0, result.err
        return [row["policy"] for row in read_lines(result.run / "samples.jsonl")]

    plain, greedy, narrow = drawn(), drawn("sample_temperature=0"), drawn("sample_top_p=0.001")
    assert greedy == narrow != plain != drawn("sample_temperature=0.7")
    mark, fixed = "<|endoftext|>", drawn("sample_fixed_length=true", "n_eval_model_samples=16")
    assert any(mark in text and not text.endswith(mark) for text in fixed)


def test_a_run_draws_at_each_evaluation_and_from_the_first_test_pairs(command_line: CommandLine) -> None:
    result = command_line(*SMALL, "sample_during_eval=true", "n_eval_model_samples=3", "lr=0.05")
    rows = list(read_lines(result.run / "samples.jsonl"))
    assert [row["round"] for row in rows] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len({row["prompt"] for row in rows}) == 3 and all(row["prompt"].endswith("Assistant:") for row in rows)
    for row in rows[3:]:
        assert row["reference"] == rows[rows.index(row) % 3]["reference"]
    assert any(row["policy"] != row["reference"] for row in rows[6:])


def test_without_being_asked_a_run_draws_nothing_and_trains_alike(command_line: CommandLine) -> None:
    without, with_samples = command_line(*SMALL), command_line(*SMALL, "sample_during_eval=true")
    assert not (without.run / "samples.jsonl").exists()
    assert (without.run / "metrics.jsonl").read_bytes() == (with_samples.run / "metrics.jsonl").read_bytes()
