"""The options by which commands name rows: files, a data set, or the test pairs of a policy's run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from scripts.options import at_least, option

if TYPE_CHECKING:
    from fed.data.rows import Loaded, Preference
    from feedback.policies import Found
    from run.data import OwnedRows


Needs = Literal["responses", "prompts"]


@dataclass(frozen=True)
class RowOptions:
    """The options that name rows."""

    datasets: list[str] = option([], "Data sets, as for main.py; [] with a run and no file: the run's.")
    data_dir: str | None = option(None, "Their file or folder; null: the hub.")
    split: str = option("test", "The split of the data sets: train, validation or test. Files are read whole.")
    limit: int | None = option(None, "So many at most, the first ones; null: all.")
    trust_code: bool = option(
        False, "Let the run's settings name code of others (partitions, losses), which then runs."
    )


@dataclass(frozen=True)
class PromptOptions(RowOptions):
    """The options that name prompts, and how they are put."""

    column: str | None = option(
        None, "The field of a record that is the prompt, where it is not prompt, instruction, question or messages."
    )
    chat_template: str | None = option(None, "A file, or none; null: the run's, else the tokenizer's.")
    system_prompt: str | None = option(None, "A system text before prompts without one; null: the run's.")
    text_as_chat: bool | None = option(
        None,
        "Prompts that are text become a turn of the user; null: as the run had it, else true where the tokenizer has "
        "a chat template.",
    )
    max_prompt_length: int | None = option(None, "Tokens of the longest prompt; null: the run's, else 1024.")


def check_rows(options: RowOptions, files: Sequence[str]) -> None:
    """Check that the options name rows in one way only.

    Raises:
        ValueError: If they do not.
    """
    from fed.data.rows import SplitName

    if files and options.datasets:
        raise ValueError(f"{files[0]} and datasets= both name rows; give one of them")
    if options.data_dir is not None and not options.datasets:
        raise ValueError("data_dir has no effect without datasets=; or give its files without a name")
    if options.split not in get_args(SplitName):
        raise ValueError(f"split={options.split} is unknown; expected {', '.join(get_args(SplitName))}")
    at_least(1, limit=options.limit)


def check_prompts(options: PromptOptions, files: Sequence[str]) -> None:
    """Check the options of prompts.

    Raises:
        ValueError: If one cannot work.
    """
    check_rows(options, files)
    if options.column is not None and not (files or options.datasets):
        raise ValueError("column has no effect on the run's own prompts; leave it out")
    at_least(1, max_prompt_length=options.max_prompt_length)


def rows_of(
    options: RowOptions, files: Sequence[str], found: Found | None = None, needs: Needs = "prompts"
) -> list[Preference]:
    """Read the rows that the options name, and print what was left out.

    Args:
        options: The options.
        files: Files of records; without any a data set is read.
        found: The policy, whose run names a data set if nothing else does; None: there is none.
        needs: What a record must have.

    Raises:
        ValueError: If nothing names rows, or they cannot be read.
    """
    from fed.data.rows import merged
    from fed.data.source import Reading
    from fed.tracking import steps
    from load_data import load, load_file

    column = getattr(options, "column", None)
    tokenizer = None if found is None else found.model.name_or_path
    reading = Reading(columns={"prompt": column} if column else {}, needs=needs, tokenizer=tokenizer)
    if files:
        loaded = merged([load_file(path, reading=reading) for path in files])
    elif options.datasets:
        loaded = load(options.datasets, options.split, data_dir=options.data_dir, seed=0, reading=reading)  # type: ignore[arg-type]
    else:
        assert found is not None
        loaded = _of_run(options, found)
    left_out = ", ".join(f"{count} {reason}" for reason, count in loaded.skipped.items())
    steps.remark(f"{len(loaded.rows)} rows are read{f'; left out: {left_out}' if left_out else ''}")
    return loaded.rows[: None if needs == "prompts" else options.limit]


def owned_rows(options: RowOptions, found: Found) -> OwnedRows:
    """Return the rows of the policy's run by owner, as the run itself shared them out.

    Raises:
        ValueError: If the policy is of no run, or its data cannot be read.
    """
    from run.data import reading_of, shared_out
    from run.prepare import objective_of
    from run.resume import check_code

    config = found.config
    if config is None or found.run is None:
        raise ValueError(f"nothing says what to read: {found.name} is no run; give files, or datasets=")
    check_code(found.run, config, trusts=options.trust_code, key="trust_code")
    supervised = objective_of(config, frozenset()).supervised
    return shared_out(config, frozenset(), reading_of(config, supervised=supervised))


def client_rows(options: RowOptions, found: Found) -> list[Preference]:
    """Return the held-out rows of the clients of the policy's run, with the client's number in a column.

    Raises:
        ValueError: For the reasons of `owned_rows`, or if the clients held nothing out.
    """
    from dataclasses import replace

    from fed.data.rows import Extra

    rows = []
    for number, client in enumerate(owned_rows(options, found).split.clients):
        for row in client.held_out:
            names, values = (*row.extra.names, "client"), (*row.extra.values, str(number))
            rows.append(replace(row, extra=Extra(names, values)))
    if not rows:
        raise ValueError("by=[client] needs pairs that the clients held out, and this run has client_eval_fraction=0")
    return rows


def _of_run(options: RowOptions, found: Found) -> Loaded:
    """Return the rows of one split of the run's own data."""
    from fed.data.rows import Loaded

    owned = owned_rows(options, found)
    of_clients = [row for client in owned.split.clients for row in client.train]
    rows = {"train": of_clients, "validation": owned.split.validation, "test": owned.split.test}[options.split]
    return Loaded(list(rows), owned.skipped)
