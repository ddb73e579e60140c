"""Rows of a run by owner: the server's, the test's and each client's."""

from dataclasses import replace

import pytest

from fed.data.divide import partition
from fed.data.partition import ContiguousPartitioner
from fed.data.partition_file import describe
from fed.data.rows import Preference
from fed.data.splits import Split, SplitSettings, split_rows

SETTINGS = SplitSettings(0, False, None, server_fraction=0.2, client_eval_fraction=0.0, n_eval_examples=99,
                         n_test_examples=99)  # fmt: skip


def rows(prompts: str) -> list[Preference]:
    return [Preference(prompt, "c", "r") for prompt in prompts]


def split(train: str, validation: str = "", test: str = "") -> Split:
    return split_rows(rows(train), rows(validation), rows(test), lambda pool: [list(range(len(pool)))], SETTINGS)


def test_published_servers_rows_are_the_last_22_of_100() -> None:
    """They are a fifth of 100 rows and the two that three equal blocks of the other 80 leave."""
    own, partitioner = [Preference(str(i), "c", "r") for i in range(100)], ContiguousPartitioner(3)
    settings = replace(SETTINGS, server_last=partitioner.server_last)
    found = split_rows(own, [], [], lambda pool: partition(pool, partitioner, 3, seed=0), settings)
    assert found.validation == own[78:]
    assert [client.train for client in found.clients] == [own[0:26], own[26:52], own[52:78]]
    assert found.pool == own[:78] and describe(found.parts, found.pool)["unused"] == []


def test_validation_rows_are_the_servers_and_all_training_rows_the_clients() -> None:
    found = split("abcdefghij", validation="vw", test="t")
    assert found.validation == rows("vw") and found.clients[0].train == rows("abcdefghij") and found.overlapping == 0


def test_no_conversation_has_two_owners() -> None:
    found = split("abcdvt", validation="vwt", test="t")
    assert found.validation == rows("vw") and found.clients[0].train == rows("abcd")
    assert found.overlapping == 3  # v and t of the training rows, t of the server's


def test_training_rows_that_are_all_tested_on_are_told_with_their_conversation() -> None:
    with pytest.raises(
        ValueError, match=r"all 3 training pairs are of conversations.* such as 's'.*field conversation"
    ):
        split("sss", test="s")


def test_validation_rows_that_are_all_tested_on_are_told_and_not_replaced_by_training_rows() -> None:
    with pytest.raises(ValueError, match=r"all 2 validation pairs .* also in the test pairs, such as 'v'; give other"):
        split("abcd", validation="vw", test="vwx")
