"""A model's directory and data files as they should be; bad_inputs.py damages them."""

import json
from pathlib import Path


def save_gpt2(directory: Path, *, layers: int = 2, positions: int = 512, vocabulary: int | None = None) -> None:
    """Save a small random GPT-2 and the demo's tokenizer; `vocabulary` is that of the model only."""
    import torch  # seconds, that a look at the table of bad inputs need not wait for
    from transformers import GPT2Config, GPT2LMHeadModel

    from fed.model.demo import demo_tokenizer

    tokenizer, end = demo_tokenizer(), demo_tokenizer().eos_token_id
    torch.manual_seed(layers)
    config = GPT2Config(
        vocab_size=vocabulary or len(tokenizer),
        n_embd=16,
        n_layer=layers,
        n_head=2,
        n_positions=positions,
        bos_token_id=end,
        eos_token_id=end,
    )
    GPT2LMHeadModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def hh_line(number: int) -> str:
    """Return a record of Anthropic's data as a line."""
    start = f"\n\nHuman: What is {number}?\n\nAssistant:"
    return json.dumps({"chosen": f"{start} A number.", "rejected": f"{start} Go away, {number}."}) + "\n"
