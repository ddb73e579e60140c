"""The fixtures `files` and `federate`: runs behind Flower's grid, with two nodes that have data of their own."""

import json
from pathlib import Path

import pytest


@pytest.fixture
def files(tmp_path):
    """Write the own pairs of two clients."""
    from load_data import load

    rows = load(["demo"], "train", data_dir=None, seed=0).rows
    paths = [tmp_path / name for name in ("one.jsonl", "two.jsonl")]
    for number, path in enumerate(paths):
        own = rows[number * 20 : (number + 1) * 20]
        records = ({"prompt": r.prompt, "chosen": r.chosen, "rejected": r.rejected} for r in own)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return paths


@pytest.fixture
def federate(tmp_path, monkeypatch):
    """Run a federation over nodes with these configurations, and return the grid and the run's folder.

    `hostile_server`, `hostile_node` and `hostile_bytes` change messages and replies, as those of `FlowerGrid` do.
    """
    import torch

    from fed.config.flower import run_settings
    from run import client_app, server_app
    from support.configured import through_flower
    from support.flower_grid import FlowerGrid
    from support.flower_runs import OWN

    monkeypatch.setattr("run.experiment.pictures", lambda run_dir: run_dir / "curves.png")
    monkeypatch.chdir(tmp_path)

    def run(nodes, hostile_server=None, hostile_node=None, hostile_bytes=None, **config):
        given = {**OWN, "output_dir": str(tmp_path / "runs"), "cache_dir": str(tmp_path / "server"), **config}
        nodes = [{"cache_dir": str(tmp_path / f"cache-{k}"), **node} for k, node in enumerate(nodes)]
        grid = FlowerGrid([(client_app.flower_app(), node) for node in nodes], given)
        grid.hostile_server = hostile_server or grid.hostile_server
        grid.hostile_node = hostile_node or grid.hostile_node
        grid.hostile_bytes = hostile_bytes
        threads = torch.get_num_threads()
        try:
            server_app.run(run_settings(through_flower(given)), grid)
        finally:
            torch.set_num_threads(threads)
        return grid, max(Path(tmp_path / "runs").glob("*/*"), key=lambda run: run.stat().st_mtime_ns)

    return run
