"""Ask a served model for completions: `python -m scripts.complete FILE... model=NAME OPTION=VALUE ...`."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fed.config.explain import counted
from fed.tracking import steps
from scripts.command import Command
from scripts.options import at_least, option
from scripts.policies import check_temperature
from scripts.prompts import RowOptions, check_rows, rows_of
from scripts.servers import ServerOptions, check_server, more_of, server_of

if TYPE_CHECKING:
    from fed.data.rows import Preference


@dataclass(frozen=True)
class Options(ServerOptions, RowOptions):
    """The options of the command."""

    column: str | None = option(
        None, "The field of a record that is the prompt, where it is not prompt, instruction, question or messages."
    )
    out: str = option("completions.jsonl", "The file to write; a job that was ended goes on where it was.")
    n: int = option(1, "Completions of each prompt.")
    temperature: float = option(1.0, "Divides the logits; 0 takes the likeliest token.")
    max_tokens: int = option(1024, "Tokens of the longest completion.")
    require_stop: bool = option(True, "Leave out completions that did not end by themselves.")
    longest_prompt: int | None = option(8000, "Prompts of more characters are left out; null: none is.")
    system_prompt: str | None = option(None, "A system text before prompts without one.")
    seed: int = option(0, "Draw number k of a prompt is asked with the seed seed + k.")
    shard: str | None = option(None, "i/n: this job asks about every n-th prompt from number i on, counted from 0.")


COMMAND = Command(
    "python -m scripts.complete FILE... model=NAME",
    "Asks a model behind an OpenAI-compatible server for completions of the prompts of files or of a data set, and "
    "writes records that train as they are. A question that was answered is not asked again.",
    Options,
    (
        ("python -m scripts.complete prompts.jsonl model=gpt-4o-mini", "OpenAI's own server; OPENAI_API_KEY is set"),
        (
            "python -m scripts.complete prompts.jsonl model=llama3.2 base_url=http://127.0.0.1:11434/v1",
            "Ollama; vLLM and transformers serve alike",
        ),
        ('python -m scripts.complete "datasets=[hh]" data_dir=hh split=train limit=1000 model=NAME', "a data set's"),
    ),
    (("OUT", "prompt, completion, the prompt's columns, generator, index, draw, tokens, finish_reason"),),
    page=("docs/ai_feedback.md", "asking, judging and what to do with it"),
    names=("FILE",),
    more=True,
)


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code."""
    return COMMAND.main(arguments, carry_out)


def carry_out(files: list[str], options: Options) -> int:
    """Ask for the completions; return 1 if there is none at the end.

    Raises:
        ValueError: For a mistake of the user's.
        CannotContinue: If the server cannot be used, or the disk refuses a file.
    """
    _check(options, files)
    from feedback.api import Client
    from feedback.completions import Asked, complete
    from feedback.job_files import JobFile
    from feedback.responses import Prompts, key_of

    client, more = Client(server_of(options)), more_of(options)
    prompts = Prompts.of(
        _short(rows_of(options, files), options.longest_prompt), options.limit, options.shard, options.n
    )
    settings = {"temperature": options.temperature, "max_tokens": options.max_tokens, **more}
    how = Asked(str(options.model), settings, options.seed, options.system_prompt, options.require_stop)
    decides = {**asdict(options), **dict.fromkeys(NOT_DECIDING), "prompts": prompts.digest()}
    with JobFile(Path(options.out), decides, key_of) as file:
        if file.lines:
            steps.remark(f"going on behind {len(file.lines)} completions of {options.out}.part")
        told = complete(client, prompts, how, file, steps.Count("{done} completions are there").reached)
        for reason, number in told.skipped.items():
            steps.remark(f"{number} have no completion: {reason}")
        steps.remark(
            f"{options.out}: {counted(len(file.lines), 'completion')}; {counted(told.calls, 'call')}, "
            f"{told.prompt_tokens:,} tokens asked, {told.completion_tokens:,} answered; {told.kept} answers were kept"
        )
        return 0 if file.lines and file.finish() else 1


def _check(options: Options, files: Sequence[str]) -> None:
    """Check the options.

    Raises:
        ValueError: If one cannot work.
    """
    check_server(options)
    check_rows(options, files)
    at_least(1, n=options.n, max_tokens=options.max_tokens)
    at_least(0, seed=options.seed)
    check_temperature(options.temperature)
    at_least(1, longest_prompt=options.longest_prompt)
    if not files and not options.datasets:
        raise ValueError("nothing says what to read: give files, or datasets=")


def _short(rows: "list[Preference]", longest: int | None) -> "list[Preference]":
    """Return the rows whose prompts have at most so many characters.

    Raises:
        ValueError: If there is none.
    """
    from feedback.completions import as_asked, messages_of

    sizes = (sum(len(message["content"]) for message in messages_of(as_asked(row))) for row in rows)
    short = [row for row, size in zip(rows, sizes, strict=True) if longest is None or size <= longest]
    if len(short) < len(rows):
        steps.remark(f"{len(rows) - len(short)} prompts of more than {longest} characters are left out")
    if not short:
        raise ValueError("no prompt is left to ask")
    return short


# Options that say how a job runs, not what comes of it.
NOT_DECIDING = ("out", "timeout", "retries", "concurrency", "cache_dir")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
