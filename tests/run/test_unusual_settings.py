"""Settings that are unusual but valid, drawn at random: a run goes well, or one line says what cannot be.

`make slow` draws UNUSUAL=24 of them by SEED=0. Each is a family of models, an adapter, a way to save memory, numbers of
16 bits, responses drawn at each evaluation, and a way to share the work among two processes.
"""

import os
import random
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    FalconMambaConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    OPTConfig,
    PhimoeConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from fed.cpu.matmul import SMALL
from fed.model.demo import demo_tokenizer
from support.forked import Fork
from support.launched import ROOT, end, start

COUNT, SEED = int(os.environ.get("UNUSUAL", "24")), int(os.environ.get("SEED", "0"))
WIDTH = 384  # a square layer is above the size from which libraries are measured
END = demo_tokenizer().eos_token_id
BASE = {"vocab_size": 257, "hidden_size": WIDTH, "num_hidden_layers": 2, "eos_token_id": END, "bos_token_id": END,
        "pad_token_id": None}  # fmt: skip
HEADS = {**BASE, "num_attention_heads": 4, "max_position_embeddings": 96}
GATED = {**HEADS, "intermediate_size": WIDTH, "num_key_value_heads": 2}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**GATED, attention_dropout=0.1),
    "gpt2": GPT2Config(vocab_size=257, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=96, eos_token_id=END),
    "gpt-neox": GPTNeoXConfig(**HEADS, intermediate_size=WIDTH, hidden_dropout=0.1),
    "opt": OPTConfig(vocab_size=257, hidden_size=WIDTH, ffn_dim=WIDTH, num_hidden_layers=2, num_attention_heads=4,
                     max_position_embeddings=96, word_embed_proj_dim=WIDTH, layerdrop=0.2),
    "falcon": FalconConfig(**HEADS, new_decoder_architecture=False, multi_query=True),
    "qwen3": Qwen3Config(**GATED, head_dim=96),
    "gemma2": Gemma2Config(**GATED, head_dim=96, final_logit_softcapping=3.0),
    "mixtral": MixtralConfig(**GATED, **EXPERTS, router_jitter_noise=0.2),
    "phimoe": PhimoeConfig(**GATED, **EXPERTS, router_jitter_noise=0.2),
    "mamba": MambaConfig(**BASE, state_size=4),
    "falcon-mamba": FalconMambaConfig(**BASE, state_size=4),
}  # fmt: skip
CHOICES = (
    ("lora.r=0", "lora.r=4", "lora.r=4 lora.target_modules=all-linear"),
    ("", "activation_checkpointing=true"),
    ("", "precision=bfloat16", "model.policy_dtype=bfloat16"),
    ("", "sample_during_eval=true n_eval_model_samples=2"),
    ("", "", "trainer=FSDPTrainer trainer_processes=2", "trainer=TensorParallelTrainer trainer_processes=2",
     "clients_in_parallel=2"),
    ("", "packing=false", "prefix_sharing=false", "fused_head=false"),
    ("", "wire_dtype=bfloat16", "client_optimizer=persist", "loss=ipo", "loss=sft strategy=fedavg alpha=0"),
)  # fmt: skip
TYPED = (
    "model=blank_model max_length=64 max_prompt_length=32 batch_size=4 gradient_accumulation_steps=2 optimizer=AdamW "
    "client_num_in_total=2 comm_round=1 local_steps=2 n_train_examples=32 n_test_examples=8 device=cpu num_threads=1 "
    "tensorboard.enabled=false output_dir=runs lr=1e-4 warmup_steps=0 datasets=[demo]"
)


def drawn(number: int) -> tuple[str, list[str]]:
    """Return a family and settings; the families take turns."""
    rng = random.Random(f"{SEED} {number}")
    family = [*FAMILIES][number % len(FAMILIES)]
    return family, " ".join(rng.choice(choices) for choices in CHOICES).split()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a random model of each family."""
    folder = tmp_path_factory.mktemp("models")
    for name, config in FAMILIES.items():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        demo_tokenizer().save_pretrained(folder / name)
    return folder


def test_the_models_are_wide_enough_to_be_measured() -> None:
    assert WIDTH**2 > SMALL


@pytest.mark.slow
@pytest.mark.filterwarnings("default:FSDP2-wrapped module")  # torch warns of operations that OPT does not have
@pytest.mark.parametrize("number", range(COUNT))
def test_unusual_settings_run_or_are_refused_in_one_line(tmp_path: Path, models: Path, number: int) -> None:
    family, settings = drawn(number)
    typed = [*TYPED.split(), f"model.name_or_path={models / family}", *settings]
    found = end(start(tmp_path / "run", ROOT / "main.py", *typed, popen=Fork), tmp_path / "run")
    told = f"{family} {' '.join(settings)}\n{found.err[-3000:]}"
    assert found.left == [], told
    if found.code == 2:
        assert found.err.startswith("error: ") and found.err.count("\n") == 1, told
        assert any(word.partition("=")[0] in found.err for word in settings), told
        return
    assert found.code == 0 and "Error" not in found.err, told
    before, after = ([line for line in found.lines() if line["split"] == "test" and line["round"] == r] for r in (0, 1))
    assert all(line["accuracy"] == line["margin"] == 0 for line in before), told
    assert all(line["margin"] != 0 and abs(line["margin"]) < 1e3 for line in after), told
