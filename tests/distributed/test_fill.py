"""Processes load and save the weights of one, to the bit, each its part."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from fed.config.groups import LoraSettings, ModelSettings
from fed.distributed.fill import fill
from fed.distributed.ranks import arrange
from fed.model.arrays import model_tensors
from fed.model.demo import demo_tokenizer
from fed.model.loading import load_policy
from fed.model.placement import Placement
from fed.model.policy import save_policy
from support.families import GATED
from support.models import write_gguf
from support.ranks import in_ranks
from support.split_models import CPU, load, loaded, same_bits, save, settings_of, tokenizer

# Loading: the weights of one process, to the bit


def test_buffers_may_lie_elsewhere_than_the_weights() -> None:
    """Weights kept in main memory are brought to the GPU when they are used; rotary tables are not."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**GATED))
    fill(model, CPU, lambda names, like, stretch: torch.zeros(like.shape), buffers_on=torch.device("meta"))
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert {buffer.device.type for buffer in model.buffers()} == {"meta"}


def plain(folder: Path) -> ModelSettings:
    save(folder / "model", "llama, tied")
    return settings_of(folder)


def in_several_files(folder: Path) -> ModelSettings:
    save(folder / "model", "gpt2", max_shard_size="6KB")
    assert len(list((folder / "model").glob("*.safetensors"))) > 2
    return settings_of(folder)


def in_bfloat16(folder: Path) -> ModelSettings:
    save(folder / "model", "llama, untied").to(torch.bfloat16).save_pretrained(folder / "model")
    return settings_of(folder)


def renamed(folder: Path) -> ModelSettings:
    """Save a model whose head has another name in files than in memory."""
    save(folder / "model", "gpt-neox")
    return settings_of(folder)


def without_prefix(folder: Path) -> ModelSettings:
    """Save the body alone: transformers knows the weights under their shorter names, too."""
    save(folder / "model", "llama, tied").base_model.save_pretrained(folder / "model")
    return settings_of(folder)


def pickled(folder: Path) -> ModelSettings:
    model = save(folder / "model", "gpt2")
    torch.save(model.state_dict(), folder / "model" / "pytorch_model.bin")
    (folder / "model" / "model.safetensors").unlink()
    return settings_of(folder)


def beside_stale_files(folder: Path) -> ModelSettings:
    """Save stale files beside `model.safetensors`: transformers reads only this, whatever an index names."""
    model = save(folder / "model", "llama, tied")
    current = (folder / "model" / "model.safetensors").read_bytes()
    stale = {name: weight + 1 for name, weight in model.state_dict().items()}
    model.save_pretrained(folder / "model", state_dict=stale, max_shard_size="6KB")
    save_file({name: weight.clone() for name, weight in stale.items()}, folder / "model" / "old.safetensors")
    assert (folder / "model" / "model.safetensors.index.json").exists()
    (folder / "model" / "model.safetensors").write_bytes(current)
    return settings_of(folder)


def from_archive(folder: Path) -> ModelSettings:
    model = save(folder / "model", "gpt2")
    with torch.no_grad():
        model.transformer.wpe.weight.add_(1.0)
    torch.save({"state": model.state_dict(), "step_idx": 1}, folder / "policy.pt")
    return settings_of(folder, archive=str(folder / "policy.pt"))


def from_gguf(folder: Path) -> ModelSettings:
    torch.manual_seed(0)
    config = LlamaConfig(**{**GATED, "vocab_size": len(demo_tokenizer())}, tie_word_embeddings=False)
    write_gguf(folder / "tiny.gguf", LlamaForCausalLM(config))
    return ModelSettings(name_or_path=None, gguf_file=str(folder / "tiny.gguf"))


def demo(folder: Path) -> ModelSettings:
    return ModelSettings(name_or_path="demo")


@pytest.mark.parametrize(
    ("make", "slice_by_slice"),
    [
        (plain, True),
        (in_several_files, True),
        (in_bfloat16, True),
        (renamed, False),
        (without_prefix, False),
        (pickled, False),
        (beside_stale_files, True),
        (from_archive, False),
        (from_gguf, False),
        (demo, False),
    ],
)
def test_two_processes_load_the_weights_of_one(
    make: Callable[[Path], ModelSettings], slice_by_slice: bool, tmp_path: Path
) -> None:
    settings = make(tmp_path)
    weights, digest, size = loaded(settings)
    found = in_ranks(2, loaded, settings, slice_by_slice)
    for ours, our_digest, held in found:
        assert same_bits(ours, weights) and our_digest == digest
        assert held <= 0.55 * size
    assert sum(held for *_, held in found) == size


@pytest.mark.parametrize("make", [plain, demo])
def test_two_processes_draw_the_adapter_of_one_and_load_the_weights_below_it(
    make: Callable[[Path], ModelSettings], tmp_path: Path
) -> None:
    settings = make(tmp_path)
    weights, digest, _ = loaded(settings, lora=2)
    for ours, our_digest, _ in in_ranks(2, loaded, settings, lora=2):
        assert same_bits(ours, weights) and our_digest == digest


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def with_half_a_file(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def with_fewer_tokens(folder: Path) -> None:
    tokenizer(99).save_pretrained(folder.parent)


def refusals(settings: ModelSettings) -> list[str]:
    try:
        load(settings, arrange(1, CPU))
    except ValueError as error:
        return arrange(1, CPU).world.gather(str(error))
    return []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without_weights, "cannot load the model of"),
        (with_half_a_file, "cannot load the model of"),
        (with_fewer_tokens, "the tokenizer has 99 tokens but model"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_the_same_value_error_in_all_processes(
    damage: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    settings = plain(tmp_path)
    damage(tmp_path / "model")
    with pytest.raises(ValueError, match=words) as mistake:
        load(settings, arrange(1, CPU))
    assert in_ranks(2, refusals, settings) == [[str(mistake.value)] * 2] * 2


def test_an_adapter_that_unties_the_head_is_refused_in_all_processes(tmp_path: Path) -> None:
    settings, lora = plain(tmp_path), LoraSettings(r=2, modules_to_save=["lm_head"])
    policy = load_policy(settings, Placement(CPU), lora=lora)
    save_policy(policy, tmp_path / "adapter")
    for found in in_ranks(2, refusals, replace(settings, adapter=str(tmp_path / "adapter"))):
        assert len(found) == 2 and all("has trained embeddings and head apart" in error for error in found)


# Saving


def write(settings: ModelSettings, folder: Path, lora: int) -> None:
    """Change the weights and write them, as a run does."""
    mesh = arrange(1, CPU)
    policy = load(settings, mesh, lora=lora)
    with torch.no_grad():
        for tensor in model_tensors(policy.model).values():
            tensor.mul_(1.5).add_(0.01)
    save_policy(policy, folder, write=mesh.world.is_first)


@pytest.mark.parametrize(("make", "lora"), [(plain, 0), (pickled, 0), (plain, 2), (demo, 2)])
def test_two_processes_write_the_very_files_of_one(
    make: Callable[[Path], ModelSettings], lora: int, tmp_path: Path
) -> None:
    settings, one, two = make(tmp_path), tmp_path / "one", tmp_path / "two"
    write(settings, one, lora)
    in_ranks(2, write, settings, two, lora)
    names = sorted(path.relative_to(one) for path in one.rglob("*"))
    assert sorted(path.relative_to(two) for path in two.rglob("*")) == names
    expected, found = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (one, two))
    assert same_bits(found, expected)
    for name in names:
        assert (one / name).is_dir() or (two / name).read_text("latin-1").replace(str(two), str(one)) == (
            one / name
        ).read_text("latin-1")
