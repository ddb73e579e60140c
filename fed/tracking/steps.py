"""The steps of a run before it trains, each printed as it begins. Nothing large is imported."""

import sys

from fed.distributed import launch


def say(step: str) -> None:
    """Print the step that begins now; of several processes the first one prints."""
    remark(f"{step} ...")


def remark(text: str) -> None:
    """Print a line at once; of several processes the first one prints."""
    if launch.is_first():
        print(text, flush=True)


def say_loading() -> None:
    """Print that libraries are being loaded, unless they are loaded already or this process's launcher printed it."""
    if "torch" not in sys.modules and not launch.is_started_here():
        say("loading torch, transformers and Flower")
