"""What is typed is checked before Hydra reads it, and what Hydra refuses is told in one line."""

import pytest
from hydra.errors import HydraException

from fed.config.arguments import check_arguments
from fed.config.explain import nearest, refusal, unknown
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


@pytest.mark.parametrize(
    ("typed", "words"),
    [("--hel", "arguments: --hel"), ("--vers", "arguments: --vers"), ("-hm", "-h is typed by itself")],
)
def test_an_abbreviation_gets_no_page_of_hydras(typed: str, words: str) -> None:
    with pytest.raises(ValueError, match=rf"{words}; python main\.py --help lists"):
        check_arguments([typed])


def test_other_arguments_pass() -> None:
    check_arguments(["--multirun", "strategy=fedavg,fedadam", "seed=range(0,3)", "~loss.beta", "+loss.x=[1]"])
    check_arguments(["--cfg", "job", "--resolve", "--package", "model", "strategy=glob(fedad*)", "exp_name=v1.10"])
    check_arguments(["--shell-completion", "install=bash"])


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("--shell-completion", "--shell-completion install=SHELL bash"),
        ("--shell-completion install=tcsh", "install=SHELL bash, fish or zsh"),
        ("--shell-completion install=bash lr=1", "nothing beside install=SHELL"),
        ("--shell-completion install=bash query=bash", "nothing beside install=SHELL"),
        ("--shell-completion query=bash", "query= install=SHELL"),
        ("--cfg job --run", "--run and --cfg one of them"),
        ("--multirun --cfg job", "--multirun and --cfg one of them"),
        ("--resolve", "--resolve --cfg job"),
        ("--package model", "--package --cfg job"),
        ("--cfg job --package models", "unknown key models (nearest: model)"),
        ("--hydra-help lr=1", "lr=1 --hydra-help"),
        ("--config-name lr=1", "--config-name lr=1 is a setting"),
        ("--cfg", "--cfg expected one argument"),
        ("seed=range(0,3,0) --multirun", "seed=range(0,3,0) no values"),
        ("seed=range(3,0) --multirun", "seed=range(3,0) no values"),
        ("seed=interval(0,1) --multirun", "seed=interval(0,1) no values range"),
        ("seed=glob(*) --multirun", "seed=glob(*) no values"),
        ("strategy=glob(x*) --multirun", "strategy=glob(x*) no values"),
    ],
)
def test_flags_and_sweeps_that_hydra_answers_with_a_traceback_or_with_nothing_are_refused(
    typed: str, words: str
) -> None:
    with pytest.raises(ValueError) as found:
        check_arguments(typed.split())
    assert all(word in str(found.value) for word in words.split()), found.value


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("comm_rounds=3", "unknown key comm_rounds (nearest: comm_round)"),
        ("temperature=1", "unknown key temperature (nearest: online.temperature or sample_temperature or temp)"),
        ("beta=1", "unknown key beta (nearest: loss.beta)"),
        ("model.name=x", "unknown key model.name (nearest: model.name_or_path)"),
        ("model.block=x", "unknown key model.block (nearest: model.block_name)"),
        ("loss.gamma=1", "unknown key loss.gamma +loss.gamma="),
        ("strategy.foo=1", "unknown key strategy.foo +strategy.foo="),
        ("strategy.mu=1", "unknown key strategy.mu (nearest: strategy.proximal_mu)"),
        ("model.foo=x", "unknown key model.foo model.name_or_path, model.archive,"),
        ("model_name_or_path=x", "unknown key model_name_or_path (nearest: model.name_or_path)"),
        ("learnin_rate=1", "learnin_rate is refused: use lr"),
        ("partition_by=group", "unknown key partition_by (nearest: partition.partition_by)"),
        ("partition.partition_by=group", "partition.partition_by partition=dirichlet, partition=group choose it too"),
        ("strategy.proximal_mu=1", "strategy=fedprox strategy.proximal_mu=..."),
        ("+loss.beta=2", "+loss.beta=2 is refused write loss.beta=2 without +"),
        ("+lora.r=2", "+lora.r=2 is refused write lora.r=2 without +"),
        ("model@x=gpt2", "unknown key model@x (nearest: model)"),
        ("comm_round=abc", "comm_round=abc expected a whole number"),
        ("comm_round=1.5", "comm_round=1.5 expected a whole number"),
        ("comm_round=null", "comm_round=null expected a whole number"),
        ("local_steps=x", "local_steps=x expected a whole number or null"),
        ("alpha=x", "alpha=x expected a number"),
        ("debug=maybe", "debug=maybe expected true or false"),
        ("datasets=hh", "datasets=hh expected a list"),
        ("strategy=fedavgg", "strategy=fedavgg krum, multikrum (nearest: fedavg)"),
        ("loss=foo", "loss=foo dpo, ipo, sft"),
        ("model=gpt", "model=gpt blank_model, (nearest: gpt"),
        ("partition=idd", "partition=idd (nearest: iid)"),
        ("foo", "'foo' expected key=value"),
        ("a==b", "unknown key a "),
        ("[", "'[' expected key=value"),
        ("exp_name=[a]", "exp_name=[a] expected text 'exp_name=\"[a]\"'"),
        ("exp_name=a,b", "exp_name=a,b --multirun 'exp_name=\"a,b\"'"),
        ("datasets=hh,shp", 'datasets=hh,shp --multirun \'datasets=["hh","shp"]\''),
        ("lr=1,2", "lr=1,2 --multirun"),
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


@pytest.mark.parametrize("name", ["early_stopping", "gpu", "rank", "verbose", "fp16", "momentum", "scheduler"])
def test_no_key_is_named_that_is_not_near(name: str) -> None:
    assert unknown(name) == f"unknown key {name}; docs/settings.md lists every key"


@pytest.mark.parametrize(
    ("name", "known", "near"),
    [
        ("adamw", ("Adam", "AdamW"), "AdamW"),
        ("xyz", ("SGD", "RMSprop"), ""),
        ("gpt", ("gpt2-large", "gpt2", "gptj"), "gpt2"),
        ("dp", ("none", "local_dp"), "local_dp"),
        ("a.rate", ("b.rate", "a.other"), ""),
        ("c.rate", ("b.rate", "a.other"), "b.rate"),
        ("rate", ("rate", "b.rate"), "b.rate"),
    ],
)
def test_the_nearest_name_is_near(name: str, known: tuple[str, ...], near: str) -> None:
    assert nearest(name, known) == (f" (nearest: {near})" if near else "")
