"""The tokens of a run: made once, kept for the next run, and each client's own also where pairs are dropped."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import run.pairs
from fed.config.composing import request
from fed.data import token_cache
from fed.data.rows import Preference
from fed.data.splits import ClientRows, Split
from fed.model.demo import demo_tokenizer
from run.data import OwnedRows
from run.pairs import all_pairs
from support.command_line import SMALL, CommandLine
from support.rows import pairs, write


def owned(*clients: tuple[list[Preference], list[Preference]]) -> OwnedRows:
    rows = [Preference("v", "a", "b")]
    return OwnedRows(
        Split(rows, [Preference("t", "a", "b")], [], [], [ClientRows(*one) for one in clients], 0), {}, (), ()
    )


def row(number: int) -> Preference:
    return Preference(f"prompt {number}", f"chosen {number}", "rejected")


EQUAL = Preference("p" * 40, "same start a", "same start b")  # equal once cut


def tokens(rows: OwnedRows, cache: Path, *more: str) -> run.pairs.Pairs:
    config = request([f"cache_dir={cache}", "max_length=36", "max_prompt_length=30", *more]).config
    return all_pairs(rows, SimpleNamespace(tokenizer=demo_tokenizer()), config)  # type: ignore[arg-type]


def test_each_client_has_its_own_pairs_also_where_some_are_dropped(tmp_path: Path) -> None:
    rows = owned(([row(0), EQUAL, row(1)], [row(2)]), ([EQUAL, row(3)], [EQUAL]), ([row(4)], []))
    found = tokens(rows, tmp_path)
    decode = demo_tokenizer().decode
    texts = [
        [[decode(one.prompt) for one in part] for part in (client.train, client.held_out)] for client in found.clients
    ]
    assert texts == [[["prompt 0", "prompt 1"], ["prompt 2"]], [["prompt 3"], []], [["prompt 4"], []]]
    assert [decode(one.prompt) for one in (*found.validation, *found.test)] == ["v", "t"]
    assert found.cuts.dropped == {"both responses equal once they are cut": 3}
    (client,) = tokens(rows, tmp_path, "mode=centralized").clients
    assert [decode(one.prompt) for one in client.train] == [f"prompt {n}" for n in (0, 1, 3, 4)]


def test_a_client_without_a_pair_left_is_refused(tmp_path: Path) -> None:
    told = r"client 1 has no pair left to train on \(1 both responses equal once they are cut\); raise max_length"
    with pytest.raises(ValueError, match=told):
        tokens(owned(([row(0)], []), ([EQUAL], [])), tmp_path)


def test_a_second_run_reads_the_tokens_of_the_first(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run.pairs, "MANY", 10)
    monkeypatch.setattr(run.pairs, "ENTRIES", 2)
    first = command_line(*SMALL)
    folder = tmp_path / "cache" / "tokens_of_runs"
    assert len(list(folder.iterdir())) == 1 and folder.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(token_cache, "tokenize", lambda *a, **k: pytest.fail("made again"))
    assert command_line(*SMALL).lines() == first.lines()


def test_the_tokens_of_the_newest_runs_are_kept(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run.pairs, "MANY", 10)
    monkeypatch.setattr(run.pairs, "ENTRIES", 2)
    for seed in range(3):
        assert command_line(*SMALL, f"seed={seed}").code == 0
    assert len(list((tmp_path / "cache" / "tokens_of_runs").iterdir())) == 2


def test_text_that_spells_special_tokens_and_a_template_that_is_not_used_are_told(
    command_line: CommandLine, tmp_path: Path
) -> None:
    spelt = [{**pair, "prompt": f"<|endoftext|>{pair['prompt']}"} for pair in pairs(60)]
    path = write(tmp_path / "mine.jsonl", spelt)
    result = command_line(*SMALL, "datasets=[files]", f"data_dir={path}")
    assert "the text spells special tokens such as <|endoftext|>, which stay text; docs/data.md" in result.out
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}")
    own = ["datasets=[files]", f"data_dir={path}", "text_as_chat=true", f"chat_template={template}"]
    result = command_line(*SMALL, *own)
    assert f"form: pairs of chosen and rejected; conversations through the chat template {template}\n" in result.out
    saved = json.loads((result.run / "policy" / "tokenizer_config.json").read_text()).get("chat_template")
    assert (
        saved == template.read_text()
        or (result.run / "policy" / "chat_template.jinja").read_text() == template.read_text()
    )
