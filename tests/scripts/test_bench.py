"""`make bench`: its steps compute the same, its arithmetic holds by hand, and all of it runs."""

import contextlib
import copy
import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from fed.data.examples import Example
from fed.model.demo import demo_tokenizer
from fed.model.policy import Policy, pair_logps
from losses.logps import Logps
from losses.preference import dpo
from scripts import bench
from scripts.benchmark import baselines, measure, step_bench, variants
from scripts.benchmark.baselines import Models, Trl
from scripts.benchmark.federation_bench import Federation, table
from scripts.benchmark.step_bench import Bench, Found
from scripts.benchmark.workload import SHAPES, random_model, train_tokenizer
from support.pairs import examples

ROOT = Path(bench.__file__).parents[1]
needs_trl = pytest.mark.skipif(baselines.trl_version() is None, reason="TRL is not installed")


def models(policy, lr: float = 0.0) -> Models:
    """Return the policy, and two other models of its shape as reference and server."""
    others = [copy.deepcopy(policy.model) for _ in range(2)]
    torch.manual_seed(1)
    for other in others:
        for parameter in other.parameters():
            nn.init.normal_(parameter, std=0.1)
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=lr)
    return Models(policy.model, *others, optimizer)


def with_reference(policy, shared: Models, pairs: list[Example]) -> list[Example]:
    column = pair_logps(dataclasses.replace(policy, model=shared.reference), pairs, batch_size=3)
    return [dataclasses.replace(pair, reference=logps) for pair, logps in zip(pairs, column, strict=True)]


def our_loss(policy, pairs: list[Example], beta: float) -> float:
    """Return the mean DPO loss from the project's own log-probs."""
    found = pair_logps(policy, pairs, batch_size=3)
    logps = [Logps(*torch.tensor(column).T) for column in (found, [pair.reference for pair in pairs])]
    return float(dpo(*logps, beta=beta).mean())


@pytest.mark.parametrize("step", [baselines.plain_step, baselines.fedpo_step])
def test_the_other_codes_steps_find_our_loss_on_ragged_pairs(policy, step):
    shared = models(policy)
    pairs = with_reference(policy, shared, examples(7))
    ours = our_loss(policy, pairs, shared.beta)
    assert abs(ours - math.log(2)) > 1e-3  # or equality would say little
    assert step(shared, pairs) == pytest.approx(ours, abs=1e-5)


def test_the_plain_step_takes_the_gradient_step_of_ours(policy):
    theirs, ours = copy.deepcopy(policy.model), policy.model
    shared = models(dataclasses.replace(policy, model=theirs), lr=0.1)
    pairs = with_reference(policy, shared, examples(5))
    baselines.plain_step(shared, pairs)
    own = dataclasses.replace(shared, policy=ours, optimizer=torch.optim.SGD(ours.parameters(), lr=0.1))
    setting = variants.Setting(own, policy.tokenizer, 5, "", None)
    with variants.project_step(setting, variants.ALL, None, None) as step:
        step(pairs)
    for one, other in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_published_fedpo_gathers_gradients_in_the_servers_copy_and_never_clears_them(policy):
    shared = models(policy)
    pairs = examples(3)
    baselines.fedpo_step(shared, pairs)
    once = [parameter.grad.clone() for parameter in shared.server.parameters()]
    baselines.fedpo_step(shared, pairs)
    for parameter, gradient in zip(shared.server.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)
    assert all(parameter.grad is None for parameter in shared.policy.parameters())


def test_the_servers_term_is_zero_for_the_policys_own_weights_and_else_a_mean_of_squares(policy):
    shared = models(policy)
    batch = baselines.pad(examples(2))
    own = dataclasses.replace(shared, server=policy.model)
    assert baselines.server_term(own, batch).item() == 0.0
    apart = baselines.full_logps(shared.policy, batch) - baselines.full_logps(shared.server, batch)
    expected = (apart**2).sum().item() / 2  # two pairs; chosen and rejected are added
    assert baselines.server_term(shared, batch).item() == pytest.approx(expected)


def test_padding_goes_to_the_longest_sequence_and_labels_are_responses_only():
    batch = baselines.pad([Example((1, 2), (3,), (4, 5)), Example((6,), (7, 8), (9,))])
    assert batch.input_ids.tolist() == [[1, 2, 3, 0], [6, 7, 8, 0], [1, 2, 4, 5], [6, 9, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]]
    ignored = baselines.IGNORED
    assert batch.labels[3].tolist() == [ignored, 9, ignored, ignored]


@needs_trl
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precomputed", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_trl_in_float32_finds_our_loss_and_leaves_the_model_as_it_was(tmp_path, precomputed, checkpointed):
    tokenizer = demo_tokenizer()
    models = [random_model(SHAPES["tiny"], tokenizer, name) for name in "abc"]
    shared = Models(*models, torch.optim.SGD(models[0].parameters(), lr=0.0))
    policy = Policy(models[0], tokenizer, torch.device("cpu"))
    pairs = with_reference(policy, shared, examples(3, vocabulary=200))
    state = [(model.__dict__.copy(), model.config.__dict__.copy()) for model in models]
    how = {"bf16": False, "gradient_checkpointing": checkpointed, "precompute_ref_log_probs": precomputed}
    trl = Trl(shared, tokenizer, str(tmp_path), 3, **how)
    with trl.prepared() as step:
        assert policy.model.is_activation_checkpointing == checkpointed
        assert step(pairs) == pytest.approx(our_loss(policy, pairs, shared.beta), abs=1e-5)
    assert [(model.__dict__, model.config.__dict__) for model in models] == state
    assert not any(model.is_activation_checkpointing for model in models)
    assert not any(module.training for model in models for module in model.modules())


def test_operations_are_six_for_each_weight_and_token_by_hand():
    """Body 10 weights, head 7 x 3; one pair of 4 + 2 + 3 tokens: 6 x 10 x 9 + 6 x 21 x 5 = 540 + 630."""
    pair = Example((1, 2, 3, 4), (5, 6), (7, 8, 9))
    assert measure.work([pair], measure.Size(10, 7, 3)) == measure.Work(1, 9, 5, 1170.0)


def test_the_body_is_everything_but_embeddings_and_head(policy):
    """Two layers: q and o 16x16, k and v 16x8, three of 16x24, two norms; a norm. The tied 31x16 do not count."""
    layer = 256 + 128 + 128 + 256 + 3 * 384 + 2 * 16
    assert measure.size_of(policy.model) == measure.Size(2 * layer + 16, 31, 16)


def measured(seconds: dict[str, dict[int, float]]) -> Bench:
    known = {variant.name: variant for variant in variants.VARIANTS}
    found = {name: Found(known[name], prepared=None, seconds=times) for name, times in seconds.items()}
    done = [measure.Work(4, 100, 60, 1e9), measure.Work(4, 300, 80, 3e9)]
    return Bench(found, done, {"float32": 10e9, "bfloat16": 5e9}, given=None, parameters=0, choice=None)


def test_rates_ratios_and_the_share_of_the_peak_by_hand():
    """Ours: 4e9 operations in 2 s of 10e9 a second: 20 %. Plain by ours: 3 / 0.5 and 6 / 1.5, median 5."""
    both = measured({"plain": {0: 3.0, 1: 6.0}, "ours_float32": {0: 0.5, 1: 1.5}, "ours_bfloat16": {0: 1.0}})
    assert both.ratio("plain", "ours_float32") == 5.0
    assert both.rate("ours_float32", lambda done: done.pairs) == 4.0
    assert both.rate("ours_float32", lambda done: done.tokens) == 200.0
    assert both.peak_share("ours_float32") == pytest.approx(0.2)
    assert both.peak_share("ours_bfloat16") == pytest.approx(0.2)  # 1e9 in the one second of its only batch, of 5e9


@pytest.mark.parametrize(("seconds", "precision"), [(0.4, "bfloat16"), (0.6, "float32")])
def test_the_faster_precision_is_found_on_the_batches_that_both_ran(seconds, precision):
    both = measured({"ours_float32": {0: 0.1, 1: 0.5}, "ours_bfloat16": {1: seconds}})
    assert both.fastest == precision


def test_a_batch_for_which_there_is_no_memory_is_left_out(monkeypatch):
    """The first batch has 2 pairs of 7 tokens and took 14 bytes; the others have 2 of 9, then of 6."""
    batches = [[Example((1,) * (n - 2), (2, 3), (4,))] * 2 for n in (7, 9, 6)]
    plain, ours = ("plain", "ours_float32")
    found = measured({plain: {}, ours: {}}).found
    for one in found.values():
        one.prepared = lambda: contextlib.nullcontext(lambda pairs: 0.5)
        one.memory = measure.Memory(before=0, peak=14 if one is found[plain] else 1)
    monkeypatch.setattr(step_bench, "available_memory", lambda: 18)
    monkeypatch.setattr(step_bench, "keep_freed_memory", lambda keep: True)  # or it would hold for later tests too
    step_bench.take_turns(list(found.values()), batches, time.process_time)
    assert [sorted(found[name].seconds) for name in (plain, ours)] == [[0, 2], [0, 1, 2]]
    assert measure.available_memory() > 2**20


def test_memory_counts_what_a_variant_holds_and_not_what_others_do():
    one = Found(variants.VARIANTS[0], prepared=None, memory=measure.Memory(before=50, peak=80), held=20, foreign=7)
    assert (one.own_memory, one.process_memory) == (20 + 30, 80 - 7)


@pytest.mark.skipif(not measure.exact_memory(), reason="this kernel does not forget the highest memory")
def test_memory_of_a_step_is_what_it_needed_at_its_worst():
    def step() -> None:
        torch.ones(8 * 2**20)  # 32 MiB, freed at once

    for _ in range(2):
        growth = measure.memory_of(step).growth / 2**20
        assert 30 < growth < 40  # the kernel counts some pages late


def test_a_tensor_seen_twice_is_counted_once():
    tensor = torch.zeros(10)
    assert measure.bytes_of([tensor, None, tensor, torch.zeros(1)]) == 44


def test_the_trained_tokenizer_stays_within_the_vocabulary_and_keeps_every_text():
    rows = [
        dataclasses.make_dataclass("Row", ["prompt", "chosen", "rejected"])("Hé ho", " hello hello", "\n\nhello")
    ] * 3
    tokenizer = train_tokenizer(rows, 260)
    assert len(tokenizer) <= 260
    ids = tokenizer(["Hé hello\n"])["input_ids"][0]
    assert tokenizer.decode(ids) == "Hé hello\n"
    assert len(ids) < len("Hé hello\n".encode())


@pytest.mark.parametrize(("shape", "millions"), [("gpt2", 124.4), ("smollm2", 134.5), ("llama1b", 1235.8)])
def test_a_shape_has_the_weights_that_its_name_says(shape, millions):
    model = random_model(SHAPES[shape], demo_tokenizer(), "a", "meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(millions * 1e6, rel=1e-3)


def test_models_of_one_name_are_alike_and_of_two_are_not():
    tokenizer = demo_tokenizer()
    one, same, other = (random_model(SHAPES["tiny"], tokenizer, name) for name in ("a", "a", "b"))
    assert torch.equal(one.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_the_federations_table_compares_most_clients_with_fewest():
    rows = [Federation(2, 1.0, 50.0, 0.1, 0.05, 0.5), Federation(100, 2.0, 25.0, 0.4, 0.1, 0.6)]
    assert table(rows, 2).splitlines()[-1] == "peak memory, 100 clients over 2: 1.200"


def command_line(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "scripts/bench.py", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_the_tiny_bench_runs_and_writes_what_it_found(tmp_path):
    names = ["plain", "fedpo_original"]
    if baselines.trl_version() is not None:
        names += ["trl_default", "trl_best", "trl_float32"]
    target = tmp_path / "bench.json"
    given = ["shape=tiny", "batch=2", "repeats=1", "federation=false", f"data_dir={tmp_path}/absent"]
    done = command_line(*given, f"variants={','.join(names)}", f"json={target}")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(target.read_text())
    assert found["ratios"].keys() == set(names)
    assert {"fastest", "peak_share", "peak_memory_gb", "machine", "versions", "options", "data"} <= found.keys()
    assert ("memory_ratio" in found) == ("trl_default" in names)
    assert found["rows"].keys() == {*names, "ours_float32", "ours_bfloat16"}
    assert found["options"]["batch"] == 2
    assert "absent" in found["data"]["source"] and "demo" in found["data"]["source"]
    assert all(name in done.stdout for name in found["rows"])


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("repeat=3", "unknown option repeat=3; expected shape=, batch="),
        ("repeats", "unknown option repeats"),
        ("batch=none", "batch=none is of the wrong type; expected a whole number"),
        ("batch=0", "batch=0 is too small; expected a whole number of at least 1"),
        ("data_dir=null", "data_dir=null is of the wrong type; expected text"),
        ("json=${nothing}", "json=${nothing} is of the wrong type"),
        ("variants=[a", "variants=[a is of the wrong type; expected a list, [a,b]"),
        ("federation=never", "federation=never is of the wrong type; expected true or false"),
        ("shape=huge", "shape=huge; expected one of tiny, gpt2, smollm2"),
        ("variants=plane", "there is no plane; expected all or some of plain,"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(argument, told, monkeypatch):
    for name in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "1")  # put back afterwards
    with pytest.raises(SystemExit) as stopped:
        bench.main(["shape=tiny", "federation=false", argument])
    assert str(stopped.value).startswith("error: ") and told in str(stopped.value)
    assert "\n" not in str(stopped.value)
