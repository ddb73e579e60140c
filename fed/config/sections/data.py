"""Keys of the data."""

from dataclasses import dataclass

from fed.config.conditions import AT_LEAST_1, NO_DATASETS, only_demo, own_data
from fed.config.meaning import Limits, at, key

SHARE = Limits(at_least=0, below=1)
OWN_PAIRS = own_data("every client's pairs are its own")


@dataclass
class DataKeys:
    """Data."""

    datasets: list[str] = key(
        ["demo"], "Data sets, by their names in load_data.py: `demo`, `hh`, `hh_base`, `shp`, `se`, `jsonl`."
    )
    data_dir: str | None = key(
        None,
        "Folder or file with the data; null: downloaded to `cache_dir`.",
        idle=(only_demo("is made in code"), NO_DATASETS),
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
        "With `partition=own`: a JSON-lines file for each client.",
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
    max_length: int = key(512, "Tokens of prompt and response together, at most.")
    max_prompt_length: int = key(256, "Tokens of the prompt, at most.", AT_LEAST_1)
