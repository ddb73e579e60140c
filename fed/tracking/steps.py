"""What a run does before it trains, told as each step begins. Nothing large is imported."""

import sys

from fed.distributed import launch


def say(step: str) -> None:
    """Print what begins now, at once; of several processes the first one speaks."""
    remark(f"{step} ...")


def remark(text: str) -> None:
    """Print a line at once; of several processes the first one speaks."""
    if launch.is_first():
        print(text, flush=True)


def say_loading() -> None:
    """Say that the libraries are being loaded, unless they are here already or the launcher of this process said so."""
    if "torch" not in sys.modules and not launch.is_started_here():
        say("loading torch, transformers and Flower")
