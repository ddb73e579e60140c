"""Every random draw comes from a generator made from (seed, purpose, numbers), never from a shared stream."""

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """A generator that depends on its arguments only, e.g. (seed, "batches", client_id, epoch)."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *numbers])


def seed_globals(seed: int, purpose: str, *numbers: int) -> None:
    """Seed `random`, numpy and torch for code that draws from them: Flower's sampling and noise, a model's init."""
    drawn = int(generator(seed, purpose, *numbers).integers(2**31))
    random.seed(drawn)
    np.random.seed(drawn)
    torch.manual_seed(drawn)


def unseed_noise() -> None:
    """From now on numpy's global generator, from which Flower's noise comes, draws what no seed can draw again."""
    np.random.seed(None)


@contextmanager
def seeded_globals(seed: int, purpose: str, *numbers: int) -> Iterator[None]:
    """`seed_globals` for what runs inside; afterwards the global generators are as they were."""
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices):
        seed_globals(seed, purpose, *numbers)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
