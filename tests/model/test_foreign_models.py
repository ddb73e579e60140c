"""Models and archives of others: odd tensors and absurd sizes are refused in one line."""

import json
import shutil

import pytest
import torch

from support.policies import load, refusal


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_at_loading(tmp_path, gpt2, value):
    model = load(gpt2).model
    with torch.no_grad():
        model.transformer.wpe.weight[-1, -1] = value
    model.save_pretrained(tmp_path / "spoiled")
    assert "has numbers that are not finite, in transformer.wpe.weight" in refusal(
        gpt2, archive=str(tmp_path / "spoiled")
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {**state, 7: torch.zeros(1)}, "names a weight 7; expected text"),
        (lambda state: {**state, "lm_head.weight": state["lm_head.weight"].to_sparse()}, "sparse or quantized"),
        (lambda state: {**state, "lm_head.weight": state["lm_head.weight"].to("meta")}, "with no values"),
        (lambda state: {**state, "lm_head.weight": state["lm_head.weight"].to(torch.int8)}, "with int8"),
        (lambda state: {**state, "lm_head.weight": state["lm_head.weight"].to(torch.complex64)}, "with complex64"),
        (lambda state: {**state, "more": torch.zeros(1).expand(10**9)}, "1 weights unknown"),
    ],
    ids=["a number for a name", "sparse", "meta", "int8", "complex", "a billion numbers in four bytes"],
)
def test_an_archive_of_odd_tensors_is_refused_in_one_line(tmp_path, gpt2, change, words):
    torch.save(change(load(gpt2).model.state_dict()), tmp_path / "policy.pt")
    message = refusal(gpt2, archive=str(tmp_path / "policy.pt"))
    assert words in message and "\n" not in message


def test_a_configuration_of_a_billion_layers_is_refused_at_once(tmp_path, gpt2):
    shutil.copytree(gpt2, tmp_path / "deep")
    config = json.loads((tmp_path / "deep" / "config.json").read_text())
    (tmp_path / "deep" / "config.json").write_text(json.dumps({**config, "n_layer": 10**9}))
    assert "has 1,000,000,000 layers; expected at most 10,000" in refusal(str(tmp_path / "deep"))


@pytest.mark.parametrize(
    "content",
    ["{", "[1, 2]", "[" * 100_000, '{"max_new_tokens": "many"}', '{"cache_implementation": "none of ours"}'],
    ids=["cut short", "a list", "deep", "text for a number", "an unknown cache"],
)
def test_a_generation_config_that_cannot_be_read_is_named(tmp_path, gpt2, content):
    shutil.copytree(gpt2, tmp_path / "odd")
    (tmp_path / "odd" / "generation_config.json").write_text(content)
    assert "cannot use generation_config.json of" in refusal(str(tmp_path / "odd"))
