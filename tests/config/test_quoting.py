"""Quotes that a message advises work when they are typed, and read as what was meant."""

import random
import shlex
import subprocess

import pytest

from fed.config import composing
from fed.config.arguments import check_arguments
from fed.config.quoting import requoted

PARTS = (
    *("a", "=", "(", ")", ",", " ", "  ", "{", "}", "[", "]", ":", '"', "'", "\\", "$", "${", "${seed}", "0.1", "é"),
    *("#", "!", "&", "<", "~", "@", "/", "*", "null", "true", "f(", "range(", ";", "%", "|", "1e3"),
)


def told(*arguments: str) -> str:
    """Return the message that refuses these arguments."""
    with pytest.raises(ValueError) as found:
        check_arguments(arguments)
    return str(found.value)


def as_bash_reads(typed: str) -> str:
    """Return the one word that bash makes of what is typed."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\n' {typed}"], capture_output=True, check=True, timeout=60)
    (word,) = done.stdout.decode().removesuffix("\n").split("\n")
    return word


@pytest.mark.parametrize(
    ("argument", "advice"),
    [
        ("exp_name=beta=0.1", "exp_name=beta=0.1 needs quotes; write 'exp_name=\"beta=0.1\"'"),
        ("data_dir=/my pairs (v2)/a.jsonl", "write 'data_dir=\"/my pairs (v2)/a.jsonl\"'"),
        ("client_data=[a (1).jsonl,b=2.jsonl]", 'write \'client_data=["a (1).jsonl","b=2.jsonl"]\''),
        ("datasets=[hh", "write 'datasets=[\"hh\"]'"),
        ("+strategy.note=a=b", "write '+strategy.note=\"a=b\"'"),
        ("exp_name=0.10", "exp_name=0.10 would be read as 0.1; write 'exp_name=\"0.10\"'"),
        ("exp_name=TRUE", "would be read as True; write 'exp_name=\"TRUE\"'"),
        ('exp_name="a${b"', "write 'exp_name=\"a\\${b\"'"),
        ("lr=1e-5)", "lr=1e-5) is of the wrong type; expected a number"),
        ("num_threads=2=3", "num_threads=2=3 is of the wrong type; expected a whole number or null"),
        ("lora=a=b", "lora=a=b is of the wrong type; expected its own keys, e.g. lora.r=..."),
        ("model=gpt2(large)", "model=gpt2(large) is unknown; expected blank_model, demo,"),
        ("comm_rounds=1=2", "unknown key comm_rounds (nearest: comm_round)"),
        ("exp name=3", "'exp name=3' is not a setting; expected key=value, without spaces"),
        ("exp_name=a=\x1b[2J", "'exp_name=a=\\x1b[2J' holds characters that do not print"),
    ],
)
def test_what_hydras_grammar_refuses_is_told_with_what_to_type(argument: str, advice: str) -> None:
    assert advice in told("comm_round=1", argument)


@pytest.mark.parametrize("key", ["exp_name", "data_dir", "model.archive", "+strategy.note", "datasets"])
def test_any_text_in_the_advised_quotes_is_read_as_it_was_typed(key: str) -> None:
    """A text whose `${seed}` works keeps it; OmegaConf puts the number there when the setting is read."""
    draw = random.Random(key)
    for _ in range(300):
        text = "".join(draw.choices(PARTS, k=draw.randint(1, 6)))
        if text[0] == text[-1] and text[0] in "'\"":
            continue  # whoever types quotes around a text does not mean them
        typed = requoted(f"{key}=[{text}]" if key == "datasets" else f"{key}={text}")
        assert typed is not None, text
        (argument,) = shlex.split(typed)
        check_arguments(["comm_round=1", argument])


@pytest.mark.parametrize(
    "text", ["beta=0.1", "a (b)  c", "it's", 'say "hi"', "a'b\"c=", "{a: 1}", "[x,y]", "${b", "é;#!&<~|*?", "1e3"]
)
def test_bash_and_the_program_read_the_advice_as_the_text(text: str) -> None:
    typed = requoted(f"exp_name={text}")
    assert typed is not None
    assert composing.request([as_bash_reads(typed)]).config.exp_name == text
