"""Models with parts that most lack: routers, jitter, attention of their own, no positions, later tokens in sight."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    CTRLConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    MptConfig,
    Phi3Config,
    PhimoeConfig,
    PreTrainedConfig,
)

from fed.config.groups import LoraSettings, ModelSettings
from fed.data.collate import Layout
from fed.data.examples import Example
from fed.model.arrays import model_tensors
from fed.model.demo import demo_tokenizer
from fed.model.generation import Draws, generate
from fed.model.loading import load_policy
from fed.model.placement import Placement
from fed.model.policy import Policy, pair_logps, save_policy
from run.data_checks import check_lengths
from support.policies import PAIRS, refusal

CPU = torch.device("cpu")
END = demo_tokenizer().eos_token_id
COMMON = {"vocab_size": 257, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "bos_token_id": END,
          "eos_token_id": END, "pad_token_id": None, "initializer_range": 0.3}  # fmt: skip
GATED = {**COMMON, "intermediate_size": 24, "num_key_value_heads": 1}
EXPERTS = {**GATED, "num_local_experts": 2, "num_experts_per_tok": 2}
PHIMOE = PhimoeConfig(**EXPERTS, router_jitter_noise=0.3, input_jitter_noise=0.3)
MAMBA = MambaConfig(**{k: v for k, v in COMMON.items() if k != "num_attention_heads"}, state_size=4)


def saved(folder: Path, config: PreTrainedConfig) -> Path:
    """Write a random model of this configuration, with the demo's tokenizer."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    demo_tokenizer().save_pretrained(folder)
    return folder


def loaded(folder: Path, **more: Any) -> Policy:
    torch.manual_seed(0)
    return load_policy(ModelSettings(name_or_path=str(folder)), Placement(CPU), layout=Layout(), **more)


# Randomness


@pytest.mark.parametrize(
    "config",
    [
        PHIMOE,
        MixtralConfig(**EXPERTS, router_jitter_noise=0.3),
        Gemma3Config(
            text_config={**GATED, "head_dim": 8, "attention_dropout": 0.5},
            vision_config={
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "intermediate_size": 16,
                "num_attention_heads": 2,
                "image_size": 16,
                "patch_size": 8,
            },
            mm_tokens_per_image=4,
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_log_probs_repeat_also_with_activation_checkpointing(tmp_path: Path, config: PreTrainedConfig) -> None:
    folder = saved(tmp_path, config)
    expected = pair_logps(loaded(folder), PAIRS, batch_size=4)
    policy = loaded(folder, activation_checkpointing=True)
    found = [pair_logps(policy, PAIRS, batch_size=4) for _ in range(2)]
    assert found[0] == found[1]
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_a_family_without_activation_checkpointing_says_how_to_go_on(tmp_path: Path) -> None:
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "dff": 16, "n_positions": 64}
    folder = saved(tmp_path, CTRLConfig(vocab_size=257, **sizes))
    with pytest.raises(ValueError, match=r"CTRLLMHeadModel .*; leave activation_checkpointing out$"):
        loaded(folder, activation_checkpointing=True)


def test_a_saved_policy_keeps_the_dropout_of_its_model(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=257, n_embd=16, n_layer=1, n_head=2, n_positions=64, resid_pdrop=0.1, embd_pdrop=0.2)
    policy = loaded(saved(tmp_path / "model", config))
    assert policy.model.transformer.drop.p == 0
    save_policy(policy, tmp_path / "policy")
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert stored.transformer.drop.p == 0.2 and stored.config.resid_pdrop == 0.1


# Positions and later tokens


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    sizes = {k: v for k, v in GATED.items() if k not in ("num_key_value_heads", "initializer_range")}
    folder = saved(tmp_path, BertConfig(**sizes, max_position_embeddings=64))
    assert "BertLMHeadModel reads later tokens" in refusal(folder)
    assert loaded(saved(tmp_path / "decoder", BertConfig(**sizes, max_position_embeddings=64, is_decoder=True)))


@pytest.mark.parametrize("rope", ["longrope", "dynamic"])
def test_positions_that_depend_on_the_batch_are_refused(tmp_path: Path, rope: str) -> None:
    if rope == "longrope":
        factors = {"rope_type": rope, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 1e4}
        sizes = {"original_max_position_embeddings": 64, "max_position_embeddings": 256}
        config: PreTrainedConfig = Phi3Config(**GATED, **sizes, rope_parameters=factors)
    else:
        factors = {"rope_type": rope, "factor": 2.0, "rope_theta": 1e4}
        config = LlamaConfig(**GATED, max_position_embeddings=64, rope_parameters=factors)
    folder = saved(tmp_path, config)
    with pytest.raises(ValueError, match=f"max_length=65 is more than the 64 positions.*{rope}.*give max_length=64"):
        loaded(folder, max_length=65)
    assert loaded(folder, max_length=64)


def test_pairs_longer_than_a_table_of_alibi_are_refused() -> None:
    model: Any = SimpleNamespace(model=SimpleNamespace(config=MptConfig(max_seq_len=8)))
    check_lengths(model, 9, [[Example((1, 2, 3), (4,) * 5, (5,))]])
    with pytest.raises(ValueError, match="max_length=9 allows pairs of 9 tokens but the model has 8 positions"):
        check_lengths(model, 9, [[Example((1, 2, 3), (4,) * 6, (5,))]])


# Adapters


def adapted(folder: Path, **lora: Any) -> set[str]:
    """Return the last names of the layers that got an adapter."""
    policy = loaded(folder, lora=LoraSettings(r=2, **lora))
    return {name.split(".lora_")[0].rpartition(".")[2] for name in model_tensors(policy.model)}


def test_routers_get_no_adapter(tmp_path: Path) -> None:
    found = adapted(saved(tmp_path, PHIMOE), target_modules="all-linear")
    assert {"q_proj", "o_proj"} <= found and not found & {"router", "lm_head"}


def test_linear_layers_with_a_forward_of_their_own_get_an_adapter(tmp_path: Path) -> None:
    sizes = {k: v for k, v in COMMON.items() if k != "pad_token_id"}
    found = adapted(saved(tmp_path, FalconConfig(**sizes)), target_modules="all-linear")
    assert found == {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}


def test_a_router_that_is_named_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lora\.target_modules=router names no linear layer .* an adapter can change"):
        adapted(saved(tmp_path, PHIMOE), target_modules=["router"])


def test_mamba_gets_an_adapter_where_its_kernels_see_it(tmp_path: Path) -> None:
    assert adapted(saved(tmp_path, MAMBA)) == {"in_proj", "x_proj", "dt_proj"}


# Responses


@pytest.mark.parametrize("config", [Gemma2Config(**GATED, head_dim=8), MAMBA], ids=lambda config: config.model_type)
def test_models_without_torchs_attention_draw_responses(tmp_path: Path, config: PreTrainedConfig) -> None:
    policy = loaded(saved(tmp_path, config), activation_checkpointing=config is not MAMBA)
    before = policy.model.config._attn_implementation
    found = generate(policy, [(5, 6, 7), (9, 3)], Draws(4, 2))
    assert all(1 <= len(response) <= 4 for response in found)
    assert policy.model.config._attn_implementation == before
    assert generate(policy, [(5, 6, 7), (9, 3)], Draws(4, 2)) == found


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**GATED),
        Gemma2Config(**GATED, head_dim=8, sliding_window=4),
        FalconConfig(**COMMON, alibi=True, new_decoder_architecture=False),
        MptConfig(vocab_size=257, d_model=16, n_layers=2, n_heads=2),
        MAMBA,
    ],
    ids=lambda config: config.model_type,
)
def test_a_prompt_that_is_asked_several_times_is_read_once(tmp_path: Path, config: PreTrainedConfig) -> None:
    """And the likeliest responses are those to each prompt by itself."""
    policy = loaded(saved(tmp_path, config))
    prompts = [tuple(range(9, 18)), tuple(range(7, 12))]
    read = 0

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal read
        read += inputs[0].numel()

    policy.model.get_input_embeddings().register_forward_pre_hook(count)
    draws = Draws(3, 8, temperature=0.0, fixed_length=True)
    alone = [generate(policy, [prompt], draws)[0] for prompt in prompts]
    read = 0
    assert generate(policy, [prompt for prompt in prompts for _ in range(4)], draws) == [alone[0]] * 4 + [alone[1]] * 4
    each_step = 8 * 3  # the last token of each prompt, and two drawn ones
    assert read == (2 * 8 + each_step if config is not MAMBA else 2 * 8 + 8 * 9 + 8 * 2)
