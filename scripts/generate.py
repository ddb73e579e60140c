"""Draw responses of a policy to prompts: `python -m scripts.generate POLICY [FILE...] OPTION=VALUE ...`."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fed.tracking import steps
from scripts.command import Command
from scripts.options import at_least, option
from scripts.policies import DrawOptions, PolicyOptions, check_draws, loading_of
from scripts.prompts import PromptOptions, check_prompts, rows_of


@dataclass(frozen=True)
class Options(PolicyOptions, PromptOptions, DrawOptions):
    """The options of the command."""

    out: str = option("responses.jsonl", "The file to write; a job that was killed goes on where it was.")
    n: int = option(1, "Responses to each prompt.")
    stop: list[str] | None = option(
        None, "Texts that end a response; null: the next turn of the human where prompts have HH's markers."
    )
    batch_size: int = option(32, "Responses at a time.")
    shard: str | None = option(None, "i/n: this job draws for every n-th prompt from number i on, counted from 0.")


COMMAND = Command(
    "python -m scripts.generate POLICY [FILE...]",
    "Draws responses of a policy (a run's folder, a model's directory or a hub name) to the prompts of files or of a "
    "data set, without any to the run's test prompts, and writes records that train as they are.",
    Options,
    (
        ("python -m scripts.generate data/fedpo/DATE_TIME", "the run's own test prompts"),
        ("python -m scripts.generate data/fedpo/DATE_TIME prompts.jsonl n=4 out=four.jsonl", "prompts of a file"),
        ('python -m scripts.generate DIR "datasets=[hh]" data_dir=hh limit=100 temperature=0', "a data set's"),
    ),
    (("OUT", "prompt, completion, the prompt's columns, generator, index, draw, tokens, finish_reason"),),
    names=("POLICY", "FILE"),
    needed=1,
    more=True,
)


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code."""
    return COMMAND.main(arguments, carry_out)


def carry_out(plain: list[str], options: Options) -> None:
    """Draw the responses.

    Raises:
        ValueError: For a mistake of the user's.
        CannotWrite: If the disk refuses the results.
    """
    name, *files = plain
    check(options)
    check_prompts(options, files)
    steps.say_loading()
    from fed.cpu.runtime import set_up
    from fed.data.rows import HUMAN
    from fed.distributed import launch
    from fed.model.generation import Draws
    from feedback.asking import Wanted, how_to_ask, longest_read, marked
    from feedback.job_files import JobFile
    from feedback.policies import find, load
    from feedback.responses import Prompts, draw_responses, key_of

    found = find(name, options.round)
    prompts = Prompts.of(rows_of(options, files, found), options.limit, options.shard, options.n)
    stop = options.stop if options.stop is not None else [HUMAN] if marked(prompts.rows) else []
    wanted = Wanted(
        options.chat_template, options.system_prompt, options.text_as_chat, options.max_prompt_length, tuple(stop)
    )
    draws = Draws(options.max_new_tokens, options.batch_size, options.seed, options.temperature, options.top_p)
    decides = {**asdict(options), "out": None, "device": None, "policy": name, "prompts": prompts.digest()}
    set_up(None, keep_freed=True)
    with launch.joined(options.device, 60) as device, JobFile(Path(options.out), decides, key_of) as file:
        if before := len(file.lines):
            steps.remark(f"going on behind {before} responses of {options.out}.part")
        steps.say(f"loading {name}")
        policy = load(found, loading_of(options, device, longest_read(found, wanted, options.max_new_tokens)))
        asking = how_to_ask(found, policy, wanted, options.max_new_tokens)
        count, began = steps.Count("{done} responses are drawn"), time.monotonic()
        skipped = draw_responses(policy, prompts, asking, draws, file, _generator(name, options), count.reached)
        _report(options, file.lines[before:], time.monotonic() - began, skipped)
        file.finish()


def _generator(name: str, options: Options) -> str:
    """Return the name that stands beside responses: POLICY, or POLICY@ROUND."""
    return name if options.round is None else f"{name}@{options.round}"


def _report(options: Options, drawn: Sequence[Mapping[str, Any]], seconds: float, skipped: Mapping[str, int]) -> None:
    for reason, number in skipped.items():
        steps.remark(f"{number} prompts have no response: {reason}")
    cut = sum(line["finish_reason"] == "length" for line in drawn)
    speed = sum(line["tokens"] for line in drawn) / max(seconds, 1e-9)
    steps.remark(
        f"{options.out}: {len(drawn)} responses drawn, {cut} of them cut at {options.max_new_tokens} tokens; "
        f"{speed:.0f} tokens/s"
    )


def check(options: Options) -> None:
    """Check the numbers.

    Raises:
        ValueError: If one cannot work.
    """
    at_least(1, n=options.n, batch_size=options.batch_size)
    check_draws(options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
