"""A server that sends nodes what no honest one does: weights, names and settings."""

import itertools
import re

import numpy as np
import pytest
import torch
from flwr.app import Array

from fed.errors import CannotContinue, Failed
from fed.grids.remote import CLIENT, MODEL, RUN, SETTINGS
from support.flower_runs import nodes, sets
from support.private_rounds import SENT, UPDATES, sent_by_a_client, settings

PRIVATE = {"privacy": "local_dp", "strategy": "fedavg"}
ENDS = {"min_fit_clients": 2, "process_timeout": 3}


def carries(**texts):
    """Return a server whose messages carry other texts."""

    def hostile(message):
        config = next(iter(message.content.config_records.values()))
        for key, text in texts.items():
            if text is None:
                del config[key]
            else:
                config[key] = text

    return hostile


def puts(value):
    """Return a server that puts a value into the model's first norm."""

    def hostile(message):
        for record in message.content.array_records.values():
            for name in record:
                if name.endswith("norm.weight"):
                    changed = np.array(record[name].numpy())
                    changed[0] = value
                    record[name] = Array.from_numpy_ndarray(changed)
                    return

    return hostile


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("run", [{}, PRIVATE], ids=["plain", "local_dp"])
def test_a_node_takes_no_weights_that_are_not_finite(federate, files, capfd, value, run):
    with pytest.raises(CannotContinue, match="0 of 2 clients succeeded"):
        federate(nodes(files), hostile_server=puts(value), **run)
    assert capfd.readouterr().err.count("with numbers that are not finite; nothing is sent") == 2


@pytest.mark.parametrize("kind", [{"kind": "local_dp"}, {"clipping": "client"}], ids=str)
@pytest.mark.parametrize("odd", [np.nan, np.inf, 3e38], ids=str)
def test_an_update_without_a_norm_does_not_leave_unclipped(kind, odd):
    """Flower's min(1, C / NaN) is 1; that of a server's NaN, and of a client that diverges by itself."""
    sent = {**SENT, "unread": torch.tensor([-3e38 if odd == 3e38 else 0.0])}
    trained = {**{name: SENT[name] + UPDATES[0][name] for name in SENT}, "unread": torch.tensor([odd])}
    is_rounded = kind == {"kind": "local_dp"} and odd == 3e38  # weights as large as those sent
    with pytest.raises(Failed, match="rounds away noise" if is_rounded else "no norm that can be clipped"):
        sent_by_a_client(settings(**kind), sent, trained, {"clipping_norm": 2.0})


def test_a_server_cannot_ask_for_a_larger_clipping_norm():
    trained = {name: SENT[name] + UPDATES[0][name] for name in SENT}
    with pytest.raises(Failed, match="the update is longer than clipping and noise leave it"):
        sent_by_a_client(settings(clipping="client"), SENT, trained, {"clipping_norm": 1e9})


@pytest.mark.parametrize("largest", [2.0**24, 1e30])
def test_weights_so_large_that_noise_is_lost_in_rounding_are_refused(largest):
    """Beside 2^24 float32 has even numbers only: an update of 2 would arrive as it is, whatever noise is added."""
    sent = {**SENT, "unread": torch.tensor([largest])}
    trained = {**SENT, "unread": torch.tensor([largest + 4.0])}
    with pytest.raises(Failed, match=r"rounds away noise of standard deviation 0\.2"):
        sent_by_a_client(settings(kind="local_dp", noise_multiplier=0.05), sent, trained)


@pytest.mark.parametrize("numbers", [1, 1000])
def test_noise_and_clipping_pass_the_check_of_what_leaves(numbers):
    """Updates that are clipped: 1,020 of one number, and 21 of a thousand."""
    private, sent = settings(kind="local_dp", noise_multiplier=1.0), {"a": torch.zeros(numbers)}
    for _ in range(1000 // numbers + 20):
        (reply,) = sent_by_a_client(private, sent, {"a": torch.full((numbers,), 9.0)})
        assert not reply.has_error()


def test_a_reason_tells_a_server_nothing_of_private_data(federate, files, capfd):
    """A learning rate of 1e30 makes an update whose norm is that of a gradient, at weights that the server chose."""
    private = {**PRIVATE, "strategy.fraction_evaluate": 0.0}
    hostile = sets(lr=1e30, optimizer="SGD", max_grad_norm=1e300, warmup_steps=0)
    with pytest.raises(CannotContinue, match="0 of 2 clients succeeded"):
        federate(nodes(files), hostile_server=hostile, **private)
    told, printed = capfd.readouterr()
    assert told.count("is left out: it has nothing to send; the log of its SuperNode says why\n") == 2
    assert printed.count("error: the update has no norm that can be clipped") == 2


def test_a_server_reads_nothing_of_a_nodes_environment(federate, files, monkeypatch, capfd):
    monkeypatch.setenv("CANARY_TOKEN", "the-secret-of-the-owner")
    with pytest.raises(CannotContinue, match="2 cannot take part"):
        federate(nodes(files), hostile_server=sets(**{"model.name_or_path": "${oc.env:CANARY_TOKEN}"}), **ENDS)
    told = "".join(capfd.readouterr())
    assert "the-secret-of-the-owner" not in told and "model.name_or_path=${oc.env:CANARY_TOKEN} reaches" in told


def test_a_server_writes_no_escapes_on_a_nodes_console(federate, files, capfd):
    with pytest.raises(CannotContinue, match="2 cannot take part"):
        federate(nodes(files), hostile_server=sets(**{"model.archive": "\x1b]0;owned\x07" * 9_999}), **ENDS)
    assert all(line.isprintable() and len(line) < 600 for line in capfd.readouterr().err.splitlines())


@pytest.mark.parametrize(("key", "value"), [("server-round", -5), (CLIENT, -1), (CLIENT, 0.5), (CLIENT, "../x")])
def test_a_number_that_is_none_is_refused(federate, files, capfd, key, value):
    with pytest.raises(CannotContinue, match="0 of 2 clients succeeded"):
        federate(nodes(files), hostile_server=carries(**{key: value}))
    assert f"the server sends {key}={value!r}; expected a whole number from 0" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ({SETTINGS: None}, "the server sends settings=None; expected text"),
        ({MODEL: None}, "the server sends model=None; expected text"),
        ({RUN: 7}, "the server sends run=7; expected text"),
        ({SETTINGS: "[" * 200_000}, "the server's settings cannot be read here: RecursionError"),
        ({SETTINGS: "[1]"}, "the server's settings cannot be read here"),
        ({MODEL: "[1]"}, "the server sends model='[1]'; expected digests by name"),
        ({MODEL: "[" * 200_000}, "expected digests by name"),
        ({MODEL: "{}"}, "this client's model is not the server's"),
    ],
    ids=str,
)
def test_a_message_that_lacks_what_it_carries_is_refused_in_one_line(federate, files, capfd, texts, words):
    with pytest.raises(CannotContinue, match="2 cannot take part"):
        federate(nodes(files), hostile_server=carries(**texts), **ENDS)
    told, printed = capfd.readouterr()
    assert words in told and words in printed and "Traceback" not in printed


@pytest.mark.parametrize("group", ["loss", "partition", "strategy"])
@pytest.mark.parametrize("value", [{}, {"a": {"b": 1}}, {"_target_": 7}], ids=str)
def test_a_group_that_names_nothing_is_refused_in_one_line(federate, files, capfd, group, value):
    with pytest.raises(CannotContinue, match="2 cannot take part"):
        federate(nodes(files), hostile_server=sets(**{group: value}), **ENDS)
    told, printed = capfd.readouterr()
    assert re.search(rf"{group}\._target_=(None|7) is not a dotted path", told) and "Traceback" not in printed


def test_a_message_of_a_type_that_nothing_checks_is_refused(federate, files, capfd):
    """Flower's client app takes "train.default" for "train"."""

    def hostile(message):
        if message.metadata.message_type == "train":
            message.metadata.message_type = "train.default"

    with pytest.raises(CannotContinue, match="0 of 2 clients succeeded"):
        federate(nodes(files), hostile_server=hostile)
    assert "the server sends a message of type train.default; expected" in capfd.readouterr().err


def test_queries_with_ever_new_settings_fill_no_disk(federate, files, tmp_path, monkeypatch):
    monkeypatch.setattr("run.site.ENTRIES", 1)
    lengths = itertools.count(300)

    def hostile(message):
        if message.metadata.message_type == "train":
            sets(max_length=next(lengths))(message)

    federate(nodes(files), hostile_server=hostile, comm_round=4)
    for folder in ("tokens", "reference"):
        assert [len(list(tmp_path.glob(f"cache-{k}/{folder}/*"))) for k in range(2)] == [1, 1]


@pytest.mark.parametrize("name", ["tokens", "reference"])
def test_a_link_in_a_cache_is_not_followed(federate, files, tmp_path, capfd, name):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for number in range(2):
        (tmp_path / f"cache-{number}").mkdir()
        (tmp_path / f"cache-{number}" / name).symlink_to(elsewhere)
    with pytest.raises(CannotContinue, match="2 cannot take part"):
        federate(nodes(files), **ENDS)
    assert "leads out of" in capfd.readouterr().err and list(elsewhere.iterdir()) == []


def test_a_server_that_calls_a_node_by_ever_new_numbers_fills_no_disk(federate, files, tmp_path):
    numbers = itertools.count()

    def hostile(message):
        next(iter(message.content.config_records.values()))[CLIENT] = next(numbers)

    federate(nodes(files), hostile_server=hostile, comm_round=4)
    assert [len(list(tmp_path.glob(f"cache-{k}/clients/*/client-*"))) for k in range(2)] == [1, 1]


@pytest.mark.parametrize(
    "name", ["../../victim", "/tmp/victim", "..", ".hidden", "", "a/b", "a\\b", "a b", "x" * 300, "é", "a\n"]
)
def test_a_run_whose_name_is_a_path_touches_nothing(federate, files, tmp_path, capfd, name):
    victim = tmp_path / "victim"
    victim.mkdir()
    old = [tmp_path / f"old-{number}" for number in range(12)]
    for folder in old:
        folder.mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CannotContinue, match="2 cannot take part"):
        federate(nodes(files), hostile_server=carries(**{RUN: name}), **ENDS)
    assert "is not a plain name of letters, digits" in capfd.readouterr().err
    assert [path for path in before if not path.exists()] == [] and list(victim.iterdir()) == []
    assert not list(tmp_path.glob("cache-*/clients/*"))


def test_a_link_in_the_cache_leads_nowhere(federate, files, tmp_path, capfd):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for number in range(2):
        (tmp_path / f"cache-{number}").mkdir()
        (tmp_path / f"cache-{number}" / "clients").symlink_to(elsewhere)
    with pytest.raises(CannotContinue, match="2 cannot take part"):
        federate(nodes(files), **ENDS)
    assert "leads out of" in capfd.readouterr().err and list(elsewhere.iterdir()) == []
