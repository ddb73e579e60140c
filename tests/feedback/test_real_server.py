"""The commands and an online run against `transformers serve`, on a model whose answers are known."""

import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fed.tracking.line_files import read_lines
from scripts import complete, judge
from support.command_line import CommandLine, Result
from support.served_judge import PROMPT, TEXT, save_served_judge
from support.stub_server import free_port

LONGEST = 240  # seconds that the server lives
MISSING = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"transformers serve needs {', '.join(MISSING)}")
# The server ends itself, even if nobody is left to end it.
SERVE = f"""
import runpy, signal
signal.alarm({LONGEST})
runpy.run_module("transformers.cli.transformers", run_name="__main__", alter_sys=True)
"""


class Served(NamedTuple):
    """A server that runs, and the file to which it prints each request."""

    model: str
    url: str
    log: Path

    @property
    def asked(self) -> dict[str, int]:
        """How many questions have been answered, at each of two places."""
        text = self.log.read_text()
        return {place: text.count(f'"POST /v1/{place} HTTP/1.1" 200') for place in ("chat/completions", "systemone")}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve the model, under the path of its folder."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "home" / "hub").mkdir(parents=True)  # without it the list of models is an error
    model, port, log = save_served_judge(folder / "model"), free_port(), folder / "log"
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    where = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--default-seed", "0"]
    command = [sys.executable, "-c", SERVE, "serve", str(model), *where]
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=folder, stdout=out, stderr=out, env={**os.environ, **offline, "OMP_NUM_THREADS": "1"}
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield Served(str(model), f"http://127.0.0.1:{port}/v1", log)
    finally:
        process.kill()
        process.wait(30)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(0.1)


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Return a function that calls a command about some prompts or pairs; it gives exit code, records and output."""
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(PROMPT)
    questions = [{"prompt": [{"role": "user", "content": f"question {n}"}]} for n in range(4)]
    drawn = [
        {**question, "completion": f"{'ja é' if (n + draw) % 2 == 0 else 'ja e'} {draw}", "index": n, "draw": draw}
        for n, question in enumerate(questions)
        for draw in range(2)
    ]
    for name, records in (("prompts", questions), ("two", drawn)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    def call(command: Any, *arguments: str) -> tuple[int, list[dict[str, Any]], str, str]:
        capsys.readouterr()
        file = "prompts.jsonl" if command is complete else "two.jsonl"
        code, out = command.main([file, *arguments, "out=out.jsonl", "retries=0"]), Path("out.jsonl")
        captured = capsys.readouterr()
        return code, list(read_lines(out)) if out.exists() else [], captured.out, captured.err

    return call


def test_completions_arrive_for_all_prompts_and_are_asked_for_once(ask, served: Served) -> None:
    where = (f"model={served.model}", f"base_url={served.url}", "max_tokens=20")
    before = served.asked["chat/completions"]
    code, lines, out, _ = ask(complete, *where)
    assert code == 0 and served.asked["chat/completions"] == before + 4 and "4 calls" in out
    assert [(line["completion"], line["tokens"], line["finish_reason"]) for line in lines] == [(TEXT, 10, "stop")] * 4
    Path("out.jsonl").unlink()
    code, again, out, _ = ask(complete, *where)
    assert code == 0 and again == lines and "0 calls" in out and "4 answers were kept" in out
    assert served.asked["chat/completions"] == before + 4
    Path("out.jsonl").unlink()
    code, _, out, _ = ask(complete, *where[:2], "max_tokens=5")
    assert code == 1 and "4 have no completion: cut before its end (length)" in out


@pytest.mark.parametrize("answers", ["text", "json", "letters"])
def test_prose_is_no_judgement(ask, served: Served, answers: str) -> None:
    """This server ignores that JSON or probabilities are wanted, so the model writes its text all the same."""
    where = ("judge=helpful", f"model={served.model}", f"base_url={served.url}", f"answers={answers}")
    code, lines, out, err = ask(judge, *where)
    assert code == 1 and err == "" and "4 pairs without a judgement: an answer that is no judgement" in out
    assert [line["winner"] for line in lines] == [None] * 4
    assert {line[order] for line in lines for order in ("raw_ab", "raw_ba")} == {
        TEXT[0] if answers == "letters" else TEXT
    }


def test_a_choice_follows_the_better_response_in_both_orders(ask, served: Served) -> None:
    before = served.asked["systemone"]
    where = (f"model={served.model}", f"base_url={served.url}", "answers=choice")
    code, lines, out, _ = ask(judge, "judge=own.yaml", *where)
    assert code == 0 and "a 2, b 2, ties 0" in out and served.asked["systemone"] == before + 8
    assert [line["winner"] for line in lines] == ["a", "b", "a", "b"]
    assert [line["raw_ab"] + line["raw_ba"] for line in lines] == ["ab", "ba", "ab", "ba"]
    shares = [line["share_a"] for line in lines]
    assert 0.9 < shares[0] < 1 and shares == pytest.approx([shares[0], 1 - shares[0]] * 2, abs=1e-6)


def test_a_choice_by_the_place_is_a_tie(ask, served: Served) -> None:
    """Both responses stand in the front half of the prompt `helpful`, so the model always chooses the first."""
    where = ("judge=helpful", f"model={served.model}", f"base_url={served.url}", "answers=choice")
    code, lines, out, _ = ask(judge, *where)
    assert code == 0 and "a 0, b 0, ties 4" in out and "a judge that goes by the place gives ties: 100.0%" in out
    assert {line["raw_ab"] + line["raw_ba"] for line in lines} == {"aa"}
    assert all(abs(line["share_a"] - 0.5) < 0.01 for line in lines)


@pytest.mark.parametrize(
    ("command", "more", "told"),
    [
        (complete, (), "4 have no completion"),
        (judge, ("judge=helpful",), "4 pairs without a judgement"),
        (judge, ("judge=helpful", "answers=choice"), "4 pairs without a judgement"),
    ],
)
def test_another_models_name_is_told_in_one_line(
    ask, served: Served, command: Any, more: tuple[str, ...], told: str
) -> None:
    code, _, out, err = ask(command, "model=another", f"base_url={served.url}", *more)
    assert code == 1 and err == "" and out.count("refused by the server (Server is pinned to") == 1
    assert any(line.startswith(f"{told}: refused by the server") for line in out.splitlines())


@pytest.mark.parametrize(("command", "more"), [(complete, ()), (judge, ("judge=helpful", "answers=choice"))])
def test_a_server_that_is_not_there_is_told_in_one_line(ask, command: Any, more: tuple[str, ...]) -> None:
    code, lines, _, err = ask(command, "model=m", f"base_url=http://127.0.0.1:{free_port()}/v1", *more)
    assert code == 1 and lines == [] and "cannot be reached" in err and err.count("\n") == 1


def online(command_line: CommandLine, served: Served, how: str) -> Result:
    return command_line(
        *("client_num_in_total=2", "comm_round=1", "n_train_examples=24", "n_test_examples=6", "max_length=112"),
        *("max_prompt_length=96", "online.max_new_tokens=16", "online.eval_prompts=4", "online.answers=choice"),
        *(f"online.judge={how}", f"online.model={served.model}", f"online.base_url={served.url}"),
    )


def test_clients_train_on_what_the_server_prefers(command_line: CommandLine, served: Served, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(PROMPT)
    before = served.asked["systemone"]
    run = online(command_line, served, str(tmp_path / "own.yaml")).run
    found = [line for line in read_lines(run / "metrics.jsonl") if line["split"] == "online"]
    assert sum(line["examples"] for line in found) > 0 and all(line["unjudged"] == 0 for line in found), found
    rated = [line for line in read_lines(run / "metrics.jsonl") if "win_rate" in line]
    assert [line["win_prompts"] for line in rated] == [4, 4] and rated[0]["win_rate"] == 0.5
    assert served.asked["systemone"] >= before + 2 * sum(line["prompts"] - line["ties"] for line in found)


def test_a_round_in_which_all_responses_tie_is_told(command_line: CommandLine, served: Served) -> None:
    result = online(command_line, served, "helpful")
    assert result.code == 1 and "0 of 2 clients succeeded" in result.err and result.err.count("\n") == 1
    for client in (0, 1):
        assert f"client-{client} is left out: client {client} has no fresh pair: of " in result.out
    assert "have responses that tie, and 0 no judgement" in result.out
