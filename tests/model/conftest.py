"""Two small models as HF directories, and no progress bars."""

from pathlib import Path

import pytest
import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel

from fed.model.demo import demo_model, demo_tokenizer


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    """Save a two-layer GPT-2 as an HF directory, with tied embeddings and dropout 0.1 in its configuration."""
    directory = tmp_path_factory.mktemp("gpt2")
    tokenizer = demo_tokenizer()
    end = tokenizer.eos_token_id
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=257, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=end, eos_token_id=end
    )
    GPT2LMHeadModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    """Save the demo model as an HF directory."""
    directory = tmp_path_factory.mktemp("llama")
    torch.manual_seed(2)
    demo_model(demo_tokenizer()).save_pretrained(directory)
    demo_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(autouse=True, scope="session")
def no_progress_bars() -> None:
    transformers.logging.disable_progress_bar()
