"""The steps of a run before it trains, each printed as it begins. Nothing large is imported."""

import sys
import time

from fed.distributed import launch

SECONDS = 10.0  # of silence at most within a long step


def say(step: str) -> None:
    """Print the step that begins now; of several processes the first one prints."""
    remark(f"{step} ...")


def remark(text: str) -> None:
    """Print a line at once; of several processes the first one prints."""
    if launch.is_first():
        print(text, flush=True)


class Count:
    """A counter of a long step, which prints every `SECONDS` how far it has come.

    Args:
        text: The line, in which `{done}` stands for the number so far.
    """

    def __init__(self, text: str) -> None:
        self._text, self._last = text, time.monotonic()

    def reached(self, done: int) -> None:
        """Note that `done` are done."""
        if time.monotonic() >= self._last + SECONDS:
            remark(f"  {self._text.format(done=f'{done:,}')}")
            self._last = time.monotonic()


def say_loading() -> None:
    """Print that libraries are being loaded, unless they are loaded already or this process's launcher printed it."""
    if "torch" not in sys.modules and not launch.is_started_here():
        say("loading torch, transformers and Flower")
