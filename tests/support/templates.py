"""Chat templates that write the formats of well-known families, and small tokenizers with their special tokens.

The formats are those of the published model cards; the templates are written here.
"""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOLLM2 = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}" + CHATML
)  # brings a system text of its own
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (  # writes no marker before an answer, and a space before each text
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
QWEN3 = (  # leaves out the thoughts of earlier turns, and writes an empty thought before the last answer
    "{% set last = namespace(user=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set last.user = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% set parts = m.content.split('</think>') %}"
    "{% if loop.index0 > last.user %}<think>\n"
    "{{ parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 else '' }}\n</think>\n\n{% endif %}"
    "{{ parts[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
PHI = (  # ends a whole conversation with end-of-text
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
DEEPSEEK = (  # asks for a thought, and writes answers without it: no prompt is the start of its conversation
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<|Assistant|>"
    "{{ m.content.split('</think>')[-1] }}<|end|>{% else %}<|User|>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)

# Family: its template, its special tokens, begin-of-text (None: none), end-of-text, "spm" or "bpe" tokenizer.
FAMILIES = {
    "ChatML": (CHATML, ["<|im_start|>", "<|im_end|>"], None, "<|endoftext|>", "bpe"),
    "SmolLM2": (SMOLLM2, ["<|im_start|>"], None, "<|im_end|>", "bpe"),
    "Llama 3": (
        LLAMA3,
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "bpe",
    ),
    "Gemma": (GEMMA, ["<start_of_turn>", "<end_of_turn>"], "<bos>", "<eos>", "spm without a space"),
    "Mistral": (MISTRAL, ["[INST]", "[/INST]"], "<s>", "</s>", "spm"),
    "Qwen 3": (QWEN3, ["<|im_start|>", "<|endoftext|>"], None, "<|im_end|>", "bpe"),
    "Phi": (PHI, ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"], "<s>", "<|endoftext|>", "spm"),
    "Zephyr": (ZEPHYR, [], "<s>", "</s>", "spm"),
    "DeepSeek": (DEEPSEEK, ["<|User|>", "<|Assistant|>", "<|end|>"], "<|begin|>", "<|stop|>", "bpe"),
}
# The special token that ends an answer.
ENDS = {
    **dict.fromkeys(("ChatML", "SmolLM2", "Qwen 3"), "<|im_end|>"),
    **{"Llama 3": "<|eot_id|>", "Gemma": "<end_of_turn>", "Mistral": "</s>", "Phi": "<|end|>", "Zephyr": "</s>"},
    "DeepSeek": "<|end|>",
}


# Line breaks stay together, also before a word; GPT-2 divides them there.
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes or characters with the special tokens and the template of a family."""
    template, special, begin, end, kind = FAMILIES[family]
    found = _bytes() if kind == "bpe" else _characters(writes_space=kind == "spm")
    rstrip = family == "Phi"  # its tokens swallow the white space behind them
    more = [AddedToken(token, special=True, rstrip=rstrip, normalized=False) for token in special]
    made = PreTrainedTokenizerFast(
        tokenizer_object=found, bos_token=begin, eos_token=end, extra_special_tokens=more, chat_template=template
    )
    if family == "Qwen 3":
        made.add_tokens(["<think>", "</think>"])
    return made


def _bytes() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("H", "e"), ("l", "l"), ("i", "m"), ("Ġ", "t"), ("<", "|"), ("|", ">"), ("Ċ", "Ċ")]
    vocabulary = {token: place for place, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    found = Tokenizer(models.BPE(vocabulary, merges))
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    found.decoder = decoders.ByteLevel()
    return found


def _characters(*, writes_space: bool) -> Tokenizer:
    """Return a tokenizer in the manner of SentencePiece, which may begin each text with a space."""
    letters = [chr(code) for code in range(32, 127) if chr(code) != " "] + ["▁", "\n", "é"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    merges = [("▁", "t"), ("l", "l"), ("I", "N")]
    tokens = ["<unk>", *bytes_, *letters, *(a + b for a, b in merges)]
    found = Tokenizer(
        models.BPE({token: place for place, token in enumerate(tokens)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    space = [normalizers.Prepend("▁")] if writes_space else []
    found.normalizer = normalizers.Sequence([*space, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if writes_space else []
    found.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return found
