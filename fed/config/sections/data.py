"""Keys of the data."""

from dataclasses import dataclass
from typing import Any

from fed.config.conditions import AT_LEAST_1, NO_DATASETS, only_demo, own_data
from fed.config.meaning import Idle, Limits, Scope, at, key

NOT_HUB = (
    Idle(
        "datasets",
        lambda names: not (isinstance(names, list) and any("/" in str(name) for name in names)),
        "datasets= that are not the hub's, owner/name",
    ),
    Idle("data_dir", lambda path: path is not None, "data_dir=, from which the data is read"),
)
SHARE = Limits(at_least=0, below=1)
OWN_PAIRS = own_data("every client's pairs are its own")


@dataclass
class DataKeys:
    """Data."""

    datasets: list[str] = key(
        ["demo"],
        "Data sets, by their names in load_data.py, `files` for your own, or by their names on the Hugging Face hub, "
        "`owner/name`.",
    )
    data_dir: str | None = key(
        None,
        "Folder or file with the data; null: downloaded to `cache_dir`.",
        idle=(only_demo("is made in code"), NO_DATASETS),
    )
    data_config: str | None = key(None, "Configuration of a data set on the hub; null: its only one.", idle=NOT_HUB)
    data_revision: str | None = key(
        None, "Branch, tag or commit of a data set on the hub; null: the newest.", idle=NOT_HUB
    )
    train_split: str | None = key(None, "Split of a data set on the hub to train on; null: `train`.", idle=NOT_HUB)
    test_split: str | None = key(
        None,
        "Split of a data set on the hub to test on; null: `test`, or `test_fraction` of the training pairs if there is "
        "none.",
        idle=NOT_HUB,
    )
    pairs_per_prompt: str = key(
        "all",
        "Of more than two ranked responses: `all` pairs, or `best_worst`, one of the best and the worst.",
        choices=("all", "best_worst"),
    )
    holdout_by: str | None = key(
        None,
        "Column whose equal values are never on two sides of a split: a question, an id, `prompt`, `chosen`; null: "
        "the first human turn.",
        idle=(only_demo("has questions of its own"),),
        scope=Scope(decider="node"),
    )
    test_fraction: float | None = key(
        None,
        "Share of a data set without a test split that becomes one; null: 0.1 (`se`: 0.01).",
        Limits(above=0, below=1),
        idle=(only_demo("has a test split"), NO_DATASETS),
    )
    n_train_examples: int | None = key(
        None, "Training pairs used at most, drawn by `seed`; null: all.", AT_LEAST_1, idle=(OWN_PAIRS,)
    )
    use_small_dataset: bool = key(False, "Use a tenth of the training pairs, drawn by `seed`.", idle=(OWN_PAIRS,))
    client_data: list[str] = key(
        [],
        "With `partition=own`: a file of records for each client.",
        idle=(at("engine", "flower", "where each SuperNode names its own file"),),
        read_by=("partition", "client_data"),
    )
    data_evenly_distributed: bool = key(
        True,
        "With `partition=contiguous`: equal blocks; false: random cuts.",
        read_by=("partition", "data_evenly_distributed"),
    )
    server_fraction: float = key(
        0.05,
        "Share of the training pairs that the server keeps as its validation pairs.",
        SHARE,
        idle=(own_data("the server's pairs are all its own"),),
    )
    client_eval_fraction: float = key(0.05, "Share of its pairs that each client holds out.", SHARE)
    n_eval_examples: int = key(
        256,
        "Validation pairs used at most: those of the data's validation files, or of `server_fraction`.",
        AT_LEAST_1,
        idle=(NO_DATASETS,),
    )
    n_test_examples: int = key(512, "Test pairs used at most.", AT_LEAST_1, idle=(NO_DATASETS,))
    truncation: str | None = key(
        None,
        "What of a prompt that is too long is kept: `keep_end`, `keep_start`, or, of conversations, `messages`: the "
        "oldest turns go first and the system text stays; null: as the data set says, `keep_end` for most.",
        choices=("keep_end", "keep_start", "messages"),
    )
    max_length: int = key(512, "Tokens of prompt and response together, at most.")
    max_prompt_length: int = key(256, "Tokens of the prompt, at most.", AT_LEAST_1)
    chat_template: str | None = key(
        None,
        "File with a chat template (Jinja) for conversations; null: the tokenizer's own; `none`: turns are written as "
        '"\\n\\nHuman: ..." and "\\n\\nAssistant: ...", as in HH.',
        scope=Scope(decider="node"),
    )
    chat_template_kwargs: Any = key(
        None, "Values for variables of the chat template, e.g. `{enable_thinking:false}`; null: none."
    )
    system_prompt: str | None = key(None, "System text for conversations that have none.")
    text_as_chat: bool = key(
        False,
        "Make conversations of prompts and responses that are text, so that they go through the chat template: HH's "
        "markers divide turns, other text is one turn of the user.",
    )
