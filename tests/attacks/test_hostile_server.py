"""A server that sends nodes what no honest one does: weights, names and settings."""

import numpy as np
import pytest
import torch
from flwr.app import Array

from fed.errors import CannotContinue, Failed
from fed.grids.remote import RUN
from support.flower_runs import nodes
from support.private_rounds import SENT, UPDATES, sent_by_a_client, settings

PRIVATE = {"privacy": "local_dp", "strategy": "fedavg"}
ENDS = {"min_fit_clients": 2, "process_timeout": 3}


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
    with pytest.raises(Failed, match=r"which cannot be clipped; nothing is sent|rounds away noise"):
        sent_by_a_client(settings(**kind), sent, trained, {"clipping_norm": 2.0})


def test_a_server_cannot_ask_for_a_larger_clipping_norm():
    trained = {name: SENT[name] + UPDATES[0][name] for name in SENT}
    with pytest.raises(Failed, match="would leave with norm 5 in place of 2"):
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
    """1,000 messages of updates that are clipped, of one number and of a thousand."""
    private, sent = settings(kind="local_dp", noise_multiplier=1.0), {"a": torch.zeros(numbers)}
    for _ in range(1000 // numbers + 20):
        (reply,) = sent_by_a_client(private, sent, {"a": torch.full((numbers,), 9.0)})
        assert not reply.has_error()


@pytest.mark.parametrize(
    "name", ["../../victim", "/tmp/victim", "..", ".hidden", "", "a/b", "a\\b", "a b", "x" * 300, "é", "a\n"]
)
def test_a_run_whose_name_is_a_path_touches_nothing(federate, files, tmp_path, capfd, name):
    def hostile(message):
        next(iter(message.content.config_records.values()))[RUN] = name

    victim = tmp_path / "victim"
    victim.mkdir()
    old = [tmp_path / f"old-{number}" for number in range(12)]
    for folder in old:
        folder.mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CannotContinue, match="2 cannot take part"):
        federate(nodes(files), hostile_server=hostile, **ENDS)
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
