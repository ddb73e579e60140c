"""The demo model: a tiny Llama and a byte-level tokenizer, built in code, so that a first run needs no download."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"


def demo_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token per byte, plus end-of-text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate([*alphabet, END_OF_TEXT])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)


def demo_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Configure about 0.1 million parameters: enough to learn the demo's preference, few enough for one CPU core."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )


def demo_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Build the model with random weights; seed torch before the call."""
    return LlamaForCausalLM(demo_config(tokenizer))
