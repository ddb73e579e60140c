"""The devices that a test runs on: the CPU and, where there is one, a GPU."""

import pytest

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
DEVICES = ("cpu", GPU)
