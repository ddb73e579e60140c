"""What is typed is checked before Hydra reads it, and what Hydra refuses is told in one line."""

import pytest
from hydra.errors import HydraException

from fed.config.arguments import check_arguments
from fed.config.explain import refusal
from support.configured import composed


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("=3", "'=3' key=value"),
        ("hydra.run.dir=x", "hydra.run.dir output_dir"),
        ("hydra.sweep.dir=x", "hydra.sweep.dir output_dir"),
        ("~alpha", "~alpha default"),
        ("~strategy", "~strategy default"),
        ("strategy=null", "strategy=null config/strategy/"),
        ("strategy=[fedavg,fedadam]", "strategy=[fedavg,fedadam] one file"),
        ("loss=3", "loss=3 config/loss/"),
        ("--comm_round=3", "--comm_round=3 dashes comm_round=3"),
        ("--seed", "--seed dashes"),
    ],
)
def test_arguments_that_hydra_mistakes_are_refused(argument: str, words: str) -> None:
    with pytest.raises(ValueError) as refusal:
        check_arguments(["comm_round=1", argument])
    assert all(word in str(refusal.value) for word in words.split())


def test_a_flag_between_settings_is_refused_as_argparse_would_lose_the_rest() -> None:
    with pytest.raises(ValueError, match="--multirun stands between settings"):
        check_arguments(["seed=1", "--multirun", "alpha=1,2"])
    check_arguments(["seed=1", "alpha=1,2", "--multirun"])


def test_other_arguments_pass() -> None:
    check_arguments(["--multirun", "--cfg", "job", "strategy=fedavg,fedadam", "~loss.beta", "+loss.x=[1]", "alpha=1"])


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("comm_rounds=3", "unknown key comm_rounds (nearest: comm_round)"),
        ("temperature=1", "unknown key temperature (nearest: temp)"),
        ("beta=1", "unknown key beta (nearest: loss.beta)"),
        ("model.name=x", "unknown key model.name (nearest: model.name_or_path)"),
        ("model.block=x", "unknown key model.block (nearest: model.block_name)"),
        ("loss.gamma=1", "unknown key loss.gamma (nearest: loss. +loss.gamma="),
        ("strategy.foo=1", "unknown key strategy.foo (nearest: strategy."),
        ("comm_round=abc", "comm_round=abc expected a whole number"),
        ("comm_round=1.5", "comm_round=1.5 expected a whole number"),
        ("comm_round=null", "comm_round=null expected a whole number"),
        ("local_steps=x", "local_steps=x expected a whole number or null"),
        ("alpha=x", "alpha=x expected a number"),
        ("debug=maybe", "debug=maybe expected true or false"),
        ("datasets=hh", "datasets=hh expected a list"),
        ("strategy=fedavgg", "strategy=fedavgg krum, multikrum (nearest: fedavg)"),
        ("loss=foo", "loss=foo dpo, ipo, sft (nearest:"),
        ("model=gpt", "model=gpt blank_model, (nearest: gpt"),
        ("partition=idd", "partition=idd (nearest: iid)"),
        ("foo", "'foo' expected key=value"),
        ("a==b", "'a==b' expected key=value"),
        ("[", "'[' expected key=value"),
        ("+strategy=fedavg", "strategy twice"),
        ("wandb.enabled=true", "wandb.enabled is refused: TensorBoard"),
        ("n_epochs=1", "n_epochs is refused: local_epochs"),
    ],
)
def test_what_hydra_refuses_is_told_in_one_line(argument: str, words: str) -> None:
    with pytest.raises(HydraException) as found:
        composed(argument)
    text = refusal(found.value)
    assert all(word in text for word in words.split(" ")), text
    assert "\n" not in text and "hydra" not in text.lower()
