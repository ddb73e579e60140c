"""`python -m scripts.chat`: questions from a pipe, answers as they are drawn."""

import io
from pathlib import Path

import pytest

from scripts.chat import main
from support.command_line import SMALL, CommandLine
from support.scripted import save_scripted
from support.templates import CHATML


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Return a function that types lines and returns exit code, what was answered, and errors."""
    monkeypatch.chdir(tmp_path)

    def call(policy: str, typed: str, *options: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        code = main([policy, "device=cpu", "temperature=0", "max_new_tokens=12", *options])
        captured = capsys.readouterr()
        return code, captured.out.partition(f"loading {policy} ...\n")[2], captured.err

    return call


@pytest.mark.parametrize("template", [CHATML, None])
def test_each_line_has_an_answer(talk, template: str | None) -> None:
    save_scripted(Path("model"), "abcdefgh", chat_template=template)
    code, out, _ = talk("model", "hello\n\nand?\n/new\nagain\n/quit\nnever read\n")
    assert code == 0 and out.splitlines() == ["abcdefgh"] * 3


def test_the_conversation_is_remembered_until_it_begins_anew(talk, monkeypatch: pytest.MonkeyPatch) -> None:
    from feedback.asking import Asking

    save_scripted(Path("model"), "abcdefgh", chat_template=CHATML)
    asked, whole = [], Asking.ids

    def spied(self, policy, rows):
        asked.append([turn.content for turn in rows[0].prompt.turns])
        return whole(self, policy, rows)

    monkeypatch.setattr(Asking, "ids", spied)
    talk("model", "one\ntwo\n/new\nthree\n")
    assert asked == [["one"], ["one", "abcdefgh", "two"], ["three"]]


@pytest.mark.parametrize("adapter", [(), ("lora.r=2",)])
def test_the_reference_answers_beside_the_policy(command_line: CommandLine, talk, adapter: tuple[str, ...]) -> None:
    run = str(command_line(*SMALL, *adapter, "lr=0.5", "comm_round=2", "max_length=112").run)
    code, out, _ = talk(run, "hello\n", "compare=true")
    assert code == 0 and out.startswith("[reference]\n") and "\n[policy]\n" in out
    reference, policy = out.removeprefix("[reference]\n").split("\n[policy]\n")
    assert reference.strip() != policy.strip()
    assert talk(run, "hello\n")[1].strip() == policy.strip()


def test_what_cannot_be_compared_says_so(talk) -> None:
    save_scripted(Path("model"), "abcdefgh")
    code, _, err = talk("model", "hello\n", "compare=true")
    assert code == 2 and "what model began with is not known" in err and err.count("\n") == 1
    code, _, err = talk("./nowhere", "hello\n")
    assert code == 2 and "nowhere" in err and err.count("\n") == 1
