"""A model that answers a known text, and whose choice between two responses is known: more letters beyond ASCII."""

from pathlib import Path

import torch
from transformers.models.llama.modeling_llama import LlamaAttention

from fed.model.demo import demo_tokenizer
from support.scripted import SIZE, scripted_model
from support.templates import CHATML

TEXT = "Not clear"  # no letter stands in it twice, and it begins with neither A nor B
ONE, OPINION = 257, 258  # places of a hidden state behind those of the tokens
REACH = 200.0  # tokens over which a head's attention grows or falls by a factor of e
GAIN = 5.0
# With what the server adds, the first response stands in the front half of a question, the second in the other half.
PROMPT = """
user: |
  A user has asked an assistant something, and two assistants have answered. You see one of the responses first, then
  the question, and then the other response. This is the first one:
  {a}

  This is what the user asked:
  {prompt}

  Read both responses with care. It does not matter which of them is longer, or which of them sounds more certain.
  It matters which of them is of more use. This is the second one:
  {b}
first: '^a'
second: '^b'
"""


def save_served_judge(folder: Path) -> Path:
    """Save the model, with a chat template.

    It writes `TEXT`. One of its heads looks far back and one near, and both see letters beyond ASCII only: those that
    are far speak for the label A, those that are near for B. Without such letters both labels are equally likely.
    """
    tokenizer = demo_tokenizer()
    tokenizer.chat_template = CHATML
    ids = tokenizer(TEXT)["input_ids"]
    after = dict(zip(ids, [*ids[1:], tokenizer.eos_token_id], strict=True))
    model = scripted_model(lambda token: after.get(token, ids[0]))
    model.config.num_attention_heads = 2
    model.model.layers[0].self_attn = LlamaAttention(model.config, 0)
    beyond = [token for token in range(256) if not tokenizer.decode([token]).isascii()]
    a, b = tokenizer.convert_tokens_to_ids(["A", "B"])
    with torch.no_grad():
        _look_far_and_near(model.model.layers[0].self_attn, float(model.model.rotary_emb.inv_freq[-1]), beyond)
        model.model.embed_tokens.weight[:, ONE] = 1
        model.lm_head.weight[a, OPINION], model.lm_head.weight[b, OPINION] = GAIN, -GAIN
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _look_far_and_near(attention: LlamaAttention, frequency: float, seen: list[int]) -> None:
    """Have two heads see these tokens, one the farther the better and one the nearer; write the difference.

    RoPE turns a query and a key that stand at right angles into the sine of their distance times the frequency. At the
    lowest frequency that is a line over all distances of a test.
    """
    for parameter in attention.parameters():
        parameter.zero_()
    half = SIZE // 2
    slope = frequency * half / SIZE**0.5  # the norm before the layer makes sqrt(half) of each of two ones
    attention.q_proj.weight[[half - 1, SIZE + half - 1], ONE] = torch.tensor([1.0, -1.0]) / (REACH * slope)
    attention.k_proj.weight[SIZE - 1, ONE] = 1
    attention.v_proj.weight[0, seen] = 1
    attention.o_proj.weight[OPINION, [0, SIZE]] = torch.tensor([1.0, -1.0])
