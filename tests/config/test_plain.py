"""Settings that come as plain values from a message or a file of others."""

from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed.config.plain import from_plain
from fed.config.schema import Config

USUAL = asdict(Config())


@given(text=st.text(alphabet="\\${}:a.'\" ,[]", max_size=14))
@settings(max_examples=500, deadline=None)
def test_text_is_itself(text: str) -> None:
    assert from_plain({**USUAL, "exp_name": text, "client_mods": [text]}).exp_name == text
    assert from_plain({**USUAL, "client_mods": [text]}).client_mods == [text]
    assert from_plain({**USUAL, "loss": {"_target_": text}}).loss == {"_target_": text}


@pytest.mark.parametrize("text", ["${oc.env:CANARY_TOKEN}", "${seed}", "\\${oc.env:CANARY_TOKEN}", "a ${seed} b"])
def test_nothing_is_looked_up(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("CANARY_TOKEN", "the-secret-of-the-owner")
    assert from_plain({**USUAL, "data_dir": text}).data_dir == text
