import copy
import functools
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from fed.config.groups import ModelSettings
from fed.data.collate import collate
from fed.errors import CannotWrite
from fed.model import policy as policy_module
from fed.model.demo import demo_tokenizer
from fed.model.evaluation import evaluate
from fed.model.loading import load_policy
from fed.model.placement import Placement
from fed.model.policy import Policy, response_logps, save_policy
from fed.model.references import weights_hash, with_reference
from losses.preference import dpo
from scripts import convert_gguf
from support.models import write_gguf
from support.pairs import examples

CPU = torch.device("cpu")
PAIRS = examples(9, vocabulary=257)
DTYPES = ("float32", "bfloat16")


@pytest.fixture(autouse=True, scope="module")
def no_progress_bars():
    transformers.logging.disable_progress_bar()


def load(name: object = "demo", *, activation_checkpointing: bool = False, **more: object) -> Policy:
    torch.manual_seed(0)
    settings = ModelSettings(name_or_path=None if name is None else str(name), **more)
    return load_policy(settings, Placement(CPU), activation_checkpointing=activation_checkpointing)


def refusal(name: object = "demo", **more: object) -> str:
    """Return the message of the `ValueError` that loading raises, and check that it has one line."""
    with pytest.raises(ValueError) as caught:
        load(name, **more)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(40)[None]).logits


# The reference column


def fill(policy: Policy, cache: Path | None, pairs=PAIRS, batch_size=4, **more):
    return with_reference(policy, pairs, batch_size=batch_size, cache=cache, weights_hash=weights_hash(policy), **more)


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """Count the pairs of each batch that a model scores."""
    counted: list[int] = []

    def counting(policy, batch):
        counted.append(len(batch.sizes) // 2)
        return response_logps(policy, batch)

    monkeypatch.setattr(policy_module, "response_logps", counting)
    return counted


def test_the_reference_column_is_read_back_without_running_the_model(tmp_path, passes):
    first = fill(load(), tmp_path / "new" / "folder")
    assert sum(passes) == len(PAIRS)
    passes.clear()
    assert fill(load(), tmp_path / "new" / "folder") == first
    assert passes == []
    assert [entry.suffix for entry in (tmp_path / "new" / "folder").iterdir()] == [".npy"]


def test_filling_the_reference_column_tells_of_every_pair_once(tmp_path):
    computed, cached = [], []
    fill(load(), tmp_path, on_pairs=computed.append)
    fill(load(), tmp_path, on_pairs=cached.append)
    assert len(computed) > 1 and sum(computed) == len(PAIRS)
    assert cached == [len(PAIRS)]


def test_the_reference_column_leaves_the_rest_of_an_example_alone(tmp_path):
    assert [replace(pair, reference=None) for pair in fill(load(), tmp_path)] == PAIRS
    assert fill(load(), None) == fill(load(), tmp_path)
    assert fill(load(), tmp_path, pairs=[]) == []


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda path: path.write_bytes(b""),
    "header only": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "text": lambda path: path.write_text("no numbers"),
    "a zip file": lambda path: path.write_bytes(b"PK\x03\x04 and so on"),
    "a pickle": lambda path: path.write_bytes(pickle.dumps([1, 2])),
    "of another length": lambda path: np.save(path, np.zeros((3, 2))),
    "of another dtype": lambda path: np.save(path, np.zeros((len(PAIRS), 2), dtype=np.float32)),
    "not finite": lambda path: np.save(path, np.full((len(PAIRS), 2), np.nan)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_entry_is_computed_anew_and_repaired(tmp_path, passes, damage):
    first = fill(load(), tmp_path)
    (entry,) = tmp_path.iterdir()
    healthy = entry.read_bytes()
    DAMAGES[damage](entry)
    passes.clear()
    assert fill(load(), tmp_path) == first
    assert sum(passes) == len(PAIRS)
    assert list(tmp_path.iterdir()) == [entry] and entry.read_bytes() == healthy


def other_weights(policy: Policy) -> None:
    with torch.no_grad():
        next(policy.model.parameters())[0, 0] += 1e-3


def other_rotary_base(policy: Policy) -> None:
    policy.model.config.rope_parameters["rope_theta"] = 5e5


@pytest.mark.parametrize("change", [other_weights, other_rotary_base])
def test_another_model_has_another_entry(tmp_path, passes, change):
    fill(load(), tmp_path)
    passes.clear()
    policy = load()
    change(policy)
    fill(policy, tmp_path)
    assert sum(passes) == len(PAIRS)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 5},
        {"pairs": PAIRS[::-1]},
        {"pairs": PAIRS[:-1]},
        {"pairs": [*PAIRS[:-1], replace(PAIRS[-1], chosen=(*PAIRS[-1].chosen, 7))]},
        # The same tokens in a row, cut elsewhere.
        {"pairs": [*PAIRS[:-1], replace(PAIRS[-1], prompt=PAIRS[-1].prompt[:1], chosen=(1, *PAIRS[-1].chosen))]},
    ],
    ids=["batch size", "order", "fewer", "a token more", "another cut"],
)
def test_other_tokens_or_batches_have_another_entry(tmp_path, passes, changes):
    fill(load(), tmp_path)
    passes.clear()
    fill(load(), tmp_path, **changes)
    assert passes and len(list(tmp_path.iterdir())) == 2


def test_another_precision_has_another_entry(tmp_path, passes):
    fill(load(), tmp_path)
    passes.clear()
    mixed = load(fsdp_policy_mp="bfloat16")
    assert weights_hash(mixed) == weights_hash(load())
    fill(mixed, tmp_path)
    assert sum(passes) == len(PAIRS)


def test_the_same_model_from_another_folder_shares_its_entry(tmp_path, passes, llama):
    fill(load(llama), tmp_path / "cache")
    save_policy(load(llama), tmp_path / "copy")
    passes.clear()
    fill(load(tmp_path / "copy"), tmp_path / "cache")
    assert passes == []


def test_a_cache_that_cannot_be_written_is_told_with_the_way_out(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CannotWrite, match=r"cannot write .*file/reference/.*: Not a directory"):
        fill(load(), tmp_path / "file" / "reference")


@pytest.mark.parametrize("policy_dtype", DTYPES)
@pytest.mark.parametrize("fsdp_policy_mp", [None, "bfloat16"])
def test_untrained_weights_tie_exactly_in_every_precision(tmp_path, policy_dtype, fsdp_policy_mp):
    policy = load(policy_dtype=policy_dtype, fsdp_policy_mp=fsdp_policy_mp)
    assert policy.model.dtype == getattr(torch, policy_dtype)
    for _ in range(2):  # computed, then from the cache
        pairs = fill(policy, tmp_path)
        found = evaluate(policy, pairs, loss=functools.partial(dpo, beta=0.1), beta=0.1, batch_size=4)
        assert (found["accuracy"], found["ties"], found["margin"], found["kl"]) == (0.0, 1.0, 0.0, 0.0)


def test_mixed_precision_computes_in_bfloat16_and_keeps_float32_weights_and_gradients():
    mixed, full = load(fsdp_policy_mp="bfloat16"), load()
    logps = response_logps(mixed, collate(PAIRS))
    exact = response_logps(full, collate(PAIRS))
    assert logps.chosen.dtype == torch.float32
    assert not torch.equal(logps.chosen, exact.chosen)
    assert torch.allclose(logps.chosen, exact.chosen, rtol=1e-2)
    logps.chosen.sum().backward()
    assert {p.grad.dtype for p in mixed.model.parameters()} == {torch.float32}


# Loading


def test_the_demo_is_a_function_of_torchs_seed():
    one, other = load(), load()
    assert same_weights(one.model, other.model)
    assert one.split_head and one.compute_dtype is None and not one.model.training
    assert 50_000 < one.model.num_parameters() < 150_000


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_local_directory_gives_its_weights_and_tokenizer(request, family):
    directory = request.getfixturevalue(family)
    policy = load(directory, block_name={"gpt2": "GPT2Block", "llama": "LlamaDecoderLayer"}[family])
    stored = AutoModelForCausalLM.from_pretrained(directory)
    assert same_weights(policy.model, stored) and policy.split_head
    assert policy.tokenizer("a\u00e9")["input_ids"] == demo_tokenizer()("a\u00e9")["input_ids"]
    assert policy.tokenizer.eos_token_id == 256


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_kept_in_policy_dtype(gpt2, dtype):
    assert {p.dtype for p in load(gpt2, policy_dtype=dtype).model.parameters()} == {getattr(torch, dtype)}


def test_dropout_is_off_even_in_training_mode(gpt2):
    stored = AutoModelForCausalLM.from_pretrained(gpt2).train()
    assert not torch.equal(logits(stored), logits(stored)), "as stored, it has dropout"
    assert not load(gpt2).model.training
    model = load(gpt2).model.train()
    assert torch.equal(logits(model), logits(model))
    assert torch.equal(logits(model), logits(stored.eval()))


@pytest.mark.parametrize(("family", "block"), [("demo", "LlamaMLP"), ("gpt2", "GPT2MLP")])
def test_activation_checkpointing_computes_twice_and_gives_the_same_gradients(request, family, block):
    name = "demo" if family == "demo" else request.getfixturevalue(family)
    gradients, calls = [], []
    for checkpointing in (False, True):
        policy = load(name, activation_checkpointing=checkpointing)
        calls.append(0)

        def count(*_: object) -> None:
            calls[-1] += 1

        for module in policy.model.modules():
            if type(module).__name__ == block:
                module.register_forward_pre_hook(count)
        response_logps(policy, collate(PAIRS)).chosen.sum().backward()
        gradients.append({name: p.grad for name, p in policy.model.named_parameters()})
    assert calls == [2, 4]
    assert all(torch.equal(grad, gradients[1][name]) for name, grad in gradients[0].items())


# Archives


def archive_of(model: torch.nn.Module, kind: str, folder: Path) -> Path:
    """Write the model's weights in one of the forms that can be read."""
    state = model.state_dict()
    if kind == "directory":
        model.save_pretrained(folder / "archive")
        return folder / "archive"
    if kind == "headless directory":  # as the hub's GPT-2: no "transformer." before the names
        model.base_model.save_pretrained(folder / "archive")
        return folder / "archive"
    if kind == "sharded directory":
        model.save_pretrained(folder / "archive", max_shard_size="20KB")
        assert len(list((folder / "archive").glob("*.safetensors"))) > 1
        return folder / "archive"
    if kind == "safetensors":  # a tied tensor is stored once
        state.pop("lm_head.weight")
        save_file(state, folder / "weights.safetensors")
        return folder / "weights.safetensors"
    if kind == "policy.pt":
        masks = {f"transformer.h.{n}.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.bool) for n in range(2)}
        masks |= {f"transformer.h.{n}.attn.masked_bias": torch.tensor(-1e4) for n in range(2)}
        state = {"step_idx": 19968, "state": {**state, **masks}, "metrics": {"loss/eval": 0.5}}
    torch.save(state, folder / "policy.pt")
    return folder / "policy.pt"


KINDS = ["directory", "headless directory", "sharded directory", "safetensors", "policy.pt", "bare state dict"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_replaces_every_weight(tmp_path, gpt2, kind):
    trained = load(gpt2).model
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.randn_like(parameter))
    policy = load(gpt2, archive=str(archive_of(trained, kind, tmp_path)))
    assert same_weights(policy.model, trained) and not same_weights(policy.model, load(gpt2).model)
    assert policy.model.lm_head.weight is policy.model.transformer.wte.weight


def gpt2_like(**changes: int) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(**{"vocab_size": 257, "n_embd": 16, "n_layer": 2, "n_head": 2, **changes}))


@pytest.mark.parametrize("kind", ["directory", "policy.pt"])
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"n_layer": 1}, "weights missing (first: transformer.h.1."),
        ({"n_layer": 3}, "weights unknown (first: transformer.h.2."),
        ({"n_positions": 32}, "1 weights of another shape (first: transformer.wpe.weight)"),
    ],
)
def test_an_archive_of_another_architecture_is_refused(tmp_path, gpt2, kind, changes, problem):
    archive = archive_of(gpt2_like(**{"n_positions": 64, **changes}), kind, tmp_path)
    message = refusal(gpt2, archive=str(archive))
    assert f"archive {archive} does not match the model" in message and problem in message


def test_an_archive_of_another_family_is_refused(gpt2, llama):
    message = refusal(gpt2, archive=str(llama))
    assert "weights missing (first: transformer." in message and "weights unknown (first: model." in message


def test_an_archive_that_unties_tied_weights_is_refused_instead_of_loaded_in_some_order(tmp_path, gpt2):
    state = load(gpt2).model.state_dict()
    torch.save({**state, "lm_head.weight": state["lm_head.weight"] + 1}, tmp_path / "policy.pt")
    assert "1 weights tied in the model only (first: " in refusal(gpt2, archive=str(tmp_path / "policy.pt"))


class Code:
    """A pickle that touches a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.marker,)


def test_code_in_a_pickled_archive_is_not_run(tmp_path, gpt2):
    marker, archive = tmp_path / "marker", tmp_path / "policy.pt"
    torch.save({"state": load(gpt2).model.state_dict(), "code": Code(marker)}, archive)
    assert f"cannot read archive {archive}: it is damaged or holds more than tensors" in refusal(
        gpt2, archive=str(archive)
    )
    assert not marker.exists()
    torch.load(archive, weights_only=False)
    assert marker.exists(), "the file does hold code"


def write(path: Path, content: object) -> Path:
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("policy.pt", b"", "cannot read archive"),
        ("policy.pt", b"no weights", "cannot read archive"),
        ("weights.safetensors", b"no weights", "cannot read archive"),
        ("policy.pt", [1, 2], "holds no weights; expected a policy.pt"),
        ("optimizer.pt", {"step_idx": 1, "state": {"state": {}, "param_groups": []}}, "holds no weights"),
        ("policy.pt", {}, "29 weights missing"),
    ],
)
def test_a_file_that_is_no_archive_is_refused(tmp_path, gpt2, name, content, problem):
    assert problem in refusal(gpt2, archive=str(write(tmp_path / name, content)))


def test_an_archive_that_is_not_there_is_refused(tmp_path, gpt2):
    assert "does not exist; give" in refusal(gpt2, archive=str(tmp_path / "policy.pt"))
    assert "cannot load the archive of" in refusal(gpt2, archive=str(tmp_path))


# The user's mistakes


def copied(directory: Path, target: Path, *, without: str = "") -> Path:
    target.mkdir()
    for file in directory.iterdir():
        if file.name != without:
            (target / file.name).write_bytes(file.read_bytes())
    return target


def test_no_model_is_refused():
    assert "set model.name_or_path" in refusal(None)


@pytest.mark.parametrize("key", ["policy_dtype", "fsdp_policy_mp"])
def test_an_unknown_dtype_is_refused(key):
    assert f"model.{key}=int8 is not a dtype; expected one of float32, bfloat16, float16" in refusal(**{key: "int8"})


def test_a_reference_in_another_dtype_is_refused():
    assert "round 0 would measure rounding noise" in refusal(reference_dtype="float16")
    assert load(reference_dtype="float32").model.dtype == torch.float32


def test_computing_in_more_bits_than_the_weights_have_is_refused():
    message = refusal(policy_dtype="bfloat16", fsdp_policy_mp="float32")
    assert "model.fsdp_policy_mp=float32" in message and "set policy_dtype=float32" in message


def test_a_wrong_block_name_is_refused_with_the_right_ones(gpt2):
    assert "model.block_name=GPTJBlock is no module of the model; it has GPT2Block" in refusal(
        gpt2, block_name="GPTJBlock"
    )


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


# Saving


@pytest.mark.parametrize("family", ["demo", "gpt2"])
def test_a_saved_policy_is_loaded_by_transformers_and_by_us_with_the_same_logits(tmp_path, request, family):
    policy = load("demo" if family == "demo" else request.getfixturevalue(family))
    save_policy(policy, tmp_path / "policy")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "policy").eval()
    assert torch.equal(logits(model), logits(policy.model))
    assert torch.equal(logits(load(tmp_path / "policy").model), logits(policy.model))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    text = "\n\nHuman: na\u00efve?\n\nAssistant:"
    assert tokenizer(text)["input_ids"] == policy.tokenizer(text)["input_ids"]
    assert tokenizer.eos_token_id == policy.tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_saved_policy_serves_as_archive(tmp_path, gpt2):
    policy = load(gpt2)
    with torch.no_grad():
        next(policy.model.parameters()).mul_(2.0)
    save_policy(policy, tmp_path / "policy")
    assert same_weights(load(gpt2, archive=str(tmp_path / "policy")).model, policy.model)


# GGUF


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


# The hash of the weights


def test_the_weights_hash_sees_values_names_shapes_and_dtypes(policy):
    before = weights_hash(policy)
    assert weights_hash(replace(policy, model=copy.deepcopy(policy.model))) == before
    for change in (
        lambda model: model.to(torch.bfloat16),
        lambda model: model.register_buffer("scale", torch.ones(())),
        lambda model: setattr(model.model.norm, "weight", torch.nn.Parameter(torch.ones(4, 4))),
    ):
        changed = copy.deepcopy(policy.model)
        change(changed)
        assert weights_hash(replace(policy, model=changed)) != before
