"""The command line's checks: what is composed, what is refused, and in which words."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

from fed.config import components
from fed.config.checks import checked
from fed.config.explain import REFUSED, explain
from fed.config.meaning import value_of
from fed.config.schema import GROUPS, PRESETS, Config, every_key, keys
from support.configured import DEFAULTS, composed, settings_of

CONFIG = Path(__file__).parents[2] / "config"
FILES = sorted(path.relative_to(CONFIG) for group in GROUPS for path in CONFIG.glob(f"{group}/*.yaml"))


def test_defaults_are_accepted() -> None:
    assert settings_of().config.client_num_in_total == 10
    assert settings_of().given == frozenset()


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_shipped_file_composes(file: Path) -> None:
    needed = ["client_data=[a.jsonl,b.jsonl]", "client_num_in_total=2"] if file.stem == "own" else []
    request = settings_of(f"{file.parent}={file.stem}", *needed)
    filled = {"client_data", "partition.client_data", "client_num_in_total"} if needed else set()
    assert request.given == {str(file.parent), *filled}


@pytest.mark.parametrize("file", [file for file in FILES if file.parent.name == "strategy"], ids=str)
def test_every_shipped_strategy_can_be_made_for_ten_clients(file: Path) -> None:
    from flwr.serverapp.strategy import Strategy

    from server.traits import check_strategy

    request = settings_of(f"strategy={file.stem}")
    strategy = components.create("strategy", request.config.strategy, request.given)
    assert isinstance(strategy, Strategy)
    check_strategy(strategy, 10)
    for path in request.config.client_mods:
        assert callable(components.imported("client_mods", path))


@pytest.mark.parametrize("file", [file for file in FILES if file.parent.name == "strategy"], ids=str)
def test_clients_per_round_reaches_every_shipped_strategy(file: Path) -> None:
    strategy: Any = settings_of(f"strategy={file.stem}", "clients_per_round=2").config.strategy
    inner = strategy.get("strategy", strategy)
    assert (inner["fraction_train"], inner["min_train_nodes"]) == (0.2, 2)
    assert strategy.get("num_sampled_clients", 2) == 2


def test_all_groups_of_the_config_folder_are_known() -> None:
    assert {path.name for path in CONFIG.iterdir() if path.is_dir()} == {*GROUPS, PRESETS}
    assert set(GROUPS) == set(DEFAULTS)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("comm_round=0", "comm_round=0 at least 1"),
        ("client_num_in_total=0", "client_num_in_total=0 at least 1"),
        ("clients_per_round=0", "clients_per_round=0 at least 1"),
        ("clients_per_round=11", "clients_per_round=11 client_num_in_total=10"),
        ("frequency_of_test=0", "frequency_of_test=0 at least 1"),
        ("local_steps=0", "local_steps=0 at least 1"),
        ("num_threads=0", "num_threads=0 at least 1"),
        ("max_tokens_per_step=0", "max_tokens_per_step=0 at least 1"),
        ("precision=float16", "precision=float16 float32 bfloat16"),
        ("precision=float32 model.fsdp_policy_mp=bfloat16", "precision=float32 model.fsdp_policy_mp=bfloat16 leave"),
        ("seed=-1", "seed=-1 at least 0"),
        ("alpha=-1", "alpha=-1 at least 0"),
        ("alpha=.inf", "alpha=inf finite"),
        ("decay_rate=0", "decay_rate=0 more than 0"),
        ("decay_rate=2", "decay_rate=2 at most 1"),
        ("temp=.nan", "temp=nan finite"),
        ("lr=0", "lr=0 more than 0"),
        ("lr=.nan", "lr=nan finite"),
        ("max_grad_norm=0", "max_grad_norm=0 more than 0"),
        ("server_fraction=1.5", "server_fraction=1.5 less than 1"),
        ("client_eval_fraction=1", "client_eval_fraction=1 less than 1"),
        ("server_fraction=-0.1", "server_fraction=-0.1 at least 0"),
        ("max_prompt_length=600", "max_prompt_length=600 max_length=192 raise"),
        ("gradient_accumulation_steps=3", "gradient_accumulation_steps=3 batch_size=16 divisible"),
        ("datasets=[]", "datasets e.g. datasets=[hh]"),
        ("mode=fedrated", "mode=fedrated centralized local nearest: federated"),
        ("optimizer=adam", "optimizer=adam nearest: Adam"),
        ("cpu_matmul=mkldnn", "cpu_matmul=mkldnn auto mkl onednn"),
        ("trainer=DeepSpeedTrainer", "trainer=DeepSpeedTrainer unknown BasicTrainer"),
        ("exp_name=''", "exp_name= name"),
        ("exp_name=a/b", "exp_name=a/b without slashes"),
        ("exp_name=..", "exp_name=.. name"),
        ("loss.beta=0", "loss.beta=0 above 0"),
        ("loss.beta=-1", "loss.beta=-1 above 0"),
        ("loss.beta=x", "loss.beta=x number"),
        ("loss.beta=true", "loss.beta=True number"),
        ("loss=ipo loss.beta=0", "loss.beta=0 above 0"),
        ("loss.label_smoothing=0.5", "loss.label_smoothing=0.5 below 0.5"),
        ("loss.label_smoothing=-0.1", "loss.label_smoothing=-0.1 from 0"),
        ("strategy.fraction_train=2", "strategy.fraction_train=2 from 0 to 1"),
        ("strategy=dp_server_adaptive strategy.strategy.fraction_train=2", "strategy.strategy.fraction_train=2 to 1"),
        ("strategy=dp_client_adaptive client_mods=[]", "client_mods=[] adaptiveclipping_mod clip"),
        ("privacy.kind=dp", "privacy.kind=dp unknown central_dp local_dp"),
        ("privacy=central_dp privacy.clipping=nobody", "privacy.clipping=nobody server client"),
        ("privacy=central_dp privacy.noise_multiplier=0", "privacy.noise_multiplier=0 more than 0"),
        ("privacy=local_dp privacy.clipping_norm=.inf", "privacy.clipping_norm=inf finite"),
        ("privacy=local_dp privacy.max_epsilon=-1", "privacy.max_epsilon=-1 more than 0"),
        ("privacy=local_dp privacy.delta=0.1", "privacy.delta=0.1 less than 1/client_num_in_total"),
        ("privacy=local_dp privacy.delta=0", "privacy.delta=0 more than 0"),
        ("+privacy.foo=1", "unknown key privacy.foo privacy.kind"),
        ("local_steps=3 local_epochs=2", "local_steps local_epochs choose one"),
        ("+model.foo=1", "unknown key model.foo model.name_or_path"),
        ("client_num_in_total=null", "client_num_in_total=null main.py give a number"),
        ("pairs_per_prompt=best_worst", "pairs_per_prompt no effect datasets=[demo] files hub"),
        ("columns.prompt=text datasets=[hh]", "columns.prompt no effect datasets=[hh]"),
        ("train_split=a datasets=[hh]", "train_split no effect hub's leave it out"),
        ("data_revision=main datasets=[a/b] data_dir=.", "data_revision no effect data_dir leave it out"),
        ("chat_template_kwargs=[1]", "chat_template_kwargs=[1] no set of values {enable_thinking:false}"),
        ("truncation=middle", "truncation=middle keep_end keep_start messages"),
        ("+foo=1", "unknown key foo docs/settings.md"),
    ],
)
def test_bad_values_are_refused_by_name(typed: str, words: str) -> None:
    with pytest.raises(ValueError) as refusal:
        settings_of(*typed.split())
    assert all(word in str(refusal.value) for word in words.split()), refusal.value


@pytest.mark.parametrize(
    ("key", "others"),
    [
        ("temp=1", "strategy=fedavg"),
        ("temp=1", "weighting=samples"),
        ("decay_rate=0.9", "strategy=krum"),
        ("decay_target=loss", "strategy=fedavg"),
        ("decay_target=loss", "decay_rate=1"),
        ("weighting=samples", "strategy=fedadam"),
        ("data_evenly_distributed=false", "partition=iid"),
        ("anchor_norm=sum", "alpha=0"),
        ("do_first_eval=true", "client_eval_fraction=0"),
        ("eval_every=10", "client_eval_fraction=0"),
        ("data_dir=somewhere", "datasets=[demo]"),
        ("cpu_matmul=mkl", "device=cuda:1"),
        ("batch_size=8", "max_tokens_per_step=4096"),
        ("prefix_sharing=true", "packing=false"),
        ("temp=1", "mode=centralized"),
        ("weighting=samples", "mode=local"),
        ("clients_per_round=1", "mode=local"),
        ("decay_rate=0.5", "mode=local"),
        ("decay_target=loss", "mode=local"),
        ("strategy=fedavg", "mode=centralized"),
        ("strategy.fraction_evaluate=1", "mode=local"),
    ],
)
def test_a_typed_key_that_would_do_nothing_is_refused(key: str, others: str) -> None:
    with pytest.raises(ValueError, match=f"^{key.split('=')[0]} has no effect with .*; leave it out$"):
        settings_of(key, *others.split())


@pytest.mark.parametrize(
    "typed",
    [
        "data_evenly_distributed=false partition=contiguous",
        "decay_target=loss strategy=fedpo_published",
        "temp=2 weighting=accuracy_times_samples",
        "clients_per_round=2 strategy=dp_server_adaptive",
        "data_dir=x datasets=[demo,hh]",
        "anchor_norm=sum alpha=0.5",
        "local_steps=3",
        "loss=ipo loss.beta=0.01",
        "loss._target_=my.loss +loss.label_smoothing=3",
    ],
)
def test_the_same_keys_are_accepted_where_they_have_an_effect(typed: str) -> None:
    assert settings_of(*typed.split()).given >= {part.lstrip("+").split("=")[0] for part in typed.split()}


@pytest.mark.parametrize("mode", ["centralized", "local"])
def test_modes_without_a_federation_are_plain_dpo(mode: str) -> None:
    plain = settings_of(f"mode={mode}", "local_steps=3").config
    assert plain.alpha == 0
    assert plain.client_optimizer == "persist"
    assert plain.strategy["_target_"].endswith("StreamingFedAvg")
    # Centralised training sees as many pairs a round as all clients together.
    assert plain.local_steps == 3


def test_typed_settings_win_over_what_the_mode_implies() -> None:
    plain = settings_of("mode=local", "alpha=0.5", "client_optimizer=reset").config
    assert (plain.alpha, plain.client_optimizer) == (0.5, "reset")


def test_a_typed_top_level_key_counts_as_typed_for_the_parameter_it_fills() -> None:
    assert "strategy.temp" in settings_of("temp=1").given
    assert "strategy.decay_rate" not in settings_of("temp=1").given


@pytest.mark.parametrize("key", sorted(key for key in REFUSED if "=" not in key))
def test_every_refused_key_of_the_original_is_refused_with_its_reason(key: str) -> None:
    for typed in (f"+{key}=1", f"+{key}.enabled=true"):
        with pytest.raises(ValueError) as refusal:
            settings_of(typed)
        assert key in str(refusal.value) and REFUSED[key] in str(refusal.value)
    assert REFUSED[key] in explain(f"Could not override '{key}.part'.\nKey '{key}' is not in struct")


def test_no_key_is_both_valid_and_refused() -> None:
    assert not set(keys()) & REFUSED.keys()


def test_every_key_says_what_it_means() -> None:
    groups = {"model", "privacy", "lora", "columns", "online", "faults", "tensorboard", "loss", "partition", "strategy"}
    assert every_key().keys() == set(keys()) - groups
    for name, key in every_key().items():
        assert re.fullmatch(r"(?s)[A-Z`].*\.", key.doc), name


@pytest.mark.parametrize("name", every_key())
def test_every_key_that_the_description_of_another_names_exists(name: str) -> None:
    key, config = every_key()[name], settings_of().config
    for idle in key.idle:
        assert not idle.applies(value_of(config, idle.key)) or value_of(config, name) == value_of(Config(), name)
    if key.read_by is not None:
        group, read = key.read_by
        assert group in GROUPS and read in keys()


@pytest.mark.parametrize("name", [name for name, key in every_key().items() if key.choices or key.limits])
def test_the_default_of_every_key_is_one_that_it_accepts(name: str) -> None:
    key, default = every_key()[name], value_of(Config(), name)
    assert default is None or not key.choices or default in key.choices
    assert default is None or key.limits is None or key.limits.hold(default)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def no_hydra_is_left() -> Iterator[None]:
    yield
    GlobalHydra.instance().clear()


def test_choices_are_the_file_names(tmp_path: Path) -> None:
    """A strategy that lacks the key is named by its file in the message."""
    choices: Mapping[str, str] = {**DEFAULTS, "strategy": "mine"}
    node = composed("strategy=fedavg")
    with pytest.raises(ValueError, match="temp has no effect with strategy=mine"):
        checked(node, ["temp=1"], choices)


@pytest.mark.parametrize("value", ["all-linear", "[q_proj,v_proj]", "null"])
def test_adapters_go_to_named_layers_or_to_all_linear_ones(value: str) -> None:
    found = settings_of("lora.r=2", f"lora.target_modules={value}").config.lora.target_modules
    assert found == {"all-linear": "all-linear", "null": None}.get(value, ["q_proj", "v_proj"])


@pytest.mark.parametrize("value", ["q_proj", "[1]", "3"])
def test_other_words_for_layers_are_refused(value: str) -> None:
    with pytest.raises(ValueError, match="neither a list of names nor all-linear; give "):
        settings_of("lora.r=2", f"lora.target_modules={value}")
