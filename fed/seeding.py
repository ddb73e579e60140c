"""Random draws: each comes from a generator made from (seed, purpose, numbers), never from a shared stream."""

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """Return a generator that depends on its arguments only, e.g. (seed, "batches", client_id, epoch)."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *numbers])


def seed_globals(seed: int, purpose: str, *numbers: int) -> None:
    """Seed `random`, numpy and torch, for Flower's sampling and noise and a model's initial weights."""
    drawn = int(generator(seed, purpose, *numbers).integers(2**31))
    random.seed(drawn)
    np.random.seed(drawn)
    torch.manual_seed(drawn)


def unseed_noise() -> None:
    """Give numpy's global generator, from which Flower's noise is drawn, a seed that nobody can know."""
    np.random.seed(None)


@contextmanager
def seeded_globals(seed: int, purpose: str, *numbers: int) -> Iterator[None]:
    """Call `seed_globals` for the code inside, and restore the global generators afterwards."""
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices):
        seed_globals(seed, purpose, *numbers)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
