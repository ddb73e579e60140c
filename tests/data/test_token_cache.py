"""The cache returns the tokens that the process would make itself."""

import numpy as np
import pytest

from fed.data import token_cache
from fed.data.chat import ChatSettings
from fed.data.rows import Chat, Preference, Turn
from fed.data.token_cache import tokenize_once
from fed.data.tokens import Lengths, tokenize
from fed.files import read_array, write_array
from fed.model.demo import demo_tokenizer
from load_data import load

TOKENIZER = demo_tokenizer()
HOW = {"lengths": Lengths(60, 30), "chat": ChatSettings()}
ROWS = load(["demo"], "train", data_dir=None, seed=0).rows[:20]
ROWS[3] = Preference("\n\nHuman: é\u200b\n\nAssistant:", " ", "\0 </s> " * 30, truncation="keep_start")


@pytest.fixture
def made(monkeypatch):
    """Record the number of rows in each call that tokenizes."""
    counts = []

    def counted(rows, tokenizer, **how):
        counts.append(len(rows))
        return tokenize(rows, tokenizer, **how)

    monkeypatch.setattr(token_cache, "tokenize", counted)
    return counts


def once(cache, rows=ROWS, tokenizer=TOKENIZER, **how):
    return comparable(tokenize_once(rows, tokenizer, cache=cache, **{**HOW, **how}))


def comparable(found):
    return list(found.examples), found.kept.tolist(), found.cuts


def test_tokens_are_made_once(tmp_path, made):
    expected = comparable(tokenize(ROWS, TOKENIZER, **HOW))
    assert once(tmp_path / "new" / "tokens") == once(tmp_path / "new" / "tokens") == expected
    assert made == [20]
    assert (tmp_path / "new" / "tokens").stat().st_mode & 0o077 == 0  # they are the owner's texts


def test_no_rows_leave_no_file(tmp_path, made):
    assert once(tmp_path / "tokens", [])[0] == [] and not (tmp_path / "tokens").exists()


def test_whatever_decides_the_tokens_makes_another_entry(tmp_path, made):
    end = demo_tokenizer()
    end.eos_token = "a"
    more = demo_tokenizer()
    more.add_tokens(["Human"])
    swapped = [Preference(r.prompt, r.rejected, r.chosen) for r in ROWS]
    moved = [Preference(ROWS[0].prompt + ROWS[0].chosen[:1], ROWS[0].chosen[1:], ROWS[0].rejected), *ROWS[1:]]
    start = [Preference(r.prompt, r.chosen, r.rejected, truncation="keep_start") for r in ROWS]
    ways = [
        {},
        {"lengths": Lengths(61, 30)},
        {"lengths": Lengths(60, 29)},
        {"lengths": Lengths(60, 30, "keep_start")},
        {"chat": ChatSettings(chat_template="none", text_as_chat=True)},
        *({"tokenizer": tokenizer} for tokenizer in (end, more)),
        *({"rows": rows} for rows in (swapped, moved, start, ROWS[1:], ROWS[::-1])),
    ]
    for _ in range(2):
        for way in ways:
            given = {"rows": ROWS, "tokenizer": TOKENIZER, **HOW, **way}
            assert once(tmp_path, **way) == comparable(tokenize(**given)), way
    assert len(made) == len(ways)


@pytest.mark.parametrize(
    "damage", ["cut", "empty", "floats", "a token too many", "an unknown token", "another head", "gone"]
)
def test_a_damaged_entry_is_made_anew(tmp_path, made, damage):
    expected = once(tmp_path)
    (entry,) = tmp_path.iterdir()
    values = read_array(entry)
    if damage == "cut":
        entry.write_bytes(entry.read_bytes()[:-3])
    elif damage == "empty":
        entry.write_bytes(b"")
    elif damage == "gone":
        entry.unlink()
    else:
        values = np.append(values, values[-2:]) if damage == "a token too many" else values.copy()
        values = values.astype(np.float64) if damage == "floats" else values
        if damage == "an unknown token":
            values[-2:] = np.frombuffer(np.uint16(len(TOKENIZER)).tobytes(), np.uint8)
        elif damage == "another head":
            values[9] = ord("!")
        write_array(entry, values)
    assert once(tmp_path) == expected
    assert once(tmp_path) == expected
    assert made == [20, 20]


def test_a_tokenizer_with_code_of_its_own_is_run_each_time(tmp_path, made):
    class Words(type(TOKENIZER)):
        pass

    words = Words(tokenizer_object=TOKENIZER.backend_tokenizer, eos_token=TOKENIZER.eos_token)
    assert once(tmp_path, tokenizer=words) == once(tmp_path, tokenizer=words)
    assert made == [20, 20] and not list(tmp_path.iterdir())


def test_conversations_and_counts_come_back(tmp_path, made):
    chats = [
        Preference(Chat((Turn("user", f"q{n}"),)), Turn("assistant", "a" * n), Turn("assistant", "b")) for n in (1, 90)
    ]
    tokenizer = demo_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ':' + m.content }}{% endfor %}"
    refused = Preference(Chat((Turn("user", "q", '{"tool_calls": 1}'),)), "a", "b")
    tokenizer.chat_template += "{% if messages[0].tool_calls %}{{ raise_exception('no tools') }}{% endif %}"
    first, again = (tokenize_once([*chats, refused], tokenizer, cache=tmp_path, **HOW) for _ in range(2))
    assert made == [3] and comparable(first) == comparable(again)
    assert again.kept.tolist() == [True, True, False]
    assert (again.cuts.pairs, again.cuts.tokens) == (1, 71)
    assert again.cuts.dropped == {"refused by the chat template (TemplateError: no tools)": 1}
    assert again.cuts.remarks == {"the chat template ends no turn with a special token: end-of-text is added": 2}
