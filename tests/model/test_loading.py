"""A policy as the settings ask for it: weights, dtypes, dropout, checkpointing, saving, and the user's mistakes."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fed.data.collate import collate
from fed.model.demo import demo_tokenizer
from fed.model.policy import response_logps, save_policy
from support.policies import PAIRS, load, logits, refusal, same_weights


def test_the_demo_is_a_function_of_torchs_seed():
    one, other = load(), load()
    assert same_weights(one.model, other.model)
    assert one.split_head and one.compute_dtype is None and not one.model.training
    assert 50_000 < one.model.num_parameters() < 150_000


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_local_directory_gives_its_weights_and_tokenizer(request, family):
    directory = request.getfixturevalue(family)
    policy = load(directory, block_name={"gpt2": "GPT2Block", "llama": "LlamaDecoderLayer"}[family])
    stored = AutoModelForCausalLM.from_pretrained(directory)
    assert same_weights(policy.model, stored) and policy.split_head
    assert policy.tokenizer("a\u00e9")["input_ids"] == demo_tokenizer()("a\u00e9")["input_ids"]
    assert policy.tokenizer.eos_token_id == 256


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_kept_in_policy_dtype(gpt2, dtype):
    assert {p.dtype for p in load(gpt2, policy_dtype=dtype).model.parameters()} == {getattr(torch, dtype)}


def test_dropout_is_off_even_in_training_mode(gpt2):
    stored = AutoModelForCausalLM.from_pretrained(gpt2).train()
    assert not torch.equal(logits(stored), logits(stored)), "as stored, it has dropout"
    assert not load(gpt2).model.training
    model = load(gpt2).model.train()
    assert torch.equal(logits(model), logits(model))
    assert torch.equal(logits(model), logits(stored.eval()))


def test_mixed_precision_computes_in_bfloat16_and_keeps_float32_weights_and_gradients():
    mixed, full = load(fsdp_policy_mp="bfloat16"), load()
    logps = response_logps(mixed, collate(PAIRS))
    exact = response_logps(full, collate(PAIRS))
    assert logps.chosen.dtype == torch.float32
    assert not torch.equal(logps.chosen, exact.chosen)
    assert torch.allclose(logps.chosen, exact.chosen, rtol=1e-2)
    logps.chosen.sum().backward()
    assert {p.grad.dtype for p in mixed.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("family", "block"), [("demo", "LlamaMLP"), ("gpt2", "GPT2MLP")])
def test_activation_checkpointing_computes_twice_and_gives_the_same_gradients(request, family, block):
    name = "demo" if family == "demo" else request.getfixturevalue(family)
    gradients, calls = [], []
    for checkpointing in (False, True):
        policy = load(name, activation_checkpointing=checkpointing)
        calls.append(0)

        def count(*_: object) -> None:
            calls[-1] += 1

        for module in policy.model.modules():
            if type(module).__name__ == block:
                module.register_forward_pre_hook(count)
        response_logps(policy, collate(PAIRS)).chosen.sum().backward()
        gradients.append({name: p.grad for name, p in policy.model.named_parameters()})
    assert calls == [2, 4]
    assert all(torch.equal(grad, gradients[1][name]) for name, grad in gradients[0].items())


@pytest.mark.parametrize("family", ["demo", "gpt2"])
def test_a_saved_policy_is_loaded_by_transformers_and_by_us_with_the_same_logits(tmp_path, request, family):
    policy = load("demo" if family == "demo" else request.getfixturevalue(family))
    save_policy(policy, tmp_path / "policy")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "policy").eval()
    assert torch.equal(logits(model), logits(policy.model))
    assert torch.equal(logits(load(tmp_path / "policy").model), logits(policy.model))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    text = "\n\nHuman: na\u00efve?\n\nAssistant:"
    assert tokenizer(text)["input_ids"] == policy.tokenizer(text)["input_ids"]
    assert tokenizer.eos_token_id == policy.tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_no_model_is_refused():
    assert "set model.name_or_path" in refusal(None)


@pytest.mark.parametrize("key", ["policy_dtype", "fsdp_policy_mp"])
def test_an_unknown_dtype_is_refused(key):
    assert f"model.{key}=int8 is not a dtype; expected one of float32, bfloat16, float16" in refusal(**{key: "int8"})


def test_a_reference_in_another_dtype_is_refused():
    assert "round 0 would measure rounding noise" in refusal(reference_dtype="float16")
    assert load(reference_dtype="float32").model.dtype == torch.float32


def test_computing_in_more_bits_than_the_weights_have_is_refused():
    message = refusal(policy_dtype="bfloat16", fsdp_policy_mp="float32")
    assert "model.fsdp_policy_mp=float32" in message and "set policy_dtype=float32" in message


def test_a_wrong_block_name_is_refused_with_the_right_ones(gpt2):
    assert "model.block_name=GPTJBlock is not a module of the model; it has GPT2Block" in refusal(
        gpt2, block_name="GPTJBlock"
    )
