"""Tests of Flower's simulation engine: by main.py and by `flwr run` it gives the results of engine=local."""

import json
import os
import subprocess
from types import SimpleNamespace

import psutil
import pytest

from fed.config.schema import Config
from run import ray_engine
from support.configured import through_flower
from support.deployment import BIN, ROOT, assert_same, free_port
from support.ray_runs import SETTINGS, TYPED, started


def test_clients_in_two_workers_give_the_results_of_one_process(tmp_path, command_line):
    program = started(tmp_path, "engine=ray", "clients_in_parallel=2", *TYPED)
    out, err = program.communicate(timeout=300)
    assert program.returncode == 0, err
    assert "DEPRECATED" not in err and "Warning" not in err, err
    (run,) = tmp_path.glob("data/fedpo/*")
    assert_same(run, command_line(*TYPED).run)
    told = json.loads((run / "environment.json").read_text())
    assert "engine=ray" in out and "engine=ray" in told["argv"]


def test_flwr_run_gives_the_results_of_one_process(tmp_path, command_line):
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": (port := str(free_port())),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "OMP_NUM_THREADS": "1",
    }
    every = {**SETTINGS, "output_dir": str(tmp_path / "runs"), "cache_dir": str(tmp_path / "cache")}
    (typed,) = (f'{key}="{value}"' for key, value in through_flower(every).items())
    command = ["flwr", "run", str(ROOT), "local", "--stream", "--federation-config", "num-supernodes=3", "-c", typed]
    before = (ROOT / "pyproject.toml").read_bytes()
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    finally:
        for process in psutil.process_iter(["cmdline"]):  # the SuperLink that `flwr` starts stays
            words = process.info["cmdline"] or []
            if port in words and any("flower-superlink" in word for word in words):
                for each in (process, *process.children(recursive=True)):
                    each.kill()
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").glob("fedpo/*")
    assert_same(run, command_line(*TYPED).run)
    assert (ROOT / "pyproject.toml").read_bytes() == before


@pytest.mark.parametrize(
    ("parallel", "threads", "client", "here"), [(1, 2, 2.0, 2.0), (3, 1, 1.0, 3.0), (2, None, 1.0, 2.0)]
)
def test_as_many_clients_run_at_once_as_are_asked_for(monkeypatch, parallel, threads, client, here):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = Config(clients_in_parallel=parallel, num_threads=threads, device="cpu")
    found = ray_engine.resources(config)
    assert found["client_resources"]["num_cpus"] == client and found["init_args"]["num_cpus"] == here
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert "num_cpus" not in ray_engine.resources(config)["init_args"]


def test_without_ray_there_is_one_line(command_line, monkeypatch):
    monkeypatch.setattr(ray_engine.importlib.util, "find_spec", lambda name: None)
    told = command_line("engine=ray")
    assert told.code == 2 and told.err.startswith("error: engine=ray needs Ray: pip install"), told.err
    assert not list(told.folder.iterdir())


@pytest.mark.parametrize(("typed", "here", "threads"), [(None, 1, 1), (None, 8, 2), (3, 1, 3)])
def test_workers_have_no_more_threads_than_were_best_here_or_than_there_are_cores_for(
    monkeypatch, typed, here, threads
):
    """Two workers share four cores; `here` is what a step of the model was measured to be fastest with."""
    monkeypatch.setattr(ray_engine.torch, "get_num_threads", lambda: here)
    monkeypatch.setattr(ray_engine, "allowed_cpus", lambda: 4)
    plan = SimpleNamespace(
        config=Config(clients_in_parallel=2, num_threads=typed), machine=SimpleNamespace(library=None)
    )
    assert ray_engine._settings_of_workers(plan).num_threads == threads
