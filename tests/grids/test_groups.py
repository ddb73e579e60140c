"""Clients shared out to groups of processes: who trains whom, and what every group knows afterwards."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from rich.console import Console

from fed.distributed.ranks import Ranks, arrange
from fed.grids.groups import GroupGrid, share_out
from fed.grids.local import DEFAULT_SETTINGS
from fed.grids.settings import LocalGridSettings
from fed.model.arrays import RemoteArrays, to_record, to_tensors
from fed.tracking.log import Log, Relay
from fed.tracking.tracker import Tracker
from run.local import exchange
from server.strategies import RunningMean
from support.ranks import in_ranks


def groups_of(count: int) -> Ranks:
    return arrange(count, torch.device("cpu")).groups


# Who trains whom


def test_the_longest_work_goes_first_and_each_to_the_group_with_the_least() -> None:
    """Work 5 4 3 3 2: 5 | 4, 4 + 3 = 7, 5 + 3 = 8, 7 + 2 = 9: loads 8 and 9."""
    assert share_out([0, 1, 2, 3, 4], [3.0, 5.0, 2.0, 4.0, 3.0], {}, 2) == [1, 0, 1, 1, 0]


def test_equal_work_goes_by_number_whatever_the_order_of_the_messages() -> None:
    assert share_out([0, 1, 2, 3], [1.0] * 4, {}, 2) == [0, 1, 0, 1]
    assert share_out([3, 1, 0, 2], [1.0] * 4, {}, 2) == [1, 1, 0, 0]
    assert share_out([5], [1.0] * 6, {}, 4) == [0]


def test_a_client_stays_with_the_group_that_holds_its_arrays_and_counts_as_its_work() -> None:
    """2 and 3 stay with group 1, whose 2 are more than nothing: both of the others go to group 0."""
    assert share_out([0, 1, 2, 3], [1.0] * 4, {2: 1, 3: 1}, 2) == [0, 0, 1, 1]
    # A holder's client is counted before the longest of the others is given away.
    assert share_out([0, 1, 2], [5.0, 4.0, 1.0], {2: 0}, 2) == [1, 0, 0]


# What every group knows afterwards


def keeping_app(trained: list[int]) -> ClientApp:
    """Return an app that counts visits, keeps an array if the message says so, and answers number + visits / 8."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        trained.append(client)
        visits = int(context.state.metric_records.get("visits", MetricRecord({"n": 0}))["n"]) + 1
        context.state["visits"] = MetricRecord({"n": visits})
        context.state["words"] = ConfigRecord({"last": f"visit {visits}"})
        own = {"velocity": torch.full((2,), float(client))} if message.content["config"]["keep"] else {}
        context.state["own"] = to_record(own)
        answer = client + visits / 8
        arrays = to_record({"a": torch.full((2, 3), answer), "b": torch.full((1,), -answer)})
        metrics = MetricRecord({"client": client, "visits": visits})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return app


def messages(nodes: list[int], *, keep: bool) -> list[Message]:
    arrays = to_record({"a": torch.zeros(2, 3), "b": torch.zeros(1)})
    return [Message(RecordDict({"config": ConfigRecord({"keep": keep}), "arrays": arrays}), n, "train") for n in nodes]


def grid_of(
    trained: list[int], settings: LocalGridSettings = DEFAULT_SETTINGS, exchange: Callable[[], None] = lambda: None
) -> GroupGrid:
    contexts = [Context(0, node, {"partition-id": node}, RecordDict(), {}) for node in range(4)]
    work = [1.0, 1.0, 1.0, 4.0]
    return GroupGrid(keeping_app(trained), contexts, settings, groups=groups_of(2), work=work, exchange=exchange)


def told(reply: Message) -> tuple[int, dict[str, Any], list[float] | None]:
    arrays = reply.content["arrays"]
    values = None if isinstance(arrays, RemoteArrays) else [float(t.mean()) for t in to_tensors(arrays).values()]
    return reply.metadata.src_node_id, dict(reply.content["metrics"]), values


def two_rounds(keep: bool) -> dict[str, Any]:
    trained: list[int] = []
    exchanged: list[int] = []
    grid = grid_of(trained, exchange=lambda: exchanged.append(len(trained)))
    rounds = [list(map(told, grid.send_and_receive(messages(nodes, keep=keep)))) for nodes in ([3, 0, 2, 1], [1, 3])]
    states = [
        (dict(c.state["visits"]), dict(c.state["words"]), sorted(c.state["own"])) if "visits" in c.state else None
        for c in grid.contexts
    ]
    return {"trained": trained, "rounds": rounds, "states": states, "exchanged": exchanged}


def test_all_groups_get_all_replies_in_the_order_of_the_messages() -> None:
    """Client 3 has as much work as all others together, so it is alone with group 0."""
    first, second = in_ranks(2, two_rounds, False)
    assert (first["trained"], second["trained"]) == ([3, 3], [0, 2, 1, 1])
    assert first["rounds"] == second["rounds"]
    first_round, second_round = first["rounds"]
    assert [node for node, _, _ in first_round] == [3, 0, 2, 1]
    assert [metrics for _, metrics, _ in first_round] == [{"client": k, "visits": 1} for k in (3, 0, 2, 1)]
    for node, metrics, (a, b) in (*first_round, *second_round):
        assert a == -b == node + metrics["visits"] / 8
    assert [(node, metrics["visits"]) for node, metrics, _ in second_round] == [(1, 2), (3, 2)]
    # Once a round, when all of this group's clients are done.
    assert (first["exchanged"], second["exchanged"]) == ([1, 2], [3, 4])


def test_all_groups_know_what_clients_keep_but_for_arrays_which_stay_where_they_are() -> None:
    expected = [({"n": n}, {"last": f"visit {n}"}) for n in (1, 2, 1, 2)]
    for rank, found in enumerate(in_ranks(2, two_rounds, True)):
        assert [(visits, words) for visits, words, _ in found["states"]] == expected
        holds = [own == ["velocity"] for *_, own in found["states"]]
        assert holds == [client in found["trained"] for client in range(4)]
        assert holds == ([False, False, False, True] if rank == 0 else [True, True, True, False])


def moving(keep: bool) -> list[int]:
    """Return this group's clients of a second round; shared out anew, group 0 would get two of 0, 1 and 2."""
    trained: list[int] = []
    grid = grid_of(trained)
    grid.send_and_receive(messages([0, 1, 2, 3], keep=keep))
    trained.clear()
    grid.send_and_receive(messages([0, 1, 2], keep=keep))
    return trained


@pytest.mark.parametrize(("keep", "expected"), [(False, [[0, 2], [1]]), (True, [[], [0, 1, 2]])])
def test_only_clients_that_keep_arrays_stay_with_their_group(keep: bool, expected: list[list[int]]) -> None:
    assert in_ranks(2, moving, keep) == expected


def streamed() -> dict[str, Any]:
    trained: list[int] = []
    grid = grid_of(trained, LocalGridSettings(streams=True))
    replies = iter(grid.send_and_receive(messages([1, 3, 0, 2], keep=False)))
    before = list(trained)
    first = next(replies)
    after_one = list(trained)
    rest = list(replies)
    likes = [
        {name: tuple(t.shape) for name, t in to_tensors(reply.content["arrays"].like).items()}
        for reply in rest
        if isinstance(reply.content["arrays"], RemoteArrays)
    ]
    return {"trained": (before, after_one, trained), "replies": list(map(told, [first, *rest])), "likes": likes}


def test_a_stream_gives_a_groups_own_replies_one_by_one_and_then_outlines_of_the_others() -> None:
    first, second = in_ranks(2, streamed)
    assert first["trained"] == ([], [3], [3])
    assert second["trained"] == ([], [1], [1, 0, 2])
    for found, own in ((first, [3]), (second, [1, 0, 2])):
        nodes = [node for node, _, _ in found["replies"]]
        assert nodes[: len(own)] == own and sorted(nodes) == [0, 1, 2, 3]
        assert [values is not None for *_, values in found["replies"]] == [node in own for node in nodes]
        assert [metrics["client"] for _, metrics, _ in found["replies"]] == nodes
        assert found["likes"] == [{"a": (2, 3), "b": (1,)}] * (4 - len(own))


# The mean of what several groups hold


def joined(members: list[list[tuple[float, float] | None]]) -> tuple[list[float], list[float]]:
    """Join the means of all groups. Members are (value, weight), or None where another group has it."""
    groups = groups_of(len(members))
    mean = RunningMean()
    weights = [next(m[k] for m in members if m[k] is not None)[1] for k in range(len(members[0]))]  # type: ignore[index]
    for member, weight in zip(members[groups.index], weights, strict=True):
        if member is None:
            mean.add_elsewhere({"w": torch.empty(2)}, math.log(weight))
        else:
            mean.add({"w": torch.tensor([member[0], -member[0]])}, math.log(weight))
    mean.join(groups)
    return mean.value["w"].tolist(), list(mean.weights())


def test_joined_means_are_the_mean_of_all_members() -> None:
    """(1 x 1 + 3 x 5 + 4 x 2) / 8 = 3, the shares 1/8, 3/8, 4/8, whichever group holds which."""
    for members in (
        [[(1.0, 1.0), None, (2.0, 4.0)], [None, (5.0, 3.0), None]],
        [[None, None, None], [(1.0, 1.0), (5.0, 3.0), (2.0, 4.0)]],  # the first has none at all
    ):
        for value, weights in in_ranks(2, joined, members):
            assert value == pytest.approx([3.0, -3.0], rel=1e-6)
            assert weights == pytest.approx([0.125, 0.375, 0.5])


def test_one_group_joins_with_nobody() -> None:
    mean = RunningMean()
    mean.add({"w": torch.tensor([0.1])}, 0.0)
    mean.join(Ranks())
    assert torch.equal(mean.value["w"], torch.tensor([0.1]))


# What the other groups' clients report


def reported(folder: Path) -> int:
    """Report two rounds of each group's one client; return the pairs recorded, or the events left to tell."""
    groups = groups_of(2)
    tracker: Log = Relay(speaks=True)
    if groups.is_first:
        tracker = Tracker(folder, tensorboard=False, num_rounds=2, clients_per_round=2, console=Console(quiet=True))
    with tracker:
        for server_round in (1, 2):
            tracker.start_client(server_round, groups.index, 3)
            tracker.update(groups.index, "train", {"loss/train": 0.5}, step=server_round)
            tracker.advance(3)
            tracker.client(groups.index, server_round, "train", {"loss": groups.index + server_round / 10})
            tracker.server(
                server_round, "test", {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 1.0}
            )  # every process has the same
            exchange(groups, tracker)
        return tracker.pairs if groups.is_first else len(tracker.fetch())


def test_what_other_groups_clients_report_reaches_the_first_process_once(tmp_path: Path) -> None:
    assert in_ranks(2, reported, tmp_path) == [2 * 2 * 3, 0]  # pairs; what is left to tell
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    clients = [(line["who"], line["round"], line["loss"]) for line in lines if line["who"] != "server"]
    assert sorted(clients) == [
        ("client-0", 1, 0.1), ("client-0", 2, 0.2), ("client-1", 1, 1.1), ("client-1", 2, 1.2),
    ]  # fmt: skip
    assert [line["round"] for line in lines if line["who"] == "server"] == [1, 2]


def test_a_relay_that_speaks_for_nobody_keeps_nothing() -> None:
    relay = Relay()
    relay.client(0, 1, "train", {"loss": 1.0})
    assert relay.fetch() == []
