import json
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from flwr_datasets.partitioner import IidPartitioner, NaturalIdPartitioner, SizePartitioner
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fed.config.components import create
from fed.data.divide import partition
from fed.data.partition import ContiguousPartitioner, GroupPartitioner
from fed.data.partition_file import describe, write_partition
from fed.data.rows import Preference

CONFIG = Path(__file__).parents[2] / "config" / "partition"
SHIPPED = ("contiguous", "dirichlet", "group", "iid", "size")


def make_rows(num_rows, groups="abcd", per_conversation=1):
    """Make rows in data order; consecutive ones share a conversation, groups alternate between conversations."""
    places = [index // per_conversation for index in range(num_rows)]
    return [
        Preference(f"p{place}", f"c{index}", "r", groups[place % len(groups)]) for index, place in enumerate(places)
    ]


def shipped(name, num_clients, seed=0, even=True, **changes):
    """Make the partitioner of a YAML file, composed as main.py does."""
    config = OmegaConf.create({"client_num_in_total": num_clients, "seed": seed, "data_evenly_distributed": even})
    config.partition = OmegaConf.load(CONFIG / f"{name}.yaml")
    config.partition.update(changes)
    return create("partition", OmegaConf.to_container(config, resolve=True)["partition"], set())


def sizes(parts):
    return [len(part) for part in parts]


def groups_of(part, rows):
    return {rows[index].group for index in part}


def test_every_shipped_file_is_tested():
    """own.yaml divides nothing and natural.yaml by users: they have tests of their own."""
    assert sorted(path.stem for path in CONFIG.glob("*.yaml")) == sorted([*SHIPPED, "natural", "own"])


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_partitions_cover_all_rows_once_and_tear_no_conversation(name, even):
    rows = make_rows(120, per_conversation=2)
    parts = partition(rows, shipped(name, 4, even=even), 4, seed=0)
    assert sorted(index for part in parts for index in part) == list(range(120))
    assert all(part == sorted(part) and part for part in parts)
    owners = [{rows[index].conversation for index in part} for part in parts]
    assert sum(map(len, owners)) == len(set().union(*owners)) == 60


@pytest.mark.parametrize("name", SHIPPED)
def test_the_same_seed_gives_the_same_bytes(tmp_path, name):
    rows = make_rows(60)
    written = []
    for global_seed in (1, 2):
        np.random.seed(global_seed)
        write_partition(tmp_path / "p.json", partition(rows, shipped(name, 3, seed=7), 3, seed=7), rows)
        written.append((tmp_path / "p.json").read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize("name", ["dirichlet", "iid", "size"])
def test_another_seed_gives_other_clients(name):
    rows = make_rows(60)
    first, second = (partition(rows, shipped(name, 3, seed=seed), 3, seed=seed) for seed in (1, 2))
    assert first != second


def test_the_rows_of_shared_conversations_meet_wherever_they_stand():
    rows = [Preference(f"p{index % 10}", f"c{index}", "r") for index in range(40)]
    parts = partition(rows, IidPartitioner(5), 5, seed=0)
    assert sizes(parts) == [8] * 5
    assert all(len({rows[index].prompt for index in part}) == 2 for part in parts)


def test_iid_clients_differ_by_one_conversation_at_most_and_are_not_blocks():
    parts = partition(make_rows(100), shipped("iid", 3), 3, seed=0)
    assert sorted(sizes(parts)) == [33, 33, 34]
    assert parts[0] != list(range(len(parts[0])))


def test_published_even_blocks_are_26_26_26_of_80_rows():
    """Of 100 rows the first 80 are for training; floor(80 / 3) = 26 each, rows 78 and 79 unused."""
    rows = make_rows(80)
    parts = partition(rows, shipped("contiguous", 3), 3, seed=0)
    assert parts == [list(range(0, 26)), list(range(26, 52)), list(range(52, 78))]
    assert describe(parts, rows)["unused"] == [78, 79]


def test_even_blocks_keep_a_conversation_in_the_block_of_its_first_row():
    """Conversations have 3 of rows 0-8; blocks start at rows 0 and 4, conversation 1 begins at row 3: block 0."""
    parts = partition(make_rows(9, per_conversation=3), ContiguousPartitioner(2), 2, seed=0)
    assert parts == [[0, 1, 2, 3, 4, 5], [6, 7, 8]]


@settings(max_examples=30, deadline=None)
@given(num_clients=st.integers(1, 12), extra=st.integers(0, 10), seed=st.integers(0, 1000))
def test_random_cuts_use_every_row_in_order_and_leave_no_client_empty(num_clients, extra, seed):
    rows = make_rows(num_clients + extra)
    parts = partition(rows, ContiguousPartitioner(num_clients, even=False, seed=seed), num_clients, seed=0)
    assert [index for part in parts for index in part] == list(range(len(rows)))
    assert min(sizes(parts)) > 0


def test_random_cuts_depend_on_their_seed():
    rows = make_rows(100)
    cuts = [sizes(partition(rows, shipped("contiguous", 4, seed=seed, even=False), 4, seed=0)) for seed in (1, 1, 2)]
    assert cuts[0] == cuts[1] != cuts[2]


def test_low_alpha_gives_clients_few_groups_and_high_alpha_all():
    rows = make_rows(400)

    def largest_share(alpha):
        parts = partition(rows, shipped("dirichlet", 4, alpha=alpha, min_partition_size=1), 4, seed=0)
        return np.mean([max(Counter(rows[index].group for index in part).values()) / len(part) for part in parts])

    assert largest_share(0.05) > 0.6 > 0.35 > largest_share(1000.0)


def test_dirichlet_takes_a_list_of_alphas():
    parts = partition(make_rows(300), shipped("dirichlet", 3, alpha=[1.0, 1.0, 50.0]), 3, seed=0)
    assert sizes(parts)[2] == max(sizes(parts))


def test_as_many_clients_as_groups_get_one_group_each():
    rows = make_rows(40)
    parts = partition(rows, GroupPartitioner(4), 4, seed=0)
    assert [groups_of(part, rows) for part in parts] == [{"a"}, {"b"}, {"c"}, {"d"}]


def test_fewer_clients_than_groups_get_whole_groups_of_like_total():
    """Groups have 8, 4, 2 and 2 conversations, two clients get 8 and 4 + 2 + 2."""
    rows = make_rows(16, groups="aaaabbcdaaaabbcd")
    parts = partition(rows, GroupPartitioner(2), 2, seed=0)
    assert [groups_of(part, rows) for part in parts] == [{"a"}, {"b", "c", "d"}]


def test_more_clients_than_groups_share_the_largest_groups():
    """Group a has 12 rows and b 4, so three of 4 clients get 4 rows of a each."""
    rows = make_rows(16, groups="aaab")
    parts = partition(rows, GroupPartitioner(4), 4, seed=0)
    assert sizes(parts) == [4, 4, 4, 4]
    assert [groups_of(part, rows) for part in parts] == [{"a"}, {"a"}, {"a"}, {"b"}]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=20), st.data())
def test_group_clients_are_never_empty_and_hold_part_of_one_group_or_whole_groups(groups, data):
    num_clients = data.draw(st.integers(1, len(groups)))
    rows = make_rows(len(groups), groups=groups)
    parts = partition(rows, GroupPartitioner(num_clients), num_clients, seed=0)
    assert sorted(index for part in parts for index in part) == list(range(len(rows)))
    owners = {group: sum(group in groups_of(part, rows) for part in parts) for group in groups}
    assert all(len(groups_of(part, rows)) == 1 for part in parts) or set(owners.values()) == {1}


def test_linear_sizes_grow_by_one_unit_per_client():
    assert sizes(partition(make_rows(60), shipped("size", 3), 3, seed=0)) == [10, 20, 30]


def test_given_sizes_leave_the_rest_unused():
    rows = make_rows(10)
    parts = partition(rows, SizePartitioner([5, 2]), 2, seed=0)
    assert sizes(parts) == [5, 2]
    assert len(describe(parts, rows)["unused"]) == 3


def test_partitioning_is_silent(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        partition(make_rows(40), NaturalIdPartitioner("group"), 4, seed=0)  # shows a progress bar
        partition(make_rows(10), SizePartitioner([5, 2]), 2, seed=0)  # warns
    assert capfd.readouterr() == ("", "")


def test_the_file_says_who_has_which_rows(tmp_path):
    rows = make_rows(7, groups="ab")
    write_partition(tmp_path / "partition.json", [[0, 1, 2], [4, 6]], rows)
    found = json.loads((tmp_path / "partition.json").read_text())
    hashes = [client.pop("sha256") for client in found["clients"]]
    assert found == {
        "num_clients": 2,
        "num_rows": 7,
        "cover": True,
        "disjoint": True,
        "unused": [3, 5],
        "clients": [
            {"num_rows": 3, "groups": {"a": 2, "b": 1}, "rows": [0, 1, 2]},
            {"num_rows": 2, "groups": {"a": 2}, "rows": [4, 6]},
        ],
        "test": {"pairs": [], "conversations": []},
    }
    assert len({*hashes}) == 2 and all(len(digest) == 64 for digest in hashes)


def test_test_pairs_and_their_conversations_have_the_same_names_in_all_runs():
    said = [
        Preference("\n\nHuman: a\n\nAssistant:", "yes", "no"),
        Preference("\n\nHuman: b\n\nAssistant:", "yes", "no"),
    ]
    later = Preference("\n\nHuman: a\n\nAssistant: x\n\nHuman: y\n\nAssistant:", "yes", "no")
    found = [describe([[0, 1]], make_rows(2), test)["test"] for test in ([*said, later], [later, said[0]])]
    pairs, conversations = found[0]["pairs"], found[0]["conversations"]
    assert len({*pairs}) == 3 and conversations[0] == conversations[2] != conversations[1]
    assert found[1] == {"pairs": [pairs[2], pairs[0]], "conversations": [conversations[0]] * 2}


def test_the_hash_of_a_client_changes_with_its_text():
    rows = make_rows(4)
    changed = [*rows[:3], Preference("p3", "other", "r")]
    first, second = (describe([[0, 1], [2, 3]], data)["clients"] for data in (rows, changed))
    assert first[0] == second[0]
    assert first[1]["sha256"] != second[1]["sha256"]


def test_the_description_of_overlapping_parts_says_so():
    assert describe([[0, 1], [1, 2]], make_rows(3))["disjoint"] is False


# Errors


@pytest.mark.parametrize(
    "num_rows, num_clients, message",
    [
        (3, 4, "client_num_in_total=4 but there are 3 rows in 3 conversations"),
        (0, 1, "there are 0 rows"),
        (3, 0, "client_num_in_total=0; expected 1 or more"),
    ],
)
def test_more_clients_than_rows_names_both_numbers(num_rows, num_clients, message):
    with pytest.raises(ValueError, match=message):
        partition(make_rows(num_rows), GroupPartitioner(num_clients), num_clients, seed=0)


def test_more_clients_than_conversations_names_both_numbers():
    with pytest.raises(ValueError, match="client_num_in_total=3 but there are 8 rows in 2 conversations"):
        partition(make_rows(8, per_conversation=4), IidPartitioner(3), 3, seed=0)


def test_dirichlet_that_cannot_give_each_client_enough_says_what_to_change():
    with pytest.raises(ValueError, match=r"DirichletPartitioner cannot divide .* raise partition\.alpha") as raised:
        partition(make_rows(12), shipped("dirichlet", 10, alpha=0.01), 10, seed=0)
    assert "\n" not in str(raised.value)


def test_dirichlet_never_leaves_a_client_empty_even_if_told_it_may():
    with pytest.raises(ValueError, match=r"client \d+ of 10 would be empty: there are .*; lower client_num_in_total"):
        partition(make_rows(12), shipped("dirichlet", 10, alpha=0.1, min_partition_size=0), 10, seed=0)


def test_a_conversation_larger_than_two_blocks_leaves_a_client_empty():
    """Rows 0-6 are one conversation, blocks start at 0, 3 and 6: none begins in the second."""
    rows = [*(Preference("long", f"c{index}", "r") for index in range(7)), *make_rows(2)]
    with pytest.raises(ValueError, match="client 1 of 3 would be empty: there are 9 pairs in 3 conversations, and no"):
        partition(rows, ContiguousPartitioner(3), 3, seed=0)


def test_another_number_of_partitions_than_clients_is_refused():
    with pytest.raises(ValueError, match="IidPartitioner makes 3 clients but client_num_in_total=4"):
        partition(make_rows(10), IidPartitioner(3), 4, seed=0)


def test_an_unknown_column_is_named():
    with pytest.raises(ValueError, match=r"cannot divide .*domain"):
        partition(make_rows(10), shipped("dirichlet", 2, partition_by="domain"), 2, seed=0)


def test_a_partitioner_of_the_users_that_overlaps_is_refused():
    class Everyone:
        num_partitions = 2

        def load_partition(self, partition_id):
            return self.dataset

    with pytest.raises(ValueError, match=r"5 rows, e\.g\. row 0, have two clients"):
        partition(make_rows(5), Everyone(), 2, seed=0)
