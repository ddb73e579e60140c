"""A process that is given a bad input refuses it with one line and leaves nothing behind."""

from pathlib import Path

import pytest

from support.bad_inputs import BAD_INPUTS, BadInput
from support.separate_runs import call

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("bad", BAD_INPUTS, ids=lambda bad: f"{bad.kind}: {bad.name}")
def test_a_bad_input_is_refused(tmp_path: Path, bad: BadInput) -> None:
    folder, work = tmp_path / "input", tmp_path / "work"
    folder.mkdir()
    work.mkdir()
    typed = bad.arguments(folder)
    cache = [] if any(word.startswith("cache_dir=") for word in typed) else [f"cache_dir={tmp_path / 'cache'}"]
    ended = call(work, *typed, *cache)
    *_, said = ended.text.splitlines() or [""]
    assert ended.code == 2 and said.startswith("error: ") and ended.text.count("error: ") == 1, ended.text
    assert all(word in said for word in bad.words.split()), said
    assert [path.name for path in work.iterdir()] == ["log"]
