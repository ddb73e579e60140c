import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fed.config import composing
from fed.tracking import event_files
from fed.tracking.tensorboard import METHOD
from run.experiment import hyperparameters
from support.trackers import lines_of, make, scalars


def open_files(folder: Path) -> int:
    """Count the files below the folder that this process has open."""
    links = [descriptor.readlink() for descriptor in Path("/proc/self/fd").iterdir() if descriptor.is_symlink()]
    return sum(link.is_relative_to(folder) for link in links)


def test_the_server_folder_holds_the_tags_by_round(tmp_path: Path) -> None:
    with make(tmp_path, tensorboard=True) as tracker:
        for server_round, accuracy in ((0, 0.0), (1, 0.5), (2, 0.75)):
            tracker.server(server_round, "validation", {"accuracy": accuracy, "loss": 0.25})
            tracker.server(server_round, "test", {"accuracy": 1.0})
    found = scalars(tmp_path / "tensorboard" / "Server")
    by_round = [(0, 0.0), (1, 0.5), (2, 0.75)]
    assert found == {
        "avg_acc/server": by_round,
        "validation/accuracy": by_round,
        "validation/loss": [(0, 0.25), (1, 0.25), (2, 0.25)],
        "test/accuracy": [(0, 1.0), (1, 1.0), (2, 1.0)],
    }


def test_an_accuracy_of_pairs_that_all_tie_is_not_drawn(tmp_path: Path) -> None:
    """Before training that 0 measures nothing; `ties` says why it is missing."""
    tied = {"accuracy": 0.0, "accuracy_low": 0.0, "accuracy_high": 0.3, "ties": 1.0, "loss": 0.5}
    with make(tmp_path, tensorboard=True) as tracker:
        tracker.server(0, "validation", tied)
        tracker.client(0, 1, "validation", tied)
        tracker.clients_done(1)
        for server_round, metrics in ((0, tied), (1, tied | {"accuracy": 0.5, "ties": 0.25})):
            for k in (0, 1):
                tracker.client(k, server_round, "test", metrics)
        tracker.everyone()
    found = scalars(tmp_path / "tensorboard" / "Server")
    assert found["validation/loss"] == [(0, 0.5)] and found["test/ties"] == [(0, 1.0), (1, 0.25)]
    accuracies = {tag: values for tag, values in found.items() if "acc" in tag}
    assert accuracies == {"test/accuracy": [(1, 0.5)], "test/accuracy_sd": [(1, 0.0)]}


def test_the_clients_mean_is_over_this_rounds_validation_accuracies_only(tmp_path: Path) -> None:
    """Round 1: (0.5 + 1) / 2 = 0.75. Round 2: client 7 alone, 0.25."""
    with make(tmp_path, tensorboard=True) as tracker:
        tracker.client(0, 1, "validation", {"accuracy": 0.5})
        tracker.client(0, 1, "train", {"accuracy": 0.125})
        tracker.client(7, 1, "validation", {"accuracy": 1.0})
        tracker.clients_done(1)
        tracker.client(7, 2, "validation", {"accuracy": 0.25})
        tracker.clients_done(2)
        tracker.clients_done(3)
    assert scalars(tmp_path / "tensorboard" / "Server") == {
        "acc/client-0": [(1, 0.5)],
        "acc/client-7": [(1, 1.0), (2, 0.25)],
        "avg_acc/client": [(1, 0.75), (2, 0.25)],
        "clients/failed": [(1, 0.0), (2, 0.0), (3, 0.0)],
    }


def test_updates_go_to_the_clients_own_folder_by_update_count(tmp_path: Path) -> None:
    with make(tmp_path, tensorboard=True) as tracker:
        tracker.update(4, "train", {"loss/train": 0.5, "counters/examples": np.int64(8)}, step=1)
        tracker.update(4, "train", {"loss/train": 0.25, "counters/examples": 16}, step=2)
        tracker.update(5, "eval", {"loss/eval": 1.0}, step=1)
    folder = tmp_path / "tensorboard"
    assert scalars(folder / "Client-4") == {
        "loss/train": [(1, 0.5), (2, 0.25)],
        "counters/examples": [(1, 8.0), (2, 16.0)],
    }
    assert scalars(folder / "Client-5") == {"loss/eval": [(1, 1.0)]}


def test_evicted_event_files_lose_nothing_when_their_client_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_files, "MAX_OPEN_EVENT_FILES", 2)
    with make(tmp_path, tensorboard=True) as tracker:
        for step in (1, 2, 3):
            for client_id in range(4):
                tracker.update(client_id, "train", {"loss/train": client_id + step / 4}, step=step)
                assert open_files(tmp_path / "tensorboard") <= 2
    for client_id in range(4):
        folder = tmp_path / "tensorboard" / f"Client-{client_id}"
        assert scalars(folder) == {"loss/train": [(step, client_id + step / 4) for step in (1, 2, 3)]}
        assert len(list(folder.iterdir())) == 1


def test_two_trackers_within_one_second_keep_both_their_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.5)
    for step in (1, 2):
        with make(tmp_path, tensorboard=True) as tracker:
            tracker.update(0, "train", {"grad_norm": 0.5}, step=step)
    assert scalars(tmp_path / "tensorboard" / "Client-0") == {"grad_norm": [(1, 0.5), (2, 0.5)]}


def test_client_curves_are_on_disk_after_the_flush_interval(tmp_path: Path, clock: list[float]) -> None:
    with make(tmp_path, tensorboard=True) as tracker:
        tracker.update(0, "train", {"grad_norm": 1.0}, step=1)  # the first call flushes
        tracker.update(0, "train", {"grad_norm": 2.0}, step=2)
        folder = tmp_path / "tensorboard" / "Client-0"
        assert [step for step, _ in scalars(folder)["grad_norm"]] == [1]
        clock[0] += event_files.FLUSH_SECONDS
        tracker.update(0, "train", {"grad_norm": 3.0}, step=3)
        assert [step for step, _ in scalars(folder)["grad_norm"]] == [1, 2, 3]


def test_without_tensorboard_there_are_only_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorboardX", "tensorboardX.proto.event_pb2"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it would raise
    with make(tmp_path) as tracker:
        tracker.update(0, "train", {"loss/train": 1.0}, step=1)
        tracker.client(0, 1, "validation", {"accuracy": 0.5})
        tracker.clients_done(1)
        tracker.server(1, "validation", {"accuracy": 0.5})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


SAMPLE = {"prompt": "Human: a|b", "chosen": "well\n1", "reference": "<b>no</b>", "policy": "yes\n*so*"}


def test_responses_are_lines_and_tensorboard_text(tmp_path: Path) -> None:
    with make(tmp_path, tensorboard=True) as tracker:
        tracker.evaluated(2, [1.0], [SAMPLE])
        tracker.evaluated(1, [1.0], [SAMPLE], who="client-0")
    assert [(row["round"], row["who"]) for row in lines_of(tmp_path / "samples.jsonl")] == [
        (2, "server"),
        (1, "client-0"),
    ]
    assert lines_of(tmp_path / "samples.jsonl")[0] == {"round": 2, "who": "server", **SAMPLE}
    for folder, step in (("Server", 2), ("Client-0", 1)):
        events = EventAccumulator(str(tmp_path / "tensorboard" / folder)).Reload()
        texts = {}
        for tag in events.Tags()["tensors"]:
            assert events.summary_metadata[tag].plugin_data.plugin_name == "text"
            (event,) = events.Tensors(tag)
            assert event.step == step
            texts[tag.removesuffix("/text_summary")] = event.tensor_proto.string_val[0].decode()
        assert texts == {
            "policy_samples": "| prompt | chosen | policy |\n|---|---|---|\n"
            "| Human: a\\|b | well<br>1 | yes<br>\\*so\\* |",
            "reference_samples": "| prompt | chosen | reference |\n|---|---|---|\n"
            "| Human: a\\|b | well<br>1 | &lt;b&gt;no&lt;/b&gt; |",
        }


def test_tensorboards_hparams_plugin_finds_settings_metrics_and_the_end(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams import metadata

    with make(tmp_path, tensorboard=True) as tracker:
        tracker.settings({"lr": 0.5, "mode": "federated", "loss.reference_free": False})
        tracker.server(1, "test", {"accuracy": 0.75})
        tracker.summary()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "Server")).Reload()
    content = {tag: found.plugin_data.content for tag, found in events.summary_metadata.items() if "hparams" in tag}
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    assert start.hparams["lr"].number_value == 0.5 and start.hparams["mode"].string_value == "federated"
    assert start.hparams["loss.reference_free"].bool_value is False
    metrics = [
        info.name.tag for info in metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG]).metric_infos
    ]
    assert "test/accuracy" in metrics and scalars(tmp_path / "tensorboard" / "Server")["test/accuracy"] == [(1, 0.75)]
    assert metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG]).status == 1  # success


def selected_at_first(folder: Path) -> list[str]:
    """Return the heads of the settings that TensorBoard's hparams plug-in shows of the runs before a click."""
    from tensorboard import context
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment

    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    backend = backend_context.Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(folder))))
    request = api_pb2.GetExperimentRequest(hparams_limit=1000)
    infos = get_experiment.Handler(context.RequestContext(), backend, "", request).run().hparam_infos
    # Its page puts the settings that differ first, and selects five (TensorBoard 2.21, _computeHParams).
    return [info.display_name for info in sorted(infos, key=lambda info: not info.differs)[:5]]


@pytest.mark.parametrize("mode", ["federated", "centralized"])
def test_tensorboard_selects_the_settings_that_matter(tmp_path: Path, mode: str) -> None:
    """Of several runs it reads the first one's record: that of a run without a strategy must name `temp` too."""
    config = composing.request([f"mode={mode}"]).config
    with make(tmp_path, tensorboard=True) as tracker:
        tracker.settings(hyperparameters(config))
    assert selected_at_first(tmp_path) == ["clients", "beta", "lr", "strategy, mode", "temp"]


def test_strategy_and_mode_stand_in_one_column() -> None:
    federated = hyperparameters(composing.request(["strategy=fedpo"]).config)
    local = hyperparameters(composing.request(["mode=local"]).config)
    assert (federated[METHOD], local[METHOD]) == ("FeDPO, federated", "local")
    assert federated["strategy.temp"] == 0.1 and "strategy.temp" not in local
