"""`python -m scripts.complete` against a server that answers, and one that does not."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fed.tracking.line_files import read_lines
from load_data import load_file
from scripts.complete import main
from support.records import SUPERVISED
from support.stub_server import Reply, Stub, free_port, stub_server


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Return a function that asks a server about some prompts, and returns exit code, records, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    prompts = Path("prompts.jsonl")
    prompts.write_text("".join(json.dumps({"prompt": f"question {n}", "group": "g"}) + "\n" for n in range(6)))

    def call(url: str, *more: str, out: str = "out.jsonl") -> tuple[int, list[dict[str, Any]], str, str]:
        code = main([str(prompts), "model=m", f"base_url={url}", f"out={out}", "retries=2", *more])
        captured = capsys.readouterr()
        assert "secret" not in captured.out + captured.err
        path = Path(out)
        return code, list(read_lines(path)) if path.exists() else [], captured.out, captured.err

    return call


def echo(body: Any, number: int) -> Reply:
    return Reply(f"re: {body['messages'][-1]['content']}")


def test_completions_train_as_they_are_and_are_asked_for_once(ask) -> None:
    with stub_server(echo) as server:
        code, lines, out, _ = ask(server.url, "system_prompt=Be brief.", "temperature=0.5", "concurrency=2")
        assert code == 0 and len(server.asked) == 6 and server.most_at_once <= 2
        assert server.asked[0]["messages"][0] == {"role": "system", "content": "Be brief."}
        assert server.asked[0]["temperature"] == 0.5 and server.asked[0]["seed"] == 0
        assert "6 completions; 6 calls, 60 tokens asked, 18 answered; 0 answers were kept" in out
        again = ask(server.url, "system_prompt=Be brief.", "temperature=0.5", out="again.jsonl")
        assert len(server.asked) == 6 and "0 calls" in again[2] and "6 answers were kept" in again[2]
        assert again[1] == lines
        ask(server.url, "temperature=0.6", "system_prompt=Be brief.", out="warmer.jsonl")
        assert len(server.asked) == 12, "another temperature is another question"
    assert [line["completion"] for line in lines] == [f"re: question {n}" for n in range(6)]
    rows = load_file("out.jsonl", reading=SUPERVISED).rows
    assert len(rows) == 6 and rows[0].group == "g" and rows[0].column("generator") == "m"
    assert oct(os.stat(next(Path(".cache/answers").glob("*/*"))).st_mode)[-3:] == "600"


def test_several_draws_are_several_questions(ask) -> None:
    with stub_server(lambda body, number: Reply(f"answer {body['seed']}")) as server:
        _, lines, _, _ = ask(server.url, "n=3", "limit=2", "seed=5")
    assert [line["completion"] for line in lines] == ["answer 5", "answer 6", "answer 7"] * 2
    assert len(server.asked) == 6


def test_what_is_no_completion_is_counted(ask) -> None:
    def answers(body: Any, number: int) -> Reply:
        kinds = [Reply(""), Reply("cut", finish="length"), Reply("too long", status=400), Reply("good")]
        return kinds[min(int(body["messages"][-1]["content"].split()[-1]), 3)]

    with stub_server(answers) as server:
        code, lines, out, _ = ask(server.url)
    assert code == 0 and [line["index"] for line in lines] == [3, 4, 5]
    assert "1 have no completion: an empty completion" in out
    assert "1 have no completion: cut before its end (length)" in out
    assert "1 have no completion: refused by the server (too long)" in out
    with stub_server(lambda body, number: Reply("")) as server:
        assert ask(server.url, "seed=1", out="none.jsonl")[0] == 1, "there is nothing to train on"
    assert not Path("none.jsonl").exists()


def test_a_server_that_recovers_is_asked_again_after_the_time_it_names(ask) -> None:
    def answers(body: Any, number: int) -> Reply:
        return Reply(status=429, headers={"Retry-After": "1"}) if number == 0 else echo(body, number)

    with stub_server(answers) as server:
        code, lines, _, _ = ask(server.url, "limit=1")
    assert code == 0 and len(lines) == 1 and len(server.asked) == 2
    assert server.times[1] - server.times[0] >= 0.95


@pytest.mark.parametrize(
    ("fault", "words", "asked"),
    [
        (Reply(status=401), "refuses the key (401): set OPENAI_API_KEY", 1),
        (Reply(status=429, headers={"Retry-After": "0.01"}), "still asks to wait after 2 retries (429)", 3),
        (Reply(status=500), "answers 500 after 2 retries", 3),
        (Reply(raw=b"{not json"), "answers with something that is no completion", 1),
        (Reply(raw=b'{"choices": []}'), "answers with something that is no completion", 1),
        (Reply("text", cut=True), "cannot be reached after 2 retries", None),
        (Reply("text", seconds=3), "does not answer within timeout=0.3 seconds, after 2 retries", 3),
        (Reply("no such model", status=404), "does not serve model=m (no such model); it serves other", 1),
    ],
    ids=["401", "429", "500", "no json", "no choices", "cut", "slow", "model"],
)
def test_a_server_that_fails_ends_the_job_in_one_line_and_the_work_is_kept(
    ask, fault: Reply, words: str, asked: int | None
) -> None:
    def answers(body: Any, number: int) -> Reply:
        return fault if number >= 2 else echo(body, number)

    def check(server: Stub) -> None:
        code, lines, _, err = ask(server.url, "concurrency=1", "timeout=0.3")
        assert code == 1 and lines == [] and err.count("\n") == 1, err
        assert words in err and server.url in err
        assert asked is None or len(server.asked) == 2 + asked

    with stub_server(answers, models=("other",)) as server:
        check(server)
        assert len(Path("out.jsonl.part").read_text().splitlines()) == 3, "the settings and two completions"
        server.answers = echo
        before = len(server.asked)
        code, lines, out, _ = ask(server.url, "concurrency=1", "timeout=0.3")
        assert code == 0 and len(lines) == 6 and len(server.asked) == before + 4
        assert "going on behind 2 completions" in out


def test_no_server_no_key_and_no_model_are_told_in_one_line(ask, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, _, err = ask(f"http://127.0.0.1:{free_port()}/v1", "limit=1", "retries=0")
    assert code == 1 and "cannot be reached" in err and err.count("\n") == 1
    monkeypatch.delenv("OPENAI_API_KEY")
    assert main(["prompts.jsonl", "model=m"]) == 2
    assert main(["prompts.jsonl"]) == 2
    assert main(["prompts.jsonl", "model=m", "base_url=http://127.0.0.1:1/v1", "extra_body=[1]"]) == 2


def test_a_full_disk_ends_the_job_in_one_line(ask, monkeypatch: pytest.MonkeyPatch) -> None:
    import feedback.api

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feedback.api, "write_whole", full)
    with stub_server(echo) as server:
        code, _, _, err = ask(server.url)
    assert code == 1 and "cannot write" in err and "No space left on device" in err and err.count("\n") == 1


def test_a_damaged_answer_in_the_cache_is_asked_for_again(ask) -> None:
    with stub_server(echo) as server:
        assert ask(server.url)[0] == 0 and len(server.asked) == 6
        kept = sorted(Path(".cache/answers").glob("*/*"))
        kept[0].write_text('{"text": "half')
        code, lines, out, err = ask(server.url, out="again.jsonl")
        assert (code, len(server.asked), len(lines), len(kept)) == (0, 7, 6, 6), out + err


def test_a_prompt_with_hhs_markers_is_asked_as_turns(tmp_path: Path, ask) -> None:
    Path("prompts.jsonl").write_text(
        json.dumps({"prompt": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: And?\n\nAssistant:"})
    )
    with stub_server(echo) as server:
        ask(server.url)
    assert [(m["role"], m["content"]) for m in server.asked[0]["messages"]] == [
        ("user", "Hi"), ("assistant", "Hello"), ("user", "And?"),
    ]  # fmt: skip
