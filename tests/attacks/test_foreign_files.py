"""Files that came from somebody else: run folders, caches and data."""

import gzip
import json
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from fed.config import choices
from fed.config.schema import OPEN_GROUPS
from fed.data import unpacking
from fed.data.source import Source
from fed.files import read_array, write_array
from fed.model.arrays import to_record, to_tensors
from fed.tracking import run_folder
from run.resume import KNOWN_CODE
from server.strategies import StreamingFedAvg
from support.separate_runs import call

TINY = ("client_num_in_total=2", "n_train_examples=16", "n_test_examples=4", "num_threads=1")


def changed(run: Path, **settings: object) -> Path:
    """Return a copy of the run's folder whose config.yaml has other settings."""
    copy = run.with_name("foreign")
    shutil.copytree(run, copy)
    config = OmegaConf.load(copy / "config.yaml")
    for key, value in settings.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    (copy / "config.yaml").write_text(OmegaConf.to_yaml(config))
    return copy


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"strategy": {"_target_": "canary_of_a_folder.Strategy"}}, "strategy._target_=canary_of_a_folder.Strategy"),
        ({"loss": {"_target_": "canary_of_a_folder.loss", "beta": 0.1}}, "loss._target_=canary_of_a_folder.loss"),
        ({"strategy__strategy": {"_target_": "os.system"}}, "strategy.strategy._target_=os.system"),
        ({"client_mods": ["canary_of_a_folder.mod"]}, "client_mods=canary_of_a_folder.mod"),
        ({"model__trust_remote_code": True}, "model.trust_remote_code=true"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_folder_of_somebody_else_runs_no_code(command_line, tmp_path, monkeypatch, settings, named):
    run = command_line(*TINY, "comm_round=1").run
    (tmp_path / "canary_of_a_folder.py").write_text(f"open({str(tmp_path / 'sung')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    ended = call(tmp_path, f"resume={changed(run, **settings)}", "comm_round=2")
    assert ended.code == 2 and not (tmp_path / "sung").exists()
    assert f"its settings name code that is not part of this program: {named}" in ended.text
    assert "add resume_trusts=true" in ended.text


@pytest.mark.parametrize("group", OPEN_GROUPS)
def test_every_choice_of_this_program_can_be_resumed(group):
    assert {target.rpartition(".")[0] for target in choices.targets(group)} <= {*KNOWN_CODE}


def begun(command_line, tmp_path):
    """Return a copy of the folder of a run of one round, and what a call that resumes it says."""
    copy = changed(command_line(*TINY, "comm_round=1").run)
    return copy, lambda *more: call(tmp_path, f"resume={copy}", "comm_round=2", *more)


@pytest.mark.parametrize("name", ["metrics.jsonl", "partition.json", "checkpoints/best", "policy"])
def test_a_folder_with_a_link_out_of_it_is_refused(command_line, tmp_path, name):
    copy, resume = begun(command_line, tmp_path)
    victim = tmp_path / "victim"
    victim.write_text("mine\n" * 1000)
    path = copy / name
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(victim)
    ended = resume()
    assert ended.code == 2 and f"{path} is a link out of the folder, which no run has made; remove it" in ended.text
    assert victim.read_text() == "mine\n" * 1000


ALIASES = "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 9))


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("environment.json", {"threads": 10**6}, "its threads is 1000000"),
        ("environment.json", {"threads": True}, "its threads is True"),
        ("environment.json", {"given": [[1]]}, "its given holds other things than keys"),
        ("environment.json", "[" * 100_000, "cannot be read as the environment of a run"),
        ("config.yaml", {"batch_size": 0}, "its settings cannot be used: batch_size=0 is out of range"),
        ("config.yaml", {"lr": -1.0}, "its settings cannot be used: lr=-1.0 is out of range"),
        ("config.yaml", {"mode": "odd"}, "its settings cannot be used: mode=odd is unknown"),
        ("config.yaml", {"strategy": {}}, "its settings cannot be used: strategy._target_=None is not a dotted path"),
        ("config.yaml", f"a0: &a0 [x]\n{ALIASES}", "it is larger than a run writes it, or has aliases"),
        ("config.yaml", "#" * 10**7, "it is larger than a run writes it, or has aliases"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_folder_of_nonsense_is_refused_in_one_line(command_line, tmp_path, file, change, words):
    copy, resume = begun(command_line, tmp_path)
    if isinstance(change, str):
        (copy / file).write_text(change)
    else:  # JSON is YAML
        found = OmegaConf.to_container(OmegaConf.load(copy / file))
        (copy / file).write_text(json.dumps({**found, **change}))
    ended = resume()
    assert ended.code == 2 and words in ended.text and "Traceback" not in ended.text, ended.text


def test_a_folder_of_others_names_no_place_to_write_to(command_line, tmp_path):
    copy, resume = begun(command_line, tmp_path)
    config = OmegaConf.load(copy / "config.yaml")
    config.cache_dir = str(tmp_path / "home" / "of" / "victim")
    (copy / "config.yaml").write_text(OmegaConf.to_yaml(config))
    ended = resume()
    assert ended.code == 2 and "is not there; give a cache_dir beside resume" in ended.text
    assert not (tmp_path / "home").exists()
    assert resume(f"cache_dir={tmp_path / 'mine'}").code == 0 and (tmp_path / "mine" / "reference").is_dir()


def test_a_folder_of_others_reads_nothing_of_the_environment(command_line, tmp_path, monkeypatch):
    monkeypatch.setenv("CANARY_TOKEN", "the-secret-of-the-owner")
    run = command_line(*TINY, "comm_round=1").run
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("data_dir: null", "data_dir: ${oc.env:CANARY_TOKEN}"))
    assert "oc.env" in config.read_text()
    ended = call(tmp_path, f"resume={run}", "comm_round=2")
    assert "the-secret-of-the-owner" not in ended.text + config.read_text()


def test_a_refused_resume_leaves_a_live_run_as_it_is(command_line, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "PATIENCE", 0.3)
    run = command_line(*TINY, "comm_round=1").run
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.rglob("*") if path.is_file()}
    with run_folder.locked(run):
        ended = call(tmp_path, f"resume={run}", "comm_round=2")
    assert ended.code == 2 and "is in use by another process" in ended.text
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.rglob("*") if path.is_file()}


def test_the_latest_run_is_the_one_that_was_started_last(tmp_path):
    for name, started in (
        ("zzz", "2026-01-01T00:00:00"),
        ("a-10", "2026-03-01T00:00:00"),
        ("a-2", "2026-02-01T00:00:00"),
    ):
        folder = tmp_path / "exp" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("")
        (folder / "environment.json").write_text(json.dumps({"started": started}))
    assert run_folder.newest_run(str(tmp_path), "exp").name == "a-10"


class Spoils(StreamingFedAvg):
    """A mean whose weights of this name are multiplied by a number in the third round, in float64."""

    def __init__(self, factor: float, name: str, **fedavg: object) -> None:
        super().__init__(**fedavg)
        self.factor, self.name = factor, name

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        if server_round == 3:
            changed = to_tensors(arrays)
            arrays = to_record({**changed, self.name: self.factor * changed[self.name].double()})
        return arrays, metrics


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        ("1e400", "of the global weights is not finite; the round is not kept"),
        ("1e200", "of the global weights is not finite; the round is not kept"),  # finite in float64 only
        ("3e38", "round 3: the policy's log-probs are not finite on 4 of 4 test pairs"),
    ],
)
def test_a_model_that_is_no_longer_finite_ends_the_run_and_names_the_last_that_was(command_line, factor, words):
    spoils = (
        "strategy._target_=test_foreign_files.Spoils",
        f"+strategy.factor={factor}",
        "+strategy.name=model.norm.weight",
    )
    result = command_line(*TINY, "strategy=fedavg", "server_fraction=0", "accuracy_on=test", *spoils, "comm_round=4")
    assert result.code == 1 and words in result.err, result.err
    named = result.folder / result.err.split("the last finite weights are those of ")[1].split(";")[0]
    assert named.name == "round-2" and named.is_dir() and not (named.parent / "round-3").exists()
    (run,) = result.runs
    assert '"round": 3, "who": "server", "split": "test"' not in (run / "metrics.jsonl").read_text()


@pytest.mark.parametrize("kind", ["damaged", "writable by others", "of another owner", "whole"])
def test_an_entry_of_a_cache_is_used_if_it_is_whole_and_ones_own(tmp_path, monkeypatch, kind):
    entry = tmp_path / "cache" / "entry.npy"
    write_array(entry, np.arange(5.0))
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600 and stat.S_IMODE(entry.parent.stat().st_mode) == 0o700
    if kind == "damaged":  # a value that is as good as another
        content = bytearray(entry.read_bytes())
        content[-40] ^= 1
        entry.write_bytes(content)
    elif kind == "writable by others":
        entry.chmod(0o666)
    elif kind == "of another owner":
        monkeypatch.setattr("os.geteuid", lambda: entry.stat().st_uid + 1)
    found = read_array(entry)
    assert (found is None) == (kind != "whole")


def test_a_damaged_reference_is_computed_again(command_line, tmp_path):
    """Nothing but the checksum tells that a reference of training pairs has changed, for it is in no evaluation."""
    shared = f"cache_dir={tmp_path / 'cache'}"
    first = command_line(*TINY, "comm_round=1", shared)
    entries = sorted((tmp_path / "cache").rglob("reference-*.npy"))
    assert entries
    for entry in entries:
        content = bytearray(entry.read_bytes())
        content[-34] ^= 64  # a high bit of the last number, before the checksum
        entry.write_bytes(content)
    assert command_line(*TINY, "comm_round=1", shared).lines() == first.lines()


def test_a_file_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "LARGE", 2**16)
    file = tmp_path / "bomb-train.jsonl.gz"
    with gzip.open(file, "wb") as packed:
        packed.write(b"\n" * 2**22)
    source = Source("files", file, seed=0, test_share=0.1)
    with pytest.raises(ValueError, match="unpacks to more than 200 times its size"):
        list(source.records(None))
