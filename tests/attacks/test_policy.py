"""What a server's settings may do at a node: hyper-parameters, and what the owner's policy allows."""

import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from fed.config.policy import NodePolicy, read_policy
from fed.errors import CannotContinue
from support.flower_runs import allowing, nodes, sets

ENDS = {"min_fit_clients": 2, "process_timeout": 3}


REACHES_TOO_FAR = {
    "a file as a template": ({"chat_template": "/etc/passwd"}, "chat_template=/etc/passwd"),
    "another column": ({"columns.chosen": "diagnosis"}, "columns.chosen=diagnosis"),
    "a column to hold out by": ({"holdout_by": "diagnosis"}, "holdout_by=diagnosis"),
    "code beside a model": ({"model.trust_remote_code": True}, "model.trust_remote_code=True"),
    "a directory": ({"model.name_or_path": "/etc"}, "model.name_or_path=/etc"),
    "a tokenizer": ({"model.tokenizer_name_or_path": "/etc"}, "model.tokenizer_name_or_path=/etc"),
    "an archive": ({"model.archive": "/etc/passwd"}, "model.archive=/etc/passwd"),
    "a GGUF file": ({"model.gguf_file": "/etc/passwd"}, "model.gguf_file=/etc/passwd"),
    "a mod": ({"client_mods": ["os.system"]}, "client_mods=os.system"),
    "a loss": ({"loss._target_": "os.system"}, "loss._target_=os.system"),
    "float16": ({"precision": "float16"}, "precision=float16"),
    "steps without end": ({"local_steps": 10**9}, "local_steps=1000000000"),
    "epochs without end": ({"local_epochs": 10**9}, "local_epochs=1000000000"),
    "all pairs at once": ({"batch_size": 10**6}, "batch_size=1000000"),
    "all tokens at once": ({"max_tokens_per_step": 10**9, "max_length": 10**9}, "max_tokens_per_step=1000000000"),
    "all pairs of an evaluation at once": ({"eval_batch_size": 10**9}, "eval_batch_size=1000000000"),
    "a negative step": ({"local_steps": -1}, "local_steps=-1 is out of range"),
    "a learning rate that is none": ({"lr": -1.0}, "lr=-1.0 is out of range"),
    "no name of a folder": ({"exp_name": "../x"}, "exp_name=../x"),
}


@pytest.mark.parametrize(("changes", "words"), REACHES_TOO_FAR.values(), ids=REACHES_TOO_FAR)
def test_a_setting_that_reaches_too_far_is_refused_and_the_server_told_which(federate, files, capfd, changes, words):
    with pytest.raises(CannotContinue, match="2 cannot take part"):
        federate(nodes(files), hostile_server=sets(**changes), **ENDS)
    out, err = capfd.readouterr()
    assert words in out and words in err and "Traceback" not in err


def test_nothing_is_imported_for_a_setting_that_is_refused(federate, files, tmp_path, monkeypatch):
    (tmp_path / "canary_module.py").write_text(f"open({str(tmp_path / 'sung')!r}, 'w')\n\ndef mod(*_): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    for changes in ({"client_mods": ["canary_module.mod"]}, {"loss._target_": "canary_module.mod"}):
        with pytest.raises(CannotContinue, match="2 cannot take part"):
            federate(nodes(files), hostile_server=sets(**changes), **ENDS)
    assert not (tmp_path / "sung").exists() and "canary_module" not in sys.modules


def test_no_path_of_the_servers_is_opened(federate, files, tmp_path):
    """All keys that name a place are sent as a canary's; the node opens nothing of that name."""
    canary, opened = tmp_path / "canary-of-the-server", []

    def watch(event, arguments):
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "shutil.rmtree") and "canary-of" in str(
            arguments[0]
        ):
            opened.append((event, arguments))

    places = ("output_dir", "cache_dir", "data_dir", "resume")
    sys.addaudithook(watch)
    federate(
        nodes(files), hostile_server=sets(**dict.fromkeys(places, str(canary)), datasets=[str(canary)]), comm_round=1
    )
    assert opened == []


@pytest.mark.parametrize(
    ("text", "changes", "settings"),
    [
        ("client_mods: [test_policy.passes]", {}, {"client_mods": "[test_policy.passes]"}),
        ("losses: [test_policy.loss]", {}, {"loss._target_": "test_policy.loss"}),
        ("max_steps: 3", {"local_steps": 3}, {}),
    ],
)
def test_what_the_policy_allows_is_done(federate, files, text, changes, settings):
    _, run = federate(allowing(text, files), hostile_server=sets(**changes), comm_round=1, **settings)
    assert (run / "summary.json").exists()


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("max_steps: 3", {"local_steps": 4}),
        ("max_pairs: 3", {"batch_size": 4, "gradient_accumulation_steps": 1}),
        ("dtypes: [float32]", {"wire_dtype": "bfloat16"}),
    ],
)
def test_a_policy_may_allow_less_than_the_default(federate, files, capfd, text, changes):
    with pytest.raises(CannotContinue, match="2 cannot take part"):
        federate(allowing(text, files), hostile_server=sets(**changes), **ENDS)
    assert f"reaches further than this node's policy; its owner may allow it with {text.split(':')[0]}" in (
        capfd.readouterr().err
    )


def passes(message, context, call_next):
    return call_next(message, context)


def loss(policy, reference, *, beta, label_smoothing=0.0, reference_free=False):
    return beta * (policy.rejected - policy.chosen)


def test_a_training_ends_when_the_owner_says(federate, files, capfd):
    with pytest.raises(CannotContinue, match="0 of 2 clients succeeded"):
        federate(allowing("max_seconds: 0.001", files), comm_round=1)
    assert "it took longer than max_seconds=0.001 seconds" in capfd.readouterr().err


def saved_demo(folder):
    from fed.model.demo import demo_model, demo_tokenizer
    from fed.seeding import seeded_globals

    tokenizer = demo_tokenizer()
    with seeded_globals(0, "model"):
        demo_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def own_model(folder):
    return {"model": "blank_model", "model.name_or_path": str(folder), "comm_round": 1}


def test_a_model_is_allowed_by_its_directory(federate, files, tmp_path, capfd):
    folder = saved_demo(tmp_path / "model")
    typed = own_model(folder)
    with pytest.raises(CannotContinue, match="2 cannot take part"):
        federate(nodes(files), **typed, **ENDS)
    assert "its owner may allow it with models" in capfd.readouterr().err
    _, run = federate(allowing(f"models: ['{folder}']", files), **typed)
    assert (run / "summary.json").exists()


@pytest.mark.parametrize("entry", ["right", "wrong", "right, with its code"])
def test_a_digest_that_a_policy_names_is_that_of_the_weights(federate, files, tmp_path, capfd, entry):
    folder = saved_demo(tmp_path / "model")
    with pytest.raises(CannotContinue):
        federate(allowing(f"models: ['{folder}@sha256:{'0' * 64}']", files), **own_model(folder), **ENDS)
    digest = re.search(r"@sha256:([0-9a-f]{64})\]", capfd.readouterr().err)[1]
    policy = f"models: ['{folder}@sha256:{'f' * 64 if entry == 'wrong' else digest}']\ntrust_remote_code: true"
    hostile = sets(**{"model.trust_remote_code": True}) if "code" in entry else None
    if entry == "right":
        _, run = federate(allowing(policy, files), **own_model(folder))
        assert (run / "summary.json").exists()
    else:
        with pytest.raises(CannotContinue, match="2 cannot take part"):
            federate(allowing(policy, files), hostile_server=hostile, **own_model(folder), **ENDS)


@pytest.mark.parametrize("typed", [{"privacy": "local_dp", "strategy": "fedavg"}, {}], ids=["local_dp", "plain"])
def test_limits_of_a_policy_tell_nothing_of_the_number_of_pairs(federate, files, capfd, typed):
    """Whatever the pairs are, 100 epochs are allowed and 101 are not; before, the largest number told how many."""
    with pytest.raises(CannotContinue, match="2 cannot take part"):
        federate(nodes(files), hostile_server=sets(local_epochs=101), **typed, **ENDS)
    assert "max_epochs: 101, which is 100 now" in capfd.readouterr().err
    files[0].write_text(files[0].read_text().splitlines(keepends=True)[0])
    with pytest.raises(CannotContinue, match="1 cannot take part"):
        federate(nodes(files), **typed, **ENDS)
    told = capfd.readouterr().out
    assert ("it has nothing to send; the log" in told) == bool(typed)
    assert ("too few pairs" in told) == (not typed)


def test_a_policy_needs_pairs_of_its_own(federate, files, capfd):
    without = [{name: value for name, value in node.items() if name != "data"} for node in allowing("", files)]
    with pytest.raises(CannotContinue, match="2 cannot take part"):
        federate(without, **ENDS)
    assert "--node-config has policy but no data" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_step: 3", "max_step is no key of a policy; .*nearest: max_steps"),
        ("max_steps: many", "max_steps"),
        ("max_steps: 0", "max_steps=0 is out of range; expected at least 1"),
        ("max_seconds: .nan", "max_seconds=nan is out of range"),
        ("models: gpt2", r"models is no list; write models: \[gpt2\]"),
        ("models: [[a]]", "models has .*, which is no text"),
        ("dtypes: [1]", "dtypes has 1, which is no text"),
        ("max_steps: ???", "cannot be read"),
        ("- a", "cannot be read"),
        ("a: [", "cannot be read"),
        (None, "cannot be read"),
    ],
    ids=str,
)
def test_a_policy_that_cannot_be_read_is_refused(tmp_path, text, words):
    file = tmp_path / "policy.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_policy(str(file))


def test_the_manual_names_every_key_of_a_policy():
    page = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text()
    assert all(f"| `{item.name}` |" in page for item in fields(NodePolicy))
    assert read_policy(None) == NodePolicy()
