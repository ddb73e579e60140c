"""Talk to a policy in the terminal: `python -m scripts.chat POLICY OPTION=VALUE ...`."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fed.tracking import steps
from scripts.command import Command
from scripts.options import option
from scripts.policies import DrawOptions, PolicyOptions, check_draws, loading_of

LEAVE, ANEW = ("/quit", "/exit"), "/new"


@dataclass(frozen=True)
class Options(PolicyOptions, DrawOptions):
    """The options of the command."""

    compare: bool = option(False, "The reference answers too: what the policy was before it was trained.")
    system_prompt: str | None = option(None, "A system text before the conversation; null: the run's.")
    chat_template: str | None = option(
        None, "A file, or none, which writes turns with HH's markers; null: the run's, else the tokenizer's, else none."
    )


COMMAND = Command(
    "python -m scripts.chat POLICY",
    "Talks to a policy: a run's folder, a model's directory or a hub name. Type a line; /new begins a conversation "
    "anew, /quit or Ctrl-D leaves. A line of a pipe is a question too.",
    Options,
    (
        ("python -m scripts.chat data/fedpo/DATE_TIME", "the trained policy of a run"),
        ("python -m scripts.chat data/fedpo/DATE_TIME compare=true", "beside its reference"),
        ("python -m scripts.chat HuggingFaceTB/SmolLM2-135M-Instruct temperature=0", "a model of the hub"),
    ),
    names=("POLICY",),
    needed=1,
)


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code."""
    return COMMAND.main(arguments, carry_out)


def carry_out(plain: list[str], options: Options) -> None:
    """Talk until the user leaves.

    Raises:
        ValueError: For a mistake of the user's.
    """
    check_draws(options)
    steps.say_loading()
    from fed.cpu.runtime import set_up
    from fed.distributed import launch
    from fed.model.generation import Draws
    from feedback.asking import Wanted, longest_read
    from feedback.conversation import Conversation, sides
    from feedback.policies import find

    found = find(plain[0], options.round)
    draws = Draws(options.max_new_tokens, 1, options.seed, options.temperature, options.top_p)
    wanted = Wanted(options.chat_template, options.system_prompt, text_as_chat=True)
    set_up(None, keep_freed=True)
    with launch.joined(options.device, 60) as device:
        steps.say(f"loading {plain[0]}")
        longest = longest_read(found, wanted, options.max_new_tokens)
        loading = loading_of(options, device, longest)
        both = sides(found, loading, wanted, draws, compare=options.compare)
        _talk(lambda: Conversation(both, draws), both)


def _talk(begin: Callable[[], Any], sides: Sequence[Any]) -> None:
    """Read questions and print answers as they are drawn."""
    prompt = "> " if sys.stdin.isatty() else ""
    conversation = begin()
    while True:
        try:
            question = input(prompt).strip()
        except EOFError:
            return
        if question in LEAVE:
            return
        if question == ANEW:
            conversation = begin()
        elif question:
            for side in sides:
                if len(sides) > 1:
                    print(f"[{side.name}]")
                conversation.answer(side, question, lambda text: print(text, end="", flush=True))
                print(flush=True)
            conversation.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
