"""Responses drawn during evaluation."""

import torch
from transformers import GenerationConfig

from fed.model.policy import Policy
from fed.model.samples import Sampler
from fed.tracking.line_files import read_lines
from support.command_line import CommandLine
from support.pairs import examples

SMALL = ("comm_round=2", "client_num_in_total=2", "n_train_examples=40", "n_test_examples=16", "max_length=112")


def sampler(**changes: int) -> Sampler:
    how = {"max_length": 12, "max_prompt_length": 3, "batch_size": 2, "seed": 0, **changes}
    return Sampler(examples(5), **how)


def test_an_untrained_policy_responds_as_the_reference_and_a_changed_one_does_not(policy: Policy) -> None:
    drawn = sampler()
    first = drawn.draw(policy)
    assert len(first) == 5 and all(row["policy"] == row["reference"] for row in first)
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
    for row, example in zip(sampler(max_prompt_length=2, max_length=6).draw(policy), examples(5), strict=True):
        assert row["prompt"] == decoded(example.prompt[-2:])
        assert len(row["policy"].encode()) <= 4 * 4, "four tokens of this tokenizer"


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
