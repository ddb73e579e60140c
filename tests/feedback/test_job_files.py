"""Files of results that a killed job goes on with."""

import json
from pathlib import Path
from typing import Any

import pytest

from feedback.job_files import JobFile, part_of


def job(out: Path, **settings: Any) -> JobFile:
    return JobFile(out, {"temperature": 1, **settings}, lambda line: line["index"])


def test_results_appear_whole_and_in_order_and_a_killed_job_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "folder" / "out.jsonl"
    with job(out) as file:
        file.add([{"index": 2, "text": "é"}, {"index": 0, "text": "\u2028"}])
        assert not out.exists() and file.done == {0, 2}
    part = out.with_name("out.jsonl.part")
    part.write_bytes(part.read_bytes() + '{"index": 1, "text": "é'.encode()[:-1])
    with job(out) as file:
        assert file.done == {0, 2}
        file.add([{"index": 1, "text": "x"}])
        assert [line["index"] for line in file.finish()] == [0, 1, 2]
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n")[:-1]]
    assert lines == [{"index": 0, "text": "\u2028"}, {"index": 1, "text": "x"}, {"index": 2, "text": "é"}]
    assert list(out.parent.iterdir()) == [out]


def test_a_job_begun_otherwise_and_one_that_is_done_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with job(out) as file:
        file.add([{"index": 0}])
    with (
        pytest.raises(ValueError, match=r"out.jsonl.part was begun with temperature=1, not 2; remove it to begin"),
        job(out, temperature=2),
    ):
        pass
    with job(out) as file:
        with pytest.raises(ValueError, match="another process writes"), job(out):
            pass
        file.finish()
    with pytest.raises(ValueError, match=r"out.jsonl exists; give another out=, or remove it"), job(out):
        pass


def test_shards_hold_each_item_once() -> None:
    items = [f"p{n}" for n in range(33)]
    parts = [part_of(items, f"{shard}/8") for shard in range(8)]
    assert sorted(item for part in parts for item in part) == sorted(enumerate(items))
    assert {len(part) for part in parts} == {4, 5} and part_of(items, None) == list(enumerate(items))
    for wrong in ("8/8", "1", "-1/2", "a/b", "1/0", "1/2/3"):
        with pytest.raises(ValueError, match=f"shard={wrong} is no share; expected i/n"):
            part_of(items, wrong)


@pytest.mark.parametrize(
    "content", ["garbage\n", "[1]\n", '{"settings": {"n": 1}}\n[1]\n', '{"settings": {"n": 1}}\n{}\n']
)
def test_a_damaged_part_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "out.jsonl.part").write_text(content)
    with (
        pytest.raises(ValueError, match=r"out.jsonl.part is damaged; remove it to begin anew"),
        JobFile(tmp_path / "out.jsonl", {"n": 1}, lambda line: line["number"]),
    ):
        pass


def test_a_part_without_results_does_not_bind(tmp_path: Path) -> None:
    with job(tmp_path / "out.jsonl"):
        pass
    with job(tmp_path / "out.jsonl", temperature=2) as file:
        file.add([{"index": 0}])
    with pytest.raises(ValueError, match="begun with temperature=2, not 1"), job(tmp_path / "out.jsonl"):
        pass
