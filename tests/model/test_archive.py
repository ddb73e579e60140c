"""Archives: every weight is replaced, or the archive is refused; no pickled code is run."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from fed.config.places import check_archive, check_model_folder
from fed.model.policy import save_policy
from support.policies import load, refusal, same_weights


def archive_of(model: torch.nn.Module, kind: str, folder: Path) -> Path:
    """Write the model's weights in one of the forms that can be read."""
    state = model.state_dict()
    if kind == "directory":
        model.save_pretrained(folder / "archive")
        return folder / "archive"
    if kind == "headless directory":  # as the hub's GPT-2: no "transformer." before the names
        model.base_model.save_pretrained(folder / "archive")
        return folder / "archive"
    if kind == "sharded directory":
        model.save_pretrained(folder / "archive", max_shard_size="20KB")
        assert len(list((folder / "archive").glob("*.safetensors"))) > 1
        return folder / "archive"
    if kind == "safetensors":  # a tied tensor is stored once
        state.pop("lm_head.weight")
        save_file(state, folder / "weights.safetensors")
        return folder / "weights.safetensors"
    if kind == "policy.pt":
        masks = {f"transformer.h.{n}.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.bool) for n in range(2)}
        masks |= {f"transformer.h.{n}.attn.masked_bias": torch.tensor(-1e4) for n in range(2)}
        state = {"step_idx": 19968, "state": {**state, **masks}, "metrics": {"loss/eval": 0.5}}
    torch.save(state, folder / "policy.pt")
    return folder / "policy.pt"


KINDS = ["directory", "headless directory", "sharded directory", "safetensors", "policy.pt", "bare state dict"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_replaces_every_weight(tmp_path, gpt2, kind):
    trained = load(gpt2).model
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.randn_like(parameter))
    policy = load(gpt2, archive=str(archive_of(trained, kind, tmp_path)))
    assert same_weights(policy.model, trained) and not same_weights(policy.model, load(gpt2).model)
    assert policy.model.lm_head.weight is policy.model.transformer.wte.weight


def gpt2_like(**changes: int) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(**{"vocab_size": 257, "n_embd": 16, "n_layer": 2, "n_head": 2, **changes}))


@pytest.mark.parametrize("kind", ["directory", "policy.pt"])
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"n_layer": 1}, "weights missing (first: transformer.h.1."),
        ({"n_layer": 3}, "weights unknown (first: transformer.h.2."),
        ({"n_positions": 32}, "1 weights of another shape (first: transformer.wpe.weight)"),
    ],
)
def test_an_archive_of_another_architecture_is_refused(tmp_path, gpt2, kind, changes, problem):
    archive = archive_of(gpt2_like(**{"n_positions": 64, **changes}), kind, tmp_path)
    message = refusal(gpt2, archive=str(archive))
    assert f"archive {archive} does not match the model" in message and problem in message


def test_an_archive_of_another_family_is_refused(gpt2, llama):
    message = refusal(gpt2, archive=str(llama))
    assert "weights missing (first: transformer." in message and "weights unknown (first: model." in message


def test_an_archive_that_unties_tied_weights_is_refused_instead_of_loaded_in_some_order(tmp_path, gpt2):
    state = load(gpt2).model.state_dict()
    torch.save({**state, "lm_head.weight": state["lm_head.weight"] + 1}, tmp_path / "policy.pt")
    assert "1 weights tied in the model only (first: " in refusal(gpt2, archive=str(tmp_path / "policy.pt"))


class Code:
    """A pickle that touches a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.marker,)


def test_code_in_a_pickled_archive_is_not_run(tmp_path, gpt2):
    marker, archive = tmp_path / "marker", tmp_path / "policy.pt"
    torch.save({"state": load(gpt2).model.state_dict(), "code": Code(marker)}, archive)
    assert f"cannot read archive {archive}: it is damaged or holds more than tensors" in refusal(
        gpt2, archive=str(archive)
    )
    assert not marker.exists()
    torch.load(archive, weights_only=False)
    assert marker.exists(), "the file does hold code"


def write(path: Path, content: object) -> Path:
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("policy.pt", b"", "cannot read archive"),
        ("policy.pt", b"no weights", "cannot read archive"),
        ("weights.safetensors", b"no weights", "cannot read archive"),
        ("policy.pt", [1, 2], "holds no weights; expected a policy.pt"),
        ("optimizer.pt", {"step_idx": 1, "state": {"state": {}, "param_groups": []}}, "holds no weights"),
        ("policy.pt", {}, "29 weights missing"),
    ],
)
def test_a_file_that_is_no_archive_is_refused(tmp_path, gpt2, name, content, problem):
    assert problem in refusal(gpt2, archive=str(write(tmp_path / name, content)))


def test_an_archive_that_is_not_there_is_refused(tmp_path, gpt2):
    assert "does not exist; give" in refusal(gpt2, archive=str(tmp_path / "policy.pt"))
    assert "cannot load the archive of" in refusal(gpt2, archive=str(tmp_path))


def test_a_saved_policy_serves_as_archive(tmp_path, gpt2):
    policy = load(gpt2)
    with torch.no_grad():
        next(policy.model.parameters()).mul_(2.0)
    save_policy(policy, tmp_path / "policy")
    assert same_weights(load(gpt2, archive=str(tmp_path / "policy")).model, policy.model)


@pytest.mark.parametrize("name", ["", "model.ckpt", "model.ckpt.index", "model.ckpt-100"])
def test_a_checkpoint_of_tensorflow_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for end in ("index", "meta", "data-00000-of-00001"):
        (tmp_path / f"model.ckpt.{end}").write_bytes(b"x")
    for check in (check_archive, lambda path: check_model_folder(str(path))):
        with pytest.raises(ValueError, match=r"is a checkpoint of TensorFlow \(model\.ckpt\.index\).*docs/data\.md"):
            check(tmp_path / name)
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(ValueError, match="is a checkpoint of TensorFlow"):
        check_model_folder(tmp_path.name)
    (tmp_path / "config.json").write_text("{}")  # beside weights of another kind
    check_model_folder(str(tmp_path))
    check_archive(tmp_path)
