"""Directories, hub names and GGUF files: what is missing or damaged is refused in one line."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from fed.model.demo import demo_tokenizer
from fed.model.policy import save_policy
from fed.model.references import weights_hash
from scripts import convert_gguf
from support.models import write_gguf
from support.policies import load, logits, refusal, same_weights


def copied(directory: Path, target: Path, *, without: str = "") -> Path:
    target.mkdir()
    for file in directory.iterdir():
        if file.name != without:
            (target / file.name).write_bytes(file.read_bytes())
    return target


def test_a_directory_that_is_not_there_is_refused(tmp_path):
    assert f"model directory {tmp_path}/none does not exist" in refusal(tmp_path / "none")


def test_a_name_that_only_the_hub_could_know_is_refused_when_the_hub_cannot_be_reached():
    message = refusal("nobody/nothing")
    assert "cannot load the tokenizer of nobody/nothing" in message and "HF_HUB_OFFLINE" in message


@pytest.mark.parametrize(
    ("without", "what"), [("model.safetensors", "model"), ("config.json", "model"), ("tokenizer.json", "tokenizer")]
)
def test_a_directory_that_lacks_a_file_is_refused(tmp_path, gpt2, without, what):
    message = refusal(copied(gpt2, tmp_path / "model", without=without))
    assert f"cannot load the {what} of" in message or "cannot load the tokenizer of" in message
    assert "expected a directory with config, tokenizer and weights" in message


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_file_is_refused(tmp_path, gpt2, file):
    directory = copied(gpt2, tmp_path / "model")
    (directory / file).write_bytes((directory / file).read_bytes()[:50])
    assert "cannot load the" in refusal(directory)


def test_a_model_with_weights_missing_is_refused_instead_of_filled_with_noise(tmp_path, gpt2):
    directory = copied(gpt2, tmp_path / "model", without="model.safetensors")
    state = load(gpt2).model.state_dict()
    kept = {name: tensor for name, tensor in state.items() if ".h.1." not in name and name != "lm_head.weight"}
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})
    assert "lacks 12 weights of GPT2LMHeadModel (first: transformer.h.1." in refusal(directory)


def test_a_tokenizer_without_end_of_text_is_refused(tmp_path, gpt2):
    directory = copied(gpt2, tmp_path / "model")
    tokenizer = demo_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(directory)
    assert "has no end-of-text token" in refusal(directory)
    assert load(directory, tokenizer_name_or_path=str(gpt2)).tokenizer.eos_token_id == 256


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path, gpt2):
    directory = tmp_path / "tokenizer"
    tokenizer = demo_tokenizer()
    tokenizer.add_tokens(["whole", "words"])
    tokenizer.save_pretrained(directory)
    assert f"has 259 tokens but model {gpt2} embeds 257" in refusal(gpt2, tokenizer_name_or_path=str(directory))


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory, llama) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, LlamaForCausalLM.from_pretrained(llama))
    return path


def test_a_gguf_file_gives_its_weights_and_tokenizer(gguf_file, llama):
    policy = load(None, gguf_file=str(gguf_file))
    assert torch.equal(logits(policy.model), logits(load(llama).model))
    assert policy.split_head and not policy.model.training
    assert policy.tokenizer("ab<|endoftext|>")["input_ids"] == [demo_tokenizer().convert_tokens_to_ids("\u0100"), 256]
    relative = load(gguf_file.parent, gguf_file=gguf_file.name, tokenizer_name_or_path=str(llama))
    assert same_weights(relative.model, policy.model) and relative.tokenizer("ab")["input_ids"] == [64, 65]


def test_a_policy_from_gguf_can_be_saved_although_transformers_own_cannot(tmp_path, gguf_file):
    own = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    with pytest.raises(ValueError, match="quantized with gguf and is not serializable"):
        own.save_pretrained(tmp_path / "own")
    policy = load(None, gguf_file=str(gguf_file))
    save_policy(policy, tmp_path / "policy")
    assert same_weights(load(tmp_path / "policy").model, policy.model)


def test_a_converted_gguf_file_is_the_same_model(tmp_path, gguf_file, capsys):
    assert convert_gguf.main([str(gguf_file), str(tmp_path / "model")]) == 0
    file, folder = load(None, gguf_file=str(gguf_file)), load(tmp_path / "model")
    assert weights_hash(file) == weights_hash(folder)
    texts = ["ab c<|endoftext|>", "\u00e9 \n\n"]
    assert file.tokenizer(texts)["input_ids"] == folder.tokenizer(texts)["input_ids"]
    for mistake, words in (([], "FILE.gguf FOLDER"), ([str(gguf_file), str(tmp_path / "model")], "exists")):
        assert convert_gguf.main(mistake) == 2 and words in capsys.readouterr().err
    assert convert_gguf.main([str(tmp_path / "none.gguf"), str(tmp_path / "new")]) == 2
    assert "no such file" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_a_gguf_file_that_is_missing_or_no_gguf_is_refused(tmp_path, llama):
    assert f"model.gguf_file={tmp_path}/none.gguf: no such file" in refusal(None, gguf_file=f"{tmp_path}/none.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"no weights")
    message = refusal(None, gguf_file=f"{tmp_path}/bad.gguf", tokenizer_name_or_path=str(llama))
    assert "cannot load the model" in message
