"""Runs whose clients train in this process: what reaches the clients, and which accuracies decide their decay."""

import pytest
from flwr.serverapp.strategy import FedAvg

from support.command_line import SMALL, CommandLine


class Tells(FedAvg):
    """A strategy that sends its clients something that they do not know."""

    def configure_train(self, server_round, arrays, config, grid):
        config["local-epochs"] = 3
        return super().configure_train(server_round, arrays, config, grid)


def passes_on(message, context, call_next):
    """Do nothing of its own, but it could read any key."""
    return call_next(message, context)


def test_a_key_that_nothing_reads_ends_the_run_in_one_line(command_line: CommandLine) -> None:
    typed = [*SMALL, "strategy=fedavg", "strategy._target_=test_local_runs.Tells"]
    found = command_line(*typed)
    assert found.code == 1 and found.err.startswith("error: the strategy sends clients local-epochs=3, which nothing")
    assert found.err.count("\n") == 1
    assert command_line(*typed, "client_mods=[test_local_runs.passes_on]").code == 0


@pytest.mark.parametrize("pairs", ["client", "test"])
def test_without_pairs_of_the_servers_clients_decay_by_those_that_they_are_scored_on(
    command_line: CommandLine, pairs: str
) -> None:
    found = command_line(*SMALL, f"accuracy_on={pairs}", "server_fraction=0", "comm_round=2")
    assert found.code == 0, found.err
    for client in ("client-0", "client-1"):
        trained = found.lines(client, "train")
        assert len(trained) == 2 and all({"decay", "decay_next"} <= line.keys() for line in trained)
