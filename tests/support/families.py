"""Tiny random models of many families, ragged pairs, and the plain computation of their log-probs."""

import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    OPTConfig,
    Qwen2Config,
)

from fed.data.examples import Example
from fed.model.demo import demo_tokenizer
from fed.model.policy import Policy
from fed.model.probe import head_can_be_split
from fed.seeding import generator

VOCABULARY = 47
# A range of 0.3 spreads the logits over several nats; the usual 0.02 would make every model nearly uniform.
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
GATED = {**COMMON, "intermediate_size": 24, "num_key_value_heads": 1}
GPT2 = {name: COMMON[name] for name in ("vocab_size", "initializer_range", "bos_token_id", "eos_token_id")}
SPLIT = {
    "llama, tied": LlamaConfig(**GATED, tie_word_embeddings=True),
    "llama, untied": LlamaConfig(**GATED, tie_word_embeddings=False),
    "gpt2": GPT2Config(**GPT2, n_embd=16, n_layer=2, n_head=2, n_positions=64),
    "gpt-neox": GPTNeoXConfig(**COMMON, intermediate_size=24),
    "qwen2": Qwen2Config(**GATED),
}
WHOLE = {
    "gemma2, logits capped": Gemma2Config(**GATED, head_dim=8, final_logit_softcapping=3.0),
    "cohere, logits scaled": CohereConfig(**GATED, logit_scale=0.25),
    "granite, logits divided": GraniteConfig(**GATED, logits_scaling=4.0),
    "opt, decoder inside": OPTConfig(
        vocab_size=VOCABULARY, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, word_embed_proj_dim=16, init_std=0.3,
    ),
}  # fmt: skip
FAMILIES = {**SPLIT, **WHOLE}
# (prompt, chosen, rejected) tokens: single-token prompts and responses, a long prompt, a long response.
LENGTHS = [(1, 1, 1), (1, 7, 2), (3, 1, 5), (40, 2, 3), (5, 4, 4), (2, 30, 1)]


def make_policy(family: str) -> Policy:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]).eval()
    return Policy(model, demo_tokenizer(), torch.device("cpu"), split_head=head_can_be_split(model))


def ragged() -> list[Example]:
    rng = generator(0, "ragged")
    return [
        Example(*(tuple(int(i) for i in rng.integers(0, VOCABULARY, length)) for length in lengths))
        for lengths in LENGTHS
    ]


def plain_logp(model: torch.nn.Module, prompt: tuple[int, ...], response: tuple[int, ...]) -> torch.Tensor:
    logps_TV = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
    return torch.stack([logps_TV[len(prompt) + i - 1, token] for i, token in enumerate(response)]).sum()


def plain_logps(model: torch.nn.Module, pairs: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = torch.stack([plain_logp(model, pair.prompt, pair.chosen) for pair in pairs])
    return chosen, torch.stack([plain_logp(model, pair.prompt, pair.rejected) for pair in pairs])
