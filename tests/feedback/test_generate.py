"""`python -m scripts.generate`: responses to prompts of any file, in shards, and again after a kill."""

import json
from pathlib import Path
from typing import Any

import pytest

import feedback.responses
from fed.data.rows import Turn
from fed.tracking.line_files import read_lines
from load_data import load_file
from scripts.generate import main
from support.records import SUPERVISED
from support.scripted import save_scripted
from support.templates import CHATML


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Return a function that runs the command on 33 prompts; the model goes on in the alphabet up to h."""
    monkeypatch.chdir(tmp_path)
    save_scripted(Path("model"), "abcdefgh")
    lines = [{"prompt": f"{'x' * (n % 5)}{'abcdefgh'[n % 8]}", "group": f"g{n % 3}", "n": n} for n in range(33)]
    Path("prompts.jsonl").write_text(
        "".join(json.dumps({**line, "prompt": f"{n}{line['prompt']}"}) + "\n" for n, line in enumerate(lines))
    )

    def call(*arguments: str, out: str = "out.jsonl", files: tuple[str, ...] = ("prompts.jsonl",)) -> Any:
        code = main(["model", *files, f"out={out}", "device=cpu", *arguments])
        captured = capsys.readouterr()
        return code, list(read_lines(Path(out))) if Path(out).exists() else [], captured.out, captured.err

    return call


def test_33_prompts_give_33_responses_that_train(asked) -> None:
    code, lines, out, _ = asked("temperature=0", "max_new_tokens=4", "batch_size=32")
    assert code == 0 and [line["index"] for line in lines] == list(range(33))
    for line in lines:
        rest = "abcdefgh".partition(line["prompt"][-1])[2]
        assert (
            line["completion"] == rest[:4] and line["generator"] == "model" and line["group"] == f"g{line['index'] % 3}"
        )
        ended = len(rest) < 4
        assert line["finish_reason"] == ("stop" if ended else "length") and line["tokens"] == (
            len(rest) + 1 if ended else 4
        )
    cut = sum(line["finish_reason"] == "length" for line in lines)
    assert f"33 responses drawn, {cut} of them cut at 4 tokens" in out
    rows = load_file("out.jsonl", reading=SUPERVISED)
    assert len(rows.rows) == sum(bool(line["completion"]) for line in lines) and rows.rows[0].column("n") == "0"


def test_shards_draw_together_what_one_job_draws(asked) -> None:
    how = ("temperature=5", "top_p=0.95", "n=2", "max_new_tokens=6", "batch_size=7")
    _, whole, _, _ = asked(*how)
    parts = [asked(*how, f"shard={shard}/4", out=f"{shard}.jsonl")[1] for shard in range(4)]
    found = sorted((line for part in parts for line in part), key=lambda line: (line["index"], line["draw"]))
    assert found == whole and len(whole) == 66
    assert asked(*how, "seed=1", out="other.jsonl")[1] != whole


def test_a_killed_job_goes_on_to_the_same_bytes(asked, monkeypatch: pytest.MonkeyPatch) -> None:
    how = ("temperature=5", "max_new_tokens=6", "batch_size=4")
    asked(*how)
    drawn, original = [], feedback.responses.generate

    def killed(*arguments: Any, on_batch: Any, **named: Any) -> Any:
        def count(places: Any, responses: Any) -> None:
            on_batch(places, responses)
            drawn.append(len(places))
            if len(drawn) == 3:
                raise KeyboardInterrupt

        return original(*arguments, on_batch=count, **named)

    monkeypatch.setattr(feedback.responses, "generate", killed)
    assert asked(*how, out="cut.jsonl")[0] == 130 and not Path("cut.jsonl").exists()
    monkeypatch.setattr(feedback.responses, "generate", original)
    code, _, out, _ = asked(*how, out="cut.jsonl")
    assert code == 0 and "going on behind 12 responses" in out and "21 responses drawn" in out
    assert Path("cut.jsonl").read_bytes() == Path("out.jsonl").read_bytes()


def test_stop_strings_end_responses_and_are_no_part_of_them(asked) -> None:
    _, lines, _, _ = asked("temperature=0", "stop=[ef,zz]", "limit=3")
    assert [line["completion"] for line in lines] == ["bcd", "cd", "d"]
    assert {line["finish_reason"] for line in lines} == {"stop"} and lines[0]["tokens"] == 5


def test_a_model_with_a_template_is_asked_through_it(asked) -> None:
    save_scripted(Path("model"), "abcdefgh", chat_template=CHATML)
    _, lines, _, _ = asked("temperature=0", "limit=2", "system_prompt=Be brief.")
    assert lines[0]["prompt"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "0a"},
    ]
    assert load_file("out.jsonl", reading=SUPERVISED).rows[0].prompt.turns[1] == Turn("user", "0a")
    _, plain, _, _ = asked("temperature=0", "limit=2", "text_as_chat=false", out="plain.jsonl")
    assert plain[0]["prompt"] == "0a" and plain[0]["completion"] == "bcdefgh"
    _, marked, _, _ = asked("temperature=0", "limit=1", "chat_template=none", "text_as_chat=true", out="marked.jsonl")
    assert marked[0]["prompt"] == "\n\nHuman: 0a\n\nAssistant:"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("temperature=-1",), "temperature=-1 is out of range"),
        (("top_p=0",), "top_p=0 is no share"),
        (("n=0",), "n=0 is too small"),
        (("shard=3/3",), "shard=3/3 is no share"),
        (("column=text",), "no field 'text', which columns.prompt names"),
        (("max_prompt_length=0",), "max_prompt_length=0 is too small"),
        (("chat_template=none.jinja",), "chat_template=none.jinja cannot be read"),
        (("round=1",), "round=1 needs the folder of a run"),
        (("dtype=int3",), "int3"),
        (("--n=2",), "--n=2 is no option"),
        (("device=tpu",), "device=tpu cannot be used"),
        (("datasets=[hh]",), "both name rows"),
        (("data_dir=x",), "data_dir has no effect without datasets="),
    ],
)
def test_mistakes_are_told_in_one_line(asked, arguments: tuple[str, ...], told: str) -> None:
    code, lines, _, err = asked(*arguments)
    assert code == 2 and told in err and err.count("\n") == 1 and lines == []


def test_a_model_without_a_run_needs_prompts(asked) -> None:
    code, _, _, err = asked(files=())
    assert code == 2 and "nothing says what to read: model is no run; give files, or datasets=" in err
