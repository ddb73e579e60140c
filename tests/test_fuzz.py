"""Any bytes in a data file give rows or one clear error, in time. FUZZ_EXAMPLES=20000 looks longer."""

import gzip
import json
import os
import re
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fed.data.html import text_of_html
from fed.data.rows import SplitName
from load_data import load

FUZZ = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "100")),
    deadline=timedelta(seconds=5),
    derandomize="FUZZ_EXAMPLES" not in os.environ,  # the usual look is the same each time; a longer one is another
    suppress_health_check=list(HealthCheck),
)
FROM_FILES = ("files", "hh", "se", "shp")  # the others are read by these

# Records that make rows, and values that their fields should not have


def rarely(odd: st.SearchStrategy[Any], usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Draw the odd ones one time in twenty: most files should make rows."""
    return st.integers(0, 19).flatmap(lambda number: odd if number == 13 else usual)


PIECES = (
    "\n\nHuman:",
    "\n\nAssistant:",
    " hi",
    " you",
    "<p>a</p>",
    "&lt;",
    "<li>",
    "<code>",
    "é",
    "\0",
    "\u2028",
    "\r\n",
)
TEXTS = rarely(st.text(max_size=20) | st.just("\ud800"), st.lists(st.sampled_from(PIECES), max_size=6).map("".join))
ANSWERS = st.fixed_dictionaries({"text": TEXTS, "pm_score": st.integers(-2, 9)})
RECORDS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "hh": st.builds(
        lambda start, *ends: dict(zip(("chosen", "rejected"), [start + end for end in ends], strict=True)),
        TEXTS.map(lambda text: f"\n\nHuman:{text}\n\nAssistant:"),
        TEXTS,
        TEXTS,
    ),
    "files": st.fixed_dictionaries(
        {"prompt": TEXTS, "chosen": TEXTS, "rejected": TEXTS}, optional={"group": TEXTS, "other": st.none()}
    ),
    "se": st.fixed_dictionaries({"question": TEXTS, "answers": st.lists(ANSWERS, max_size=4)}),
    "shp": st.fixed_dictionaries(
        {"history": TEXTS, "human_ref_A": TEXTS, "human_ref_B": TEXTS, "domain": TEXTS}
        | {"labels": st.integers(0, 1), "score_ratio": st.floats(0, 9)}
    ),
}
NUMBERS = st.sampled_from([0, -1, True, 10**400, 1.5, float("nan"), float("inf"), -0.0])
VALUES = st.recursive(
    st.none() | NUMBERS | TEXTS | st.sampled_from(["a" * 100_000, "<a " * 10_000, "\n\nAssistant:" * 10_000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "pm_score"]), inner),
    max_leaves=5,
)


@st.composite
def lines(draw: st.DrawFn, name: str) -> bytes:
    """Draw one record, now and then with a field that is missing, of another type, or there twice."""
    record = draw(RECORDS[name])
    changed = draw(st.sampled_from([None, *record]))
    change = draw(rarely(st.sampled_from(["drop", "value", "twice"]), st.just("none")))
    if changed is not None and change == "drop":
        record = {key: value for key, value in record.items() if key != changed}
    elif changed is not None and change == "value":
        record = record | {changed: draw(VALUES)}
    text = json.dumps(record, ensure_ascii=draw(st.booleans()))
    if changed is not None and change == "twice":
        text = f'{{"{changed}": {json.dumps(draw(VALUES))}, {text[1:]}'
    return text.encode("utf-8", "surrogatepass")


LONG_LINES = (b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"{" + b" " * 10**6, b'{"prompt":"' + b"a" * 10**6)
SHORT_LINES = (
    b"",
    b"  \r",
    b"NaN",
    b"null",
    b'"text"',
    b"[]",
    b"{}",
    b'{"\\ud800": 1}',
    b"\xff\xfe{\0}\0",
    b"\x1f\x8b\x08",
    b"\x85",
)
FOREIGN_LINES = st.binary(max_size=60) | st.sampled_from(SHORT_LINES) | st.sampled_from(LONG_LINES)
INSERTED = st.binary(min_size=1, max_size=4) | st.sampled_from(
    [b"\xef\xbb\xbf", b"\0", b"\xed\xa0\x80", b"\\ud800", b"\n", b"\r", b"\\", b'"', b"{", b"}", b"\x1f\x8b"]
)


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Leave the bytes as they are, or cut them, flip bits, insert bytes, or repeat or remove a part."""
    data = draw(whole)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        place = draw(st.integers(0, len(data)))
        end = draw(st.integers(place, min(place + 50, len(data))))
        damage = draw(st.sampled_from(["cut", "turn", "insert", "repeat", "remove"]))
        if damage == "cut":
            data = data[:place]
        elif damage == "turn" and place < len(data):
            data = data[:place] + bytes([data[place] ^ 1 << draw(st.integers(0, 7))]) + data[place + 1 :]
        elif damage == "insert":
            data = data[:place] + draw(INSERTED) + data[place:]
        elif damage == "repeat":
            data = data[:place] + data[place:end] * draw(st.integers(2, 300)) + data[end:]
        elif damage == "remove":
            data = data[:place] + data[end:]
    return data


@st.composite
def files(draw: st.DrawFn, name: str) -> tuple[str, bytes]:
    """Draw a file's ending and content."""
    good = st.lists(rarely(FOREIGN_LINES, lines(name)), min_size=1, max_size=6).map(b"\n".join)
    data = draw(rarely(st.binary(max_size=200), damaged(good)))
    data = draw(rarely(st.just(data.decode("utf-8", "replace").encode("utf-16")), st.just(data)))
    ending = draw(st.sampled_from([".jsonl", ".jsonl", ".jsonl.gz"]))
    if draw(rarely(st.booleans(), st.just(ending.endswith(".gz")))):
        data = draw(damaged(st.just(gzip.compress(data, 1))))
    return ending, data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("name", FROM_FILES)
def test_any_bytes_in_a_data_file_give_rows_or_one_clear_error(folder: Path, name: str) -> None:
    made = []

    @FUZZ
    @given(file=files(name), split=st.sampled_from(["train", "test"]), alone=st.booleans())
    def check(file: tuple[str, bytes], split: SplitName, alone: bool) -> None:
        ending, data = file
        for old in folder.iterdir():
            old.unlink()
        path = folder / f"a-{split}{ending}"
        path.write_bytes(data)
        if not alone:
            (folder / f"b-{'test' if split == 'train' else 'train'}.jsonl").write_bytes(b"not read")
        made.append(rows_or_error(name, split, path, path if alone else folder))

    check()
    assert sum(made) > len(made) / 50, "most files are too bad to test anything but the first line"


def rows_or_error(name: str, split: SplitName, path: Path, data_dir: Path) -> bool:
    """Return True if there are rows; a tokenizer takes their texts.

    Otherwise one line names the file, and the place in it where that is known.
    """
    try:
        rows = load([name], split, data_dir=str(data_dir), seed=0).rows
    except ValueError as error:
        message = str(error)
        assert len(message.splitlines()) == 1 and len(message) < 2 * len(str(path)) + 500, message
        whole_file = (
            f"the {split} split of {name} has no rows",
            f"{path} is ",
            f"{path} has ",
            f"{path} holds, inside gzip,",
        )
        line = re.escape(f"{path}:") + "[1-9][0-9]*: (no field|.*expected|.*save the file)"
        assert message.startswith(whole_file) or re.match(line, message), message
        return False
    assert rows
    for row in rows:
        assert row.chosen.strip() and row.rejected.strip() and row.chosen != row.rejected
        for text in (row.prompt, row.chosen, row.rejected, row.group, row.conversation):
            text.encode()
    return True


MARKUP = (
    *("<", "<!", "<!--", "-->", "<a ", "<a b='", '="', ">", "/>", "</", "<p>", "<li>", " ", "</li>", "<pre>", "</pre>"),
    *(
        "<script>",
        "</script",
        "&",
        "&#",
        "&#xd800;",
        "&amp;",
        "<br>",
        "- ",
        "\n\n",
        "x",
        "<?",
        "<![CDATA[",
        "]]>",
        "\0",
    ),
)


@FUZZ
@given(st.lists(st.tuples(st.sampled_from(MARKUP) | st.text(max_size=5), st.integers(1, 300)), max_size=12))
def test_any_html_gives_text(parts: list[tuple[str, int]]) -> None:
    text = text_of_html("".join(part * count for part, count in parts))
    assert text == text.strip() and text.count("<code>") >= text.count("<pre>")


@pytest.mark.parametrize("around", [("", ""), ("<a ", ">"), ("<a ", '=">"'), ("<li>", ""), ("<pre>", "")])
def test_no_html_takes_more_than_its_length_in_time(around: tuple[str, str]) -> None:
    """Python's own parser takes half a minute for fifty thousand characters of "<a "."""
    began = time.process_time()
    for part in MARKUP:
        text_of_html(around[0] + part * (50_000 // len(part)) + around[1])
    assert time.process_time() - began < 10


def test_a_line_without_end_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fed.data.readers.LONGEST_LINE", 100)
    path = folder / "endless.jsonl"
    path.write_text('{"prompt": "p", "chosen": "c", "rejected": "r"}\n' + "x" * 101)
    with pytest.raises(ValueError, match=r"endless\.jsonl:2: the line is longer than 100 bytes, expected one object"):
        load(["files"], "train", data_dir=str(path), seed=0)
