"""Outlines of messages: everything but the numbers of the arrays."""

import pickle

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fed.grids.outline import ArrayOutline, filled, outline, outline_arrays
from fed.model.arrays import to_record


def test_an_outline_filled_with_its_arrays_is_the_content_again():
    arrays = to_record({"w": torch.ones(2, 3), "b": torch.zeros(1, dtype=torch.float64)})
    config, metrics = ConfigRecord({"server-round": 2, "name": "x"}), MetricRecord({"loss": 0.5, "all": [1, 2]})
    content = RecordDict({"arrays": arrays, "config": config, "metrics": metrics, "none": ArrayRecord()})
    told = pickle.loads(pickle.dumps(outline(content)))  # as it travels between processes
    assert told["arrays"] == [
        ArrayOutline("w", (2, 3), torch.float32),
        ArrayOutline("b", (1,), torch.float64),
    ] == outline_arrays(arrays)  # fmt: skip
    again = filled(told, {"arrays": arrays, "none": ArrayRecord()}.__getitem__)
    assert list(again) == list(content) and again["arrays"] is arrays
    assert dict(again["config"]) == dict(config) and dict(again["metrics"]) == dict(metrics)


def test_an_outline_has_small_records_of_its_own():
    content = RecordDict({"metrics": MetricRecord({"loss": 0.5})})
    told = outline(content)
    content["metrics"]["loss"] = 1.0
    assert dict(told["metrics"]) == {"loss": 0.5}
