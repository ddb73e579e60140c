"""Fixtures of the tests of checkpoints."""

import pytest

from fed.grids.local import LocalGrid


@pytest.fixture(autouse=True)
def grid() -> LocalGrid:
    """Create a grid: `Message()` needs the identity that it sets."""
    return LocalGrid(lambda message, context: message, [])
