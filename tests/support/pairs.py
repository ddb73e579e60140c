"""Made-up pairs."""

from fed.data.examples import Example
from fed.seeding import generator


def examples(count: int, *, seed: int = 0, vocabulary: int = 31) -> list[Example]:
    """Ragged pairs of random tokens; preferred responses have the smaller token ids, so it can be learned."""
    rng = generator(seed, "test examples")

    def ids(length: int, low: int, high: int) -> tuple[int, ...]:
        return tuple(int(i) for i in rng.integers(low, high, length))

    half = vocabulary // 2
    return [
        Example(
            prompt=ids(int(rng.integers(2, 6)), 0, vocabulary),
            chosen=ids(int(rng.integers(1, 6)), 0, half),
            rejected=ids(int(rng.integers(1, 6)), half, vocabulary),
        )
        for _ in range(count)
    ]
