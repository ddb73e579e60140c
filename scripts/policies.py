"""The options by which commands say how a policy is loaded, and how it draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scripts.options import at_least, option

if TYPE_CHECKING:
    import torch

    from feedback.policies import Loading


@dataclass(frozen=True)
class PolicyOptions:
    """The options of a policy: which of its rounds, and in which type and place its weights compute."""

    round: str | None = option(
        None,
        "A round of which the run has a checkpoint, best, or 0: what the run began with; null: the trained policy.",
    )
    dtype: str | None = option(None, "Type of the weights; null: the run's, else float32.")
    device: str | None = option(None, "cpu, cuda, cuda:1, ...; null: cuda if there is one.")
    trust_remote_code: bool = option(False, "Run Python code that lies beside the weights.")


def loading_of(options: PolicyOptions, device: torch.device, max_length: int) -> Loading:
    """Return how the policy is loaded, to read so many tokens at most."""
    from feedback.policies import Loading

    return Loading(device, options.dtype, max_length, options.trust_remote_code)


@dataclass(frozen=True)
class DrawOptions:
    """The options of drawing responses."""

    temperature: float = option(0.7, "Divides the logits; 0 takes the likeliest token.")
    top_p: float = option(0.9, "Only the likeliest tokens are drawn, as many as have this share of the probability.")
    max_new_tokens: int = option(256, "Tokens of the longest response.")
    seed: int = option(0, "Seed of the draws; a response depends on it, its prompt and the number of its draw.")


def check_draws(options: DrawOptions) -> None:
    """Check the numbers.

    Raises:
        ValueError: If one cannot work.
    """
    at_least(1, max_new_tokens=options.max_new_tokens)
    at_least(0, seed=options.seed)
    check_temperature(options.temperature)
    if not 0 < options.top_p <= 1:
        raise ValueError(f"top_p={options.top_p:g} is no share; expected more than 0 and at most 1")


def check_temperature(temperature: float) -> None:
    """Check what divides the logits.

    Raises:
        ValueError: If it is no number, or below 0.
    """
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature={temperature:g} is out of range; expected a number of at least 0")
