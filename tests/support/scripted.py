"""Models whose next token is known: each token is followed by the one that a test names."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from fed.model.demo import demo_config, demo_tokenizer

SIZE = 260  # of a hidden state: one number for each token, and heads of an even size
SURE = 20.0  # the logit of the next token, far above the others' 0


def scripted_model(follows: Callable[[int], int]) -> LlamaForCausalLM:
    """Return a model with the demo's vocabulary in which token `follows(t)` comes after token t, whatever is before."""
    tokenizer = demo_tokenizer()
    shape = {"hidden_size": SIZE, "intermediate_size": 4, "num_hidden_layers": 1, "head_dim": SIZE}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    config = demo_config(tokenizer)
    config.update({**shape, **heads, "max_position_embeddings": 2048, "tie_word_embeddings": False})
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:  # the hidden state stays the token's own
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(tokenizer), SIZE))
        model.lm_head.weight.zero_()
        for token in range(len(tokenizer)):
            model.lm_head.weight[follows(token), token] = SURE / SIZE**0.5
    return model


def save_scripted(folder: Path, text: str, *, chat_template: str | None = None) -> Path:
    """Save a model that writes `text` behind its first letter, or behind any that is not in it, and then ends.

    No letter may stand in the text twice.
    """
    tokenizer = demo_tokenizer()
    ids = tokenizer(text)["input_ids"]
    assert len(set(ids)) == len(ids), "a letter has one successor"
    after = dict(zip(ids, [*ids[1:], tokenizer.eos_token_id], strict=True))
    scripted_model(lambda token: after.get(token, ids[0])).save_pretrained(folder)
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    return folder
