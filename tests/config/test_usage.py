"""The page of `--help` says what the schema and the files of config/ say, and fits the terminal."""

import shlex

import pytest

from fed.config import choices, usage
from fed.config.arguments import check_arguments
from fed.config.meaning import shown, value_of
from fed.config.schema import GROUPS, Config, every_key


def test_the_page_has_the_keys_that_matter_most_with_the_defaults_and_meanings_of_the_schema() -> None:
    page = " ".join(usage.page().split())
    assert len(usage.KEYS) == len({*usage.KEYS}) == 21 and "alpha" in usage.KEYS
    for name in usage.KEYS:
        meaning = every_key()[name].doc.replace("`", "").replace("[reliability.md](", "docs/").replace(")", "")
        assert f"{name}={shown(value_of(Config(), name))} {meaning}" in page


def test_the_page_names_every_choice_and_marks_those_of_a_run_without_settings() -> None:
    page = usage.page().split()
    for group in GROUPS:
        assert {name.rstrip(",") for name in page} >= {*choices.names(group)}
    assert {"model=demo", "loss=dpo", "partition=iid", "strategy=fedpo", "privacy=none"} <= {*page}
    assert {f"experiment={name}" for name in choices.names("experiment")} <= {*page}


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_the_page_is_as_wide_as_the_terminal_but_for_what_is_to_be_typed(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    wide = [line for line in usage.page().splitlines() if len(line) > min(columns, usage.WIDEST)]
    assert not [line for line in wide if line.startswith("   ")]  # a meaning, which is wrapped
    assert columns < 80 or len(wide) <= 3


def test_what_the_page_proposes_is_accepted() -> None:
    for command, _ in usage.USES:
        _, _, *arguments = shlex.split(command)
        check_arguments(arguments)
