"""The reference column: computed once, cached, and the same for the same weights and batches."""

import copy
import functools
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fed.errors import CannotWrite
from fed.model import policy as policy_module
from fed.model.evaluation import evaluate
from fed.model.policy import Policy, response_logps, save_policy
from fed.model.references import weights_hash, with_reference
from losses.preference import dpo
from support.policies import DTYPES, PAIRS, load


def fill(policy: Policy, cache: Path | None, pairs=PAIRS, batch_size=4, **more):
    return with_reference(policy, pairs, batch_size=batch_size, cache=cache, weights_hash=weights_hash(policy), **more)


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """Count the pairs of each batch that a model scores."""
    counted: list[int] = []

    def counting(policy, batch):
        counted.append(len(batch.sizes) // 2)
        return response_logps(policy, batch)

    monkeypatch.setattr(policy_module, "response_logps", counting)
    return counted


def test_the_reference_column_is_read_back_without_running_the_model(tmp_path, passes):
    first = fill(load(), tmp_path / "new" / "folder")
    assert sum(passes) == len(PAIRS)
    passes.clear()
    assert fill(load(), tmp_path / "new" / "folder") == first
    assert passes == []
    assert [entry.suffix for entry in (tmp_path / "new" / "folder").iterdir()] == [".npy"]


def test_filling_the_reference_column_tells_of_every_pair_once(tmp_path):
    computed, cached = [], []
    fill(load(), tmp_path, on_pairs=computed.append)
    fill(load(), tmp_path, on_pairs=cached.append)
    assert len(computed) > 1 and sum(computed) == len(PAIRS)
    assert cached == [len(PAIRS)]


def test_the_reference_column_leaves_the_rest_of_an_example_alone(tmp_path):
    assert [replace(pair, reference=None) for pair in fill(load(), tmp_path)] == PAIRS
    assert fill(load(), None) == fill(load(), tmp_path)
    assert fill(load(), tmp_path, pairs=[]) == []


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda path: path.write_bytes(b""),
    "header only": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "text": lambda path: path.write_text("no numbers"),
    "a zip file": lambda path: path.write_bytes(b"PK\x03\x04 and so on"),
    "a pickle": lambda path: path.write_bytes(pickle.dumps([1, 2])),
    "of another length": lambda path: np.save(path, np.zeros((3, 2))),
    "of another dtype": lambda path: np.save(path, np.zeros((len(PAIRS), 2), dtype=np.float32)),
    "not finite": lambda path: np.save(path, np.full((len(PAIRS), 2), np.nan)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_entry_is_computed_anew_and_repaired(tmp_path, passes, damage):
    first = fill(load(), tmp_path)
    (entry,) = tmp_path.iterdir()
    healthy = entry.read_bytes()
    DAMAGES[damage](entry)
    passes.clear()
    assert fill(load(), tmp_path) == first
    assert sum(passes) == len(PAIRS)
    assert list(tmp_path.iterdir()) == [entry] and entry.read_bytes() == healthy


def other_weights(policy: Policy) -> None:
    with torch.no_grad():
        next(policy.model.parameters())[0, 0] += 1e-3


def other_rotary_base(policy: Policy) -> None:
    policy.model.config.rope_parameters["rope_theta"] = 5e5


@pytest.mark.parametrize("change", [other_weights, other_rotary_base])
def test_another_model_has_another_entry(tmp_path, passes, change):
    fill(load(), tmp_path)
    passes.clear()
    policy = load()
    change(policy)
    fill(policy, tmp_path)
    assert sum(passes) == len(PAIRS)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 5},
        {"pairs": PAIRS[::-1]},
        {"pairs": PAIRS[:-1]},
        {"pairs": [*PAIRS[:-1], replace(PAIRS[-1], chosen=(*PAIRS[-1].chosen, 7))]},
        # The same tokens in a row, cut elsewhere.
        {"pairs": [*PAIRS[:-1], replace(PAIRS[-1], prompt=PAIRS[-1].prompt[:1], chosen=(1, *PAIRS[-1].chosen))]},
    ],
    ids=["batch size", "order", "fewer", "a token more", "another cut"],
)
def test_other_tokens_or_batches_have_another_entry(tmp_path, passes, changes):
    fill(load(), tmp_path)
    passes.clear()
    fill(load(), tmp_path, **changes)
    assert passes and len(list(tmp_path.iterdir())) == 2


def test_another_precision_has_another_entry(tmp_path, passes):
    fill(load(), tmp_path)
    passes.clear()
    mixed = load(fsdp_policy_mp="bfloat16")
    assert weights_hash(mixed) == weights_hash(load())
    fill(mixed, tmp_path)
    assert sum(passes) == len(PAIRS)


def test_the_same_model_from_another_folder_shares_its_entry(tmp_path, passes, llama):
    fill(load(llama), tmp_path / "cache")
    save_policy(load(llama), tmp_path / "copy")
    passes.clear()
    fill(load(tmp_path / "copy"), tmp_path / "cache")
    assert passes == []


def test_a_cache_that_cannot_be_written_is_told_with_the_way_out(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CannotWrite, match=r"cannot write .*file/reference/.*: (Not a directory|File exists)"):
        fill(load(), tmp_path / "file" / "reference")


@pytest.mark.parametrize("policy_dtype", DTYPES)
@pytest.mark.parametrize("fsdp_policy_mp", [None, "bfloat16"])
def test_untrained_weights_tie_exactly_in_every_precision(tmp_path, policy_dtype, fsdp_policy_mp):
    policy = load(policy_dtype=policy_dtype, fsdp_policy_mp=fsdp_policy_mp)
    assert policy.model.dtype == getattr(torch, policy_dtype)
    for _ in range(2):  # computed, then from the cache
        pairs = fill(policy, tmp_path)
        found = evaluate(policy, pairs, loss=functools.partial(dpo, beta=0.1), beta=0.1, batch_size=4)
        assert (found["accuracy"], found["ties"], found["margin"], found["log_ratio"]) == (0.0, 1.0, 0.0, 0.0)


def test_the_weights_hash_sees_values_names_shapes_and_dtypes(policy):
    before = weights_hash(policy)
    assert weights_hash(replace(policy, model=copy.deepcopy(policy.model))) == before
    for change in (
        lambda model: model.to(torch.bfloat16),
        lambda model: model.register_buffer("scale", torch.ones(())),
        lambda model: setattr(model.model.norm, "weight", torch.nn.Parameter(torch.ones(4, 4))),
    ):
        changed = copy.deepcopy(policy.model)
        change(changed)
        assert weights_hash(replace(policy, model=changed)) != before
