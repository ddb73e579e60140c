"""The faster library is chosen, the choice is kept, and an absent library is refused."""

import json

import pytest
import torch
from torch import nn

from fed.cpu import matmul
from fed.cpu.matmul import Choice, choose_library, measure

LARGE = 384  # inputs and outputs of a layer that is measured


@pytest.fixture
def speeds(monkeypatch):
    """Measured speeds that a test sets; the shapes of measured layers stand under "shapes"."""
    found = {"mkl": 90.0, "onednn": 60.0, "shapes": []}

    def told(weight):
        found["shapes"].append(tuple(weight.shape))
        return {name: found[name] for name in ("mkl", "onednn")}

    monkeypatch.setattr(matmul, "measure", told)
    for library in (torch.backends.mkl, torch.backends.mkldnn):
        monkeypatch.setattr(library, "is_available", lambda: True)
    return found


def model_of(*sizes: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(size, LARGE) for size in sizes or (LARGE,)))


def by_onednn(model: nn.Module) -> bool:
    return any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize(("onednn", "chosen"), [(60.0, "mkl"), (108.0, "mkl"), (108.1, "onednn"), (300.0, "onednn")])
def test_onednn_is_taken_when_it_is_more_than_a_fifth_faster(tmp_path, speeds, onednn, chosen):
    speeds["onednn"] = onednn
    model = model_of()
    assert choose_library(model, "auto", cache_dir=str(tmp_path)).library == chosen
    assert by_onednn(model) == (chosen == "onednn")


def test_a_choice_is_kept_when_a_later_measurement_would_differ(tmp_path, speeds):
    first = choose_library(model_of(), "auto", cache_dir=str(tmp_path))
    speeds["onednn"] = 1000.0
    model = model_of()
    assert (
        choose_library(model, "auto", cache_dir=str(tmp_path)) == first == Choice("mkl", {"mkl": 90.0, "onednn": 60.0})
    )
    assert len(speeds["shapes"]) == 1 and not by_onednn(model)


@pytest.mark.parametrize("change", ["cpu", "torch", "shape"])
def test_another_machine_or_shape_is_measured_and_leaves_the_first_entry(tmp_path, speeds, monkeypatch, change):
    choose_library(model_of(), "auto", cache_dir=str(tmp_path))
    if change == "cpu":
        monkeypatch.setattr(matmul, "cpu_name", lambda: "another")
    elif change == "torch":
        monkeypatch.setattr(torch, "__version__", "9.9")
    choose_library(model_of(400 if change == "shape" else LARGE), "auto", cache_dir=str(tmp_path))
    assert len(speeds["shapes"]) == 2
    assert len(json.loads((tmp_path / "matmul.json").read_text())) == 2


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"KEY": 3}', '{"KEY": {"library": "onednn"}}'])
def test_a_damaged_file_is_measured_anew_and_replaced(tmp_path, speeds, text):
    file = tmp_path / "matmul.json"
    choose_library(model_of(), "auto", cache_dir=str(tmp_path))
    (key,) = json.loads(file.read_text())
    file.write_text(text.replace("KEY", key))
    assert choose_library(model_of(), "auto", cache_dir=str(tmp_path)).library == "mkl"
    assert len(speeds["shapes"]) == 2 and list(json.loads(file.read_text())) == [key]


def test_a_cache_that_cannot_be_written_is_told(tmp_path, speeds):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cache_dir=.*file cannot be written: .*give another"):
        choose_library(model_of(), "auto", cache_dir=str(tmp_path / "file"))


def test_the_shape_that_multiplies_most_over_all_layers_is_measured(tmp_path, speeds):
    choose_library(model_of(900, 400, 400, 400), "auto", cache_dir=str(tmp_path))
    assert speeds["shapes"] == [(LARGE, 400)]


def test_the_head_is_not_measured(tmp_path, speeds):
    model = model_of(400, 900)
    model.get_output_embeddings = lambda: model[1]
    choose_library(model, "auto", cache_dir=str(tmp_path))
    assert speeds["shapes"] == [(LARGE, 400)]


@pytest.mark.parametrize("reason", ["deterministic", "small", "mkl", "onednn", "no layers"])
def test_nothing_is_measured_or_written_when_there_is_no_question(tmp_path, speeds, reason):
    model = {"small": nn.Linear(300, 400), "no layers": nn.Embedding(400, 400)}.get(reason, model_of())
    wanted = reason if reason in ("mkl", "onednn") else "auto"
    deterministic = reason == "deterministic"
    choice = choose_library(model, wanted, cache_dir=str(tmp_path), deterministic=deterministic)
    assert choice == Choice("onednn" if reason == "onednn" else "mkl", {})
    assert by_onednn(model) == (reason == "onednn")
    assert not speeds["shapes"] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("mkl", "onednn", "library", "text"),
    [
        (True, False, "mkl", "float32 matrices by MKL"),
        (False, True, "onednn", "float32 matrices by oneDNN"),
        (False, False, None, "float32 matrices by what torch was built with"),
    ],
)
def test_a_torch_without_one_library_uses_the_other_and_refuses_the_absent(
    tmp_path, monkeypatch, mkl, onednn, library, text
):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    choice = choose_library(model_of(), "auto", cache_dir=str(tmp_path))
    assert choice.library == library and str(choice) == text
    for name in {"mkl", "onednn"} - {library}:
        with pytest.raises(ValueError, match=f"cpu_matmul={name} is not in this torch, .*; leave it out"):
            choose_library(model_of(), name, cache_dir=str(tmp_path))


def test_measured_speeds_stand_beside_the_choice():
    assert (
        str(Choice("onednn", {"mkl": 30.4, "onednn": 91.6})) == "float32 matrices by oneDNN (92 GFLOP/s a core; MKL 30)"
    )


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_measuring_tells_both_speeds_and_leaves_the_runs_draws_and_the_weights_alone():
    weight = torch.ones(256, 192)
    state = torch.random.get_rng_state()
    with torch.no_grad():
        found = measure(weight, repeats=3)  # the first makes its kernels
    assert found.keys() == {"mkl", "onednn"} and min(found.values()) > 0
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(weight, torch.ones_like(weight)) and not weight.requires_grad
