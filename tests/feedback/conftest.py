"""The small models of tests/model."""

from model.conftest import gpt2, llama, no_progress_bars

__all__ = ["gpt2", "llama", "no_progress_bars"]
