"""What a run says of the data and the model that its user brought."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.command_line import SMALL, CommandLine
from support.good_inputs import save_gpt2
from support.templates import CHATML

OWN = (
    "datasets=[files]",
    "model=blank_model",
    *SMALL,
    "client_num_in_total=1",
    "max_length=64",
    "max_prompt_length=40",
)


@pytest.fixture
def model(tmp_path: Path) -> str:
    save_gpt2(folder := tmp_path / "gpt2", positions=64)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": CHATML}))
    return f"model.name_or_path={folder}"


def write(folder: Path, name: str, records: list[dict[str, Any]]) -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join(map(json.dumps, records)))
    return f"data_dir={folder}"


def chats(count: int, *roles: str) -> list[dict[str, Any]]:
    texts = [[{"role": role, "content": f"{role} {n}"} for role in roles] for n in range(count)]
    return [{"prompt": text, "chosen": "yes", "rejected": "no"} for text in texts]


def texts(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"q{n}?", "chosen": " yes", "rejected": " no", **more} for n in range(count)]


def test_files_that_are_not_read_and_a_lone_test_split_are_named(
    command_line: CommandLine, model: str, tmp_path: Path
) -> None:
    data = write(tmp_path / "data", "test.jsonl", texts(30))
    (tmp_path / "data" / "notes.xlsx").write_text("x")
    (tmp_path / "data" / "README.md").write_text("x")
    out = command_line(*OWN, model, data).out
    assert "files that are not read: notes.xlsx\n" in out
    assert "has files of the test split only: they are divided into training and test pairs" in " ".join(out.split())
    both = write(tmp_path / "both", "train.jsonl", texts(30))
    write(tmp_path / "both", "test.jsonl", texts(4))
    assert "split only" not in command_line(*OWN, model, both).out


def test_roles_that_templates_do_not_know_are_named(command_line: CommandLine, model: str, tmp_path: Path) -> None:
    data = write(tmp_path / "data", "a.jsonl", chats(20, "user", "assistant", "narrator", "user"))
    assert "roles that most chat templates do not know: narrator" in command_line(*OWN, model, data).out
    strangers = command_line(*OWN, model, write(tmp_path / "strangers", "a.jsonl", chats(20, "customer")))
    assert "no turn is a user's: the roles are customer" in strangers.err


@pytest.mark.parametrize(
    ("option", "roles", "told"),
    [
        (
            "system_prompt=Brief",
            ("system", "user"),
            "system_prompt has no effect: every conversation of the data begins",
        ),
        ("text_as_chat=true", ("user",), "text_as_chat=true has no effect: prompts of the data are conversations"),
        ("+chat_template_kwargs.thinking=false", ("user",), "has thinking, which the chat template does not read"),
    ],
)
def test_settings_of_conversations_without_effect_are_refused(
    command_line: CommandLine, model: str, tmp_path: Path, option: str, roles: tuple[str, ...], told: str
) -> None:
    result = command_line(*OWN, model, write(tmp_path / "data", "a.jsonl", chats(20, *roles)), option)
    assert result.code == 2 and told in result.err


def test_a_natural_partition_of_one_client_names_other_columns(
    command_line: CommandLine, model: str, tmp_path: Path
) -> None:
    data = write(tmp_path / "data", "a.jsonl", texts(30, user_id="a"))
    result = command_line(*OWN, model, data, "partition=natural", "client_num_in_total=null")
    assert "one client is no federation; partition.column= names another column, of which the data has user_id" in (
        " ".join(result.out.split())
    )


def test_what_no_split_divides_is_told_with_its_cause(command_line: CommandLine, model: str, tmp_path: Path) -> None:
    data = write(tmp_path / "data", "a.jsonl", [*texts(15, user="a"), *texts(15, user="b"), *texts(15, user="c")])
    own = command_line(
        *OWN, model, data, "holdout_by=user", "accuracy_on=client", "server_fraction=0", "client_num_in_total=2"
    )
    assert "its pairs are one conversation, as holdout_by=user has them, and none is divided" in own.err
    alone = command_line(*OWN, model, write(tmp_path / "one", "a.jsonl", texts(9, user="a")), "holdout_by=user")
    assert "pairs with one value of holdout_by=user are one" in alone.err


def test_the_demo_model_on_own_files_and_files_as_data_sets_are_told(command_line: CommandLine, tmp_path: Path) -> None:
    data = write(tmp_path / "data", "a.jsonl", texts(30))
    assert "no model is given, so the demo's toy is trained" in command_line("datasets=[files]", data, *SMALL).out
    told = command_line(f"datasets=[{tmp_path / 'data'}]", *SMALL).err
    assert f"files of your own are datasets=[files] data_dir={tmp_path / 'data'}" in told


def test_an_adapter_is_described_and_another_base_is_warned_of(
    command_line: CommandLine, model: str, tmp_path: Path
) -> None:
    data = write(tmp_path / "data", "a.jsonl", texts(30))
    first = command_line(*OWN, model, data, "lora.r=2").run / "policy"
    same = command_line(*OWN, model, data, f"model.adapter={first}")
    assert "is part of the weights of policy and reference, and all weights are trained" in " ".join(same.out.split())
    assert "are they the same?" not in same.out
    save_gpt2(other := tmp_path / "other", positions=64)
    told = command_line(*OWN, f"model.name_or_path={other}", data, f"model.adapter={first}", "lora.r=2").out
    told = " ".join(told.split())
    assert f"was trained on {model.partition('=')[2]}, and is added to {other}: are they the same?" in told
    assert "a new adapter is trained" in told
    as_model = command_line(*OWN, f"model.name_or_path={first}", data).err
    assert f"give {model} model.adapter={first}" in as_model


def test_folders_that_are_no_model_are_told(command_line: CommandLine, tmp_path: Path) -> None:
    run = command_line(*SMALL).run
    assert (
        f"{run} is the folder of a run; its model is {run / 'policy'}" in command_line(f"model.name_or_path={run}").err
    )
    missing = command_line("model.name_or_path=data/sft/none/policy").err
    assert "model directory data/sft/none/policy does not exist" in missing
