"""A client that answers with what no honest one does: it is left out with the reason, and nobody's run ends."""

import re

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fed.config.flower import PARTITION_ID
from fed.errors import CannotContinue
from fed.foreign import one_line, printable
from fed.grids.remote import RemoteGrid
from fed.grids.replies import RANGES, Expected
from fed.grids.settings import RemoteGridSettings
from fed.grids.wire import DIFFERENCE, Wire
from fed.model.arrays import to_record, to_tensors
from fed.tracking.line_files import read_lines
from fed.tracking.run_files import METRICS
from server.strategies import FeDPO
from support.deployment import lines
from support.federations import everyone
from support.flower_grid import FlowerGrid
from support.flower_runs import allowing, nodes


def spoils(change, kind="train"):
    """Return a hostile node: the first to answer a message of this kind, once."""
    spoiled = []

    def hostile(reply):
        if reply.metadata.message_type == kind and not spoiled:
            spoiled.append(reply)
            change(reply)

    return hostile


def failed(run):
    return [line for line in read_lines(run / METRICS) if line["split"] == "failure"]


def metrics(**changes):
    def change(reply):
        record = reply.content["metrics"]
        for name, value in changes.items():
            name = name.replace("_examples", "-examples")
            if value is None:
                del record[name]
            else:
                record[name] = value

    return change


def arrays(make):
    """Return a change that puts other values in place of the first array."""

    def change(reply):
        record = reply.content["arrays"]
        name = next(iter(record))
        record[name] = Array.from_numpy_ndarray(make(record[name].numpy()))

    return change


def adds(**records):
    return lambda reply: reply.content.update(records)


def overflowing(values):
    changed = values.astype(np.float64)
    changed.flat[0] = 1e300
    return changed


HOSTILE = {
    "no accuracy": (metrics(accuracy=None), "its reply lacks the metric accuracy"),
    "no num-examples": (metrics(num_examples=None), "its reply lacks the metric num-examples"),
    "num-examples 0": (metrics(num_examples=0), "its num-examples is 0"),
    "num-examples inf": (metrics(num_examples=float("inf")), "its num-examples is inf"),
    "num-examples 1e300": (metrics(num_examples=1e300), "its num-examples is 1e"),
    "accuracy 1e308": (metrics(accuracy=1e308), "its accuracy is 1e"),
    "accuracy 1.5": (metrics(accuracy=1.5), "its accuracy is 1.5; expected a number at least 0 and at most 1"),
    "accuracy -1": (metrics(accuracy=-1.0), "its accuracy is -1.0"),
    "accuracy a list": (metrics(accuracy=[0.5, 0.5]), r"its accuracy is \[0.5, 0.5\]"),
    "loss NaN": (metrics(train_loss=float("nan")), "its train_loss is nan"),
    "one metric more": (metrics(extra=1.0), "its reply has the metric extra, which nobody expects"),
    "a metric with escapes": (metrics(**{"\x1b[2J\x07" * 9: 1.0}), "has the metric .* which nobody expects"),
    "a second array record": (adds(more=ArrayRecord()), "its reply has the arrays more"),
    "a second metric record": (adds(more=MetricRecord({"a": 1})), "other records than"),
    "a config record": (adds(more=ConfigRecord({"a": 1})), "other records than"),
    "no metrics": (lambda reply: reply.content.pop("metrics"), "other records than"),
    "no arrays": (lambda reply: reply.content.pop("arrays"), "its reply lacks the arrays arrays"),
    "int8": (arrays(lambda values: values.astype(np.int8)), "travels as int8, expected float32"),
    "bool": (arrays(lambda values: values.astype(bool)), "travels as bool, expected float32"),
    "float64 beyond float32": (arrays(overflowing), "travels as float64, expected float32"),
    "another shape": (arrays(lambda values: values[:1]), "has shape"),
    "NaN": (arrays(lambda values: values * np.float32("nan")), "is not finite"),
}


@pytest.mark.parametrize(("change", "words"), HOSTILE.values(), ids=HOSTILE)
def test_a_reply_that_no_honest_client_sends_costs_its_sender_the_round_only(federate, files, change, words):
    _, run = federate(nodes(files), hostile_node=spoils(change), comm_round=2, strategy="fedpo")
    failures = failed(run)
    assert len(failures) == 1 and failures[0]["round"] == 1
    assert re.search(words, failures[0]["reason"])
    assert failures[0]["reason"].isprintable() and len(failures[0]["reason"]) <= 500
    found = lines(run)
    assert (2, "server", "test") in found and (2, "client-0", "train") in found and (2, "client-1", "train") in found


@pytest.mark.parametrize("kind", [b"MetricRecord", b"ArrayRecord", b"Array ", b"RecordDict"])
def test_bytes_that_flower_cannot_read_cost_their_sender_the_round_only(federate, files, kind):
    """The SuperLink checks the length of an object and its hash; whoever asks for it reads what it holds."""
    replies = []

    def hostile(contents):
        replies.append(contents)
        if len(replies) == 3:  # after both nodes' numbers: the first result
            for key, content in contents.items():
                head, _, body = content.partition(b"\0")
                if head.startswith(kind):
                    contents[key] = head + b"\0" + b"\xff" * len(body)

    _, run = federate(nodes(files), hostile_bytes=hostile, comm_round=2)
    failures = failed(run)
    assert len(failures) == 1 and failures[0]["reason"].startswith("its reply cannot be read: ")
    assert (2, "client-0", "train") in lines(run) and (2, "client-1", "train") in lines(run)


def test_a_node_whose_number_cannot_be_read_is_refused(federate, files, capfd):
    def hostile(contents):
        for key, content in contents.items():
            head, _, body = content.partition(b"\0")
            contents[key] = head + b"\0" + b"\xff" * len(body)

    with pytest.raises(CannotContinue, match="2 cannot take part"):
        federate(nodes(files), hostile_bytes=hostile, process_timeout=3, min_fit_clients=2)
    assert "cannot take part: its reply cannot be read" in capfd.readouterr().out


@pytest.mark.parametrize("change", [metrics(accuracy=None), metrics(extra=1.0), adds(arrays=ArrayRecord())])
def test_an_evaluation_that_no_honest_client_sends_is_left_out(federate, files, change):
    _, run = federate(
        nodes(files), hostile_node=spoils(change, "evaluate"), comm_round=2, **{"strategy.fraction_evaluate": 1.0}
    )
    assert [line["round"] for line in failed(run)] == [1]
    assert (2, "client-0", "held-out") in lines(run)


@pytest.mark.parametrize("strategy", ["fedmedian", "fedavg", "fedadam"])
def test_a_metric_more_ends_no_strategy(federate, files, strategy):
    _, run = federate(nodes(files), hostile_node=spoils(metrics(extra=1.0)), comm_round=2, strategy=strategy)
    assert (2, "server", "test") in lines(run)


def test_a_loss_that_a_strategy_raises_to_a_power_is_not_negative(federate, files):
    """Flower's QFedAvg would have NaN for everybody."""
    _, run = federate(nodes(files), hostile_node=spoils(metrics(train_loss=-1.0)), comm_round=2, strategy="qfedavg")
    assert [line["reason"] for line in failed(run)] == ["its train_loss is -1.0; expected a number at least 0"]
    assert (2, "client-0", "train") in lines(run) and (2, "client-1", "train") in lines(run)


def test_under_central_privacy_a_client_counts_once(federate, files):
    """A round without everybody has no aggregate; the model stays, and the run goes on."""
    private = {"privacy": "central_dp", "strategy": "fedavg"}
    _, run = federate(nodes(files), hostile_node=spoils(metrics(num_examples=10**6)), comm_round=2, **private)
    assert (
        "its num-examples is 1000000; expected a number at least 1 and at most 1" in (run / "metrics.jsonl").read_text()
    )
    assert lines(run)[2, "server", "privacy"]["releases"] == 1


@pytest.mark.parametrize("number", [float("inf"), float("nan"), [1, 2], -1, 2**62])
def test_a_node_whose_number_is_none_is_refused(federate, files, capfd, number):
    def hostile(reply):
        reply.content["metrics"][PARTITION_ID] = number

    with pytest.raises(CannotContinue, match="1 cannot take part"):
        federate(nodes(files), hostile_node=spoils(hostile, "query"), process_timeout=3, min_fit_clients=2)
    assert "cannot take part: it" in capfd.readouterr().out


def test_a_mods_metric_is_taken_if_the_run_names_it(federate, files):
    allowed = allowing("client_mods: [test_hostile_client.adds_a_metric]", files)
    typed = {"client_mods": "[test_hostile_client.adds_a_metric]", "client_metrics": "[length]"}
    _, run = federate(allowed, comm_round=1, **typed)
    assert not failed(run)


def adds_a_metric(message, context, call_next):
    reply = call_next(message, context)
    if message.metadata.message_type == MessageType.TRAIN:
        reply.content["metrics"]["length"] = 3.0
    return reply


numbers = st.floats() | st.integers(-(2**63), 2**63 - 1) | st.lists(st.floats(), max_size=3)


@np.errstate(all="ignore")
def filled(shape, value, dtype):
    return Array.from_numpy_ndarray(np.full(shape, value).astype(dtype))


shapes = st.sampled_from([(2, 3), (3, 2), (6,), (0,), ()])
values = st.sampled_from([0.0, 1.0, 3e38, float("nan"), float("inf")])
dtypes = st.sampled_from(["float32", "float64", "float16", "int8", "bool", "complex64"])
stypes = st.sampled_from(["numpy.ndarray", DIFFERENCE, "other"])
odd_arrays = st.one_of(
    st.builds(filled, shapes, values, dtypes),
    st.builds(Array, st.sampled_from(["float32", "bfloat16", "other"]), shapes, stypes, st.binary(max_size=30)),
)
records = st.one_of(
    st.dictionaries(st.text(max_size=5), numbers, max_size=8).map(MetricRecord),
    st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2).map(ConfigRecord),
    st.dictionaries(st.sampled_from(["w", "v"]), odd_arrays, max_size=2).map(ArrayRecord),
)
# What a hostile client changes of a right reply.
changes = st.lists(
    st.one_of(
        st.tuples(st.just("metric"), st.sampled_from([*RANGES["train"], "margin", "loss", "extra"]), numbers),
        st.tuples(st.just("array"), st.sampled_from(["w", "v"]), odd_arrays),
        st.tuples(st.just("record"), st.sampled_from(["arrays", "metrics", "more"]), records),
        st.tuples(st.just("lacks"), st.sampled_from(["arrays", "metrics"]), st.none()),
    ),
    max_size=2,
)


def changed(kind, wire, made):
    """Return a reply, right but for these changes."""
    content = RecordDict({"metrics": MetricRecord(dict.fromkeys(RANGES[kind], 1))})
    if kind == "train":
        content["arrays"] = wire.pack(to_record({"w": torch.ones(2, 3)}))
    for what, name, value in made:
        if what == "metric" and "metrics" in content.metric_records:
            content["metrics"][name] = value
        elif what == "array" and "arrays" in content.array_records:
            content["arrays"][name] = value
        elif what == "record":
            content[name] = value
        elif what == "lacks":
            content.pop(name, None)
    return content


@given(made=changes, kind=st.sampled_from(["train", "evaluate"]), dtype=st.sampled_from(["float32", "bfloat16"]))
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_reply_is_aggregated_or_refused_in_words(made, kind, dtype):
    wire, told, app = Wire(dtype, {"w": torch.zeros(2, 3)}), [], ClientApp()

    def answers(message, context):
        return Message(changed(kind, wire, made), reply_to=message)

    app.train()(answers)
    app.evaluate()(answers)
    how = {"message_config": {}, "wait": 1.0, "simulated": True, "timeout": None, "expected": Expected()}
    reports = {"on_reply": lambda *_: None, "on_failure": lambda *failure: told.append(failure)}
    grid = RemoteGrid(FlowerGrid([(app, {})]), RemoteGridSettings(**how, **reports, wire=wire))
    assert grid.get_node_ids() == [0]
    sent = RecordDict({"arrays": to_record({"w": torch.zeros(2, 3)})})
    (reply,) = grid.pull_messages(grid.push_messages([Message(sent, 0, kind)]))
    if reply.has_error():
        assert [failure[2] for failure in told] == [reply.error.reason] and reply.error.reason.startswith("its ")
        return
    assert all(np.isfinite(value) for value in reply.content["metrics"].values()) and not told
    if kind == "train":
        found, _ = FeDPO(**everyone()).aggregate_train(1, iter([reply]))
        assert bool(torch.isfinite(to_tensors(found)["w"]).all()) and to_tensors(found)["w"].shape == (2, 3)


@given(text=st.text(max_size=3000))
@settings(max_examples=300, deadline=None)
def test_words_of_others_cannot_move_the_cursor(text):
    assert len(one_line(text * 10)) <= 500 and one_line(text * 10).isprintable()
    kept = printable(text * 30)
    assert len(kept) <= 20_000 and all(letter.isprintable() or letter == "\n" for letter in kept)


def test_a_traceback_of_200_kb_and_escapes_is_cut_and_cleaned():
    assert one_line("\x1b]0;owned\x07 text\nmore") == "?]0;owned? text more"
    assert printable("a\x1b[31m\nb\t") == "a?[31m\nb   "
    assert one_line("x" * 200_000).endswith(" ...") and len(printable("x\n" * 100_000)) == 20_000
