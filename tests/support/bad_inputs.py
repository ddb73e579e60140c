"""Bad inputs of every kind: what is typed, what lies in the files it names, and words that the refusal must hold.

Plain data, for tests. "{folder}" stands for the folder that `prepare` fills.
"""

import gzip
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from support.command_line import SMALL
from support.good_inputs import hh_line, save_gpt2

Kind = Literal["config", "data", "model", "archive"]


@dataclass(frozen=True)
class BadInput:
    """One call of the command line that must be refused with one line, before anything is written."""

    kind: Kind
    name: str
    typed: str
    words: str
    prepare: Callable[[Path], object] | None = None

    def arguments(self, folder: Path) -> list[str]:
        """Return the arguments of `main.py`, flags first; with good input the run would take a second."""
        if self.prepare is not None:
            self.prepare(folder)
        typed = [argument.replace("{folder}", str(folder)) for argument in self.typed.split()]
        flags = [argument for argument in typed if argument.startswith("--")]
        return [*flags, *SMALL, *(argument for argument in typed if argument not in flags)]


# What is typed is the whole mistake.
CONFIG = (
    # no such key or choice
    ("comm_rounds=3", "comm_rounds comm_round)"),
    ("+model.foo=1", "model.foo model.name_or_path, model.archive"),
    ("+strategy.foo=1", "strategy.foo FeDPO weighting"),
    ("+loss.gamma=1", "loss.gamma label_smoothing"),
    ("+partition.foo=1", "partition.foo IidPartitioner num_partitions"),
    ("+wandb.enabled=true", "wandb refused TensorBoard"),
    ("lora.foo=1", "lora.foo lora.r"),
    ("strategy=foo", "strategy=foo fedavg"),
    ("model=gpt", "model=gpt blank_model nearest"),
    ("mode=fedrated", "mode=fedrated centralized nearest: federated"),
    ("trainer=DeepSpeedTrainer", "trainer=DeepSpeedTrainer BasicTrainer"),
    ("datasets=[nope]", "'nope' hh shp jsonl"),
    ("--config-name=nowhere", "nowhere config"),
    ("--nonsense", "--nonsense --help"),
    ("--cfg=nonsense", "--cfg nonsense job --help"),
    ("--shell-completion", "--shell-completion install=SHELL"),
    ("--resolve", "--resolve --cfg"),
    ("--experimental-rerun=config.pickle", "--experimental-rerun pickle code"),
    # no setting at all
    ("a==b", "unknown key a"),
    ("exp_name=beta=0.1", "exp_name=beta=0.1 'exp_name=\"beta=0.1\"'"),
    ("exp_name=1e3", "exp_name=1e3 1000.0 'exp_name=\"1e3\"'"),
    ("lr=1e-5)", "lr=1e-5) number"),
    ("+loss.beta=2", "+loss.beta=2 loss.beta=2 without"),
    ("partition.partition_by=group", "partition.partition_by partition=group"),
    ("foo", "'foo' key=value"),
    ("exp_name=${nope}", "nope ${lr}"),
    ("exp_name=${oc.env:FEDPO_NOT_SET}", "FEDPO_NOT_SET"),
    ("loss.beta=???", "loss.beta"),
    ("~loss.beta", "dpo beta"),
    ("~alpha", "~alpha default"),
    ("--comm_round=3", "--comm_round=3 dashes comm_round=3"),
    ("hydra.run.dir=elsewhere", "hydra.run.dir output_dir"),
    ("comm_round=1,2", "comm_round=1,2 --multirun"),
    ("exp_name='a\udcff'", "exp_name 'a\\udcff' UTF-8"),
    ("+strategy.api_key=1234", "api_key environment.json secret"),
    ("exp_name=${oc.env:HF_TOKEN}", "HF_TOKEN config.yaml secret"),
    ("+strategy=fedavg", "strategy twice"),
    # another type
    ("comm_round=abc", "comm_round=abc whole number"),
    ("comm_round=1.5", "comm_round=1.5 whole number"),
    ("comm_round=[1]", "comm_round=[1] whole number"),
    ("lr=fast", "lr=fast number"),
    ("debug=maybe", "debug=maybe true or false"),
    ("datasets=hh", "datasets=hh list"),
    ("exp_name=[a]", "exp_name=[a] text"),
    ("lora=3", "lora=3 lora.r"),
    ("loss.reference_free=7", "loss.reference_free=7 true or false"),
    ("strategy=fedadam strategy.eta=x", "strategy.eta=x number"),
    # out of range
    ("comm_round=0", "comm_round=0 at least 1"),
    ("seed=-1", "seed=-1 at least 0"),
    ("lr=0", "lr=0 more than 0"),
    ("lr=nan", "lr=nan finite"),
    ("lr=1e400", "lr=inf finite"),
    ("decay_rate=2", "decay_rate=2 at most 1"),
    ("server_fraction=1.5", "server_fraction=1.5 less than 1"),
    ("test_fraction=1", "test_fraction=1 less than 1"),
    ("loss.beta=0", "loss.beta=0 above 0"),
    ("loss.label_smoothing=0.5", "loss.label_smoothing=0.5 below 0.5"),
    ("lora.r=-1", "lora.r=-1 at least 0"),
    ("lora.r=2 lora.alpha=0", "lora.alpha=0 more than 0"),
    ("exp_name=a/b", "exp_name=a/b without slashes"),
    ("exp_name=..", "exp_name=.. name"),
    ("exp_name=" + "a" * 256, "exp_name=aaa short name"),
    ("exp_name='a\x07'", "exp_name=a name"),
    ("num_threads=99999999", "num_threads=99999999 at most 1024"),
    ("strategy=fedadam strategy.tau=0", "strategy.tau=0 more than 0"),
    ("strategy=krum strategy.num_malicious_nodes=-1", "strategy.num_malicious_nodes=-1 at least 0"),
    ("partition=dirichlet partition.alpha=0", "partition Dirichlet greater than zero"),
    ("strategy=fedtrimmedavg strategy.beta=2", "FedTrimmedAvg beta range"),
    # against each other
    ("batch_size=4 gradient_accumulation_steps=3", "gradient_accumulation_steps=3 batch_size=4 divisible"),
    ("max_prompt_length=600", "max_prompt_length=600 max_length=192 raise"),
    ("clients_per_round=11", "clients_per_round=11 client_num_in_total=2"),
    ("clients_in_parallel=3", "clients_in_parallel=3 clients lower"),
    ("trainer_processes=2", "2 processes BasicTrainer FSDPTrainer"),
    ("trainer_processes=3 clients_in_parallel=2", "clients_in_parallel=2 trainer_processes=3"),
    ("local_steps=3 local_epochs=2", "local_steps local_epochs choose one"),
    ("precision=float32 model.fsdp_policy_mp=bfloat16", "precision=float32 model.fsdp_policy_mp=bfloat16 leave"),
    ("strategy.min_available_nodes=99", "min_available_nodes=99 client_num_in_total=2"),
    ("strategy=fedavg client_num_in_total=1 strategy.min_train_nodes=2", "min_train_nodes=2 lower"),
    ("strategy=dp_client_adaptive client_mods=[]", "client_mods=[] adaptiveclipping_mod clip"),
    ("privacy=central_dp", "privacy=central_dp temp=0.1 temp=0 strategy=fedavg"),
    ("privacy=local_dp temp=2", "privacy=local_dp temp=2 temp=0 strategy=fedavg"),
    ("privacy=local_dp strategy=qfedavg strategy.client_learning_rate=1", "privacy=local_dp QFedAvg losses fedavg"),
    ("privacy=central_dp strategy=fedadam", "privacy=central_dp plain mean FedAdam strategy=fedavg local_dp"),
    ("privacy=central_dp strategy=dp_server_adaptive", "privacy=central_dp Adaptive choose one"),
    ("privacy=local_dp strategy=fedavg strategy.fraction_evaluate=1", "privacy=local_dp strategy.fraction_evaluate 0"),
    ("privacy=local_dp strategy=fedavg strategy.weighted_by_key=accuracy", "weighted_by_key=accuracy num-examples"),
    ("privacy=local_dp strategy=fedavg privacy.max_epsilon=1", "privacy.max_epsilon=1 4.73 single round raise"),
    ("strategy=bulyan", "Bulyan num_malicious_nodes=0 client_num_in_total"),
    ("server_fraction=0", "server_fraction=0 raise"),
    ("accuracy_on=client client_eval_fraction=0", "accuracy_on=client client_eval_fraction=0"),
    # without effect
    ("temp=1 strategy=fedavg", "temp no effect strategy=fedavg leave it out"),
    ("decay_target=loss decay_rate=1", "decay_target no effect decay_rate=1 leave it out"),
    ("mode=local weighting=samples", "weighting no effect mode=local leave it out"),
    ("privacy.delta=1e-6", "privacy.delta no effect privacy=none leave it out"),
    ("privacy=local_dp privacy.clipping=client", "privacy.clipping no effect privacy=local_dp leave it out"),
    ("privacy=central_dp mode=centralized", "privacy no effect mode=centralized leave it out"),
    ("data_dir=somewhere", "data_dir no effect datasets=[demo] leave it out"),
    ("lora.alpha=8", "lora.alpha no effect lora.r=0 leave it out"),
    ("cpu_offload=true", "cpu_offload no effect FSDPTrainer leave it out"),
    ("process_timeout=1", "process_timeout no effect one process leave it out"),
    ("cpu_matmul=mkl model.fsdp_policy_mp=bfloat16 device=cpu", "cpu_matmul=mkl no effect bfloat16 leave it out"),
    # components and places
    ("strategy._target_=os.getcwd", "os.getcwd Strategy str"),
    ("strategy._target_=nowhere", "strategy._target_=nowhere module.Name"),
    ("strategy._target_=null", "strategy._target_=None module.Name"),
    ("loss._target_=3", "loss._target_=3 module.Name"),
    ("loss._target_=os.getcwd", "os.getcwd values"),
    ("loss._target_=builtins.print", "print tensor"),
    ("partition._target_=os.getcwd", "os.getcwd partitioner"),
    ("client_mods=[no_such.mod]", "client_mods=no_such.mod imported"),
    ("client_mods=[os.getcwd]", "client_mods=os.getcwd"),
    ("device=nonsense", "device=nonsense device=cpu"),
    ("device=meta", "device=meta device=cpu"),
    ("output_dir=/proc/nowhere", "output_dir=/proc/nowhere another"),
    ("cache_dir=/proc/nowhere", "cache_dir=/proc/nowhere another"),
)


# Data files: one file's bytes, or the bytes of each file of a folder.


def own_line(**changes: object) -> bytes:
    return json.dumps({"prompt": "p", "chosen": "c", "rejected": "r", **changes}).encode() + b"\n"


def hh_lines(numbers: range) -> bytes:
    return "".join(map(hh_line, numbers)).encode()


def files(**contents: bytes) -> Callable[[Path], None]:
    """Return a function that writes each text into the folder, a_jsonl_gz as a.jsonl.gz."""

    def prepare(folder: Path) -> None:
        for name, content in contents.items():
            (folder / re.sub("_(jsonl|json|gz|csv|tsv|parquet|pt|gguf)", r".\1", name)).write_bytes(content)

    return prepare


def locked_folder(folder: Path) -> None:
    """Make a link that leads to itself: no user, not even root, can read it."""
    (folder / "own.jsonl").symlink_to(folder / "own.jsonl")


OWN = "datasets=[files] data_dir={folder}"
ENOUGH = b"".join(own_line(prompt=f"p{number}") for number in range(60))
DATA = (
    ("no such folder", "datasets=[files] data_dir=nowhere", "data_dir=nowhere exist", None),
    ("no data_dir", "datasets=[files]", "files data_dir=", None),
    ("hub out of reach", "datasets=[hh]", "Anthropic/hh-rlhf HF_HUB_OFFLINE is set: unset it data_dir", None),
    ("empty folder", "datasets=[hh] data_dir={folder}", "data_dir .jsonl", files()),
    ("file of another kind", OWN, "data_dir .jsonl", files(a_xlsx=b"PK")),
    ("link to itself", OWN, "data_dir .jsonl", locked_folder),
    ("no folder for one of two", "datasets=[hh,files] data_dir={folder}", "folder 'hh'", files(a_jsonl=ENOUGH)),
    ("no rows", OWN, "train split rows data_dir", files(a_jsonl=b"")),
    ("blank lines", OWN, "train split rows data_dir", files(a_jsonl=b"\n  \r\n")),
    ("no rows to test", "datasets=[hh] data_dir={folder}", "test split rows data_dir",
     files(train_jsonl=hh_lines(range(1)), test_jsonl=b"")),
    ("one row", OWN, "input has 1 pair in 1 conversation 0.1 tested on give more", files(a_jsonl=own_line())),
    ("fewer rows than clients", OWN + " client_num_in_total=50", "client_num_in_total=50 lower",
     files(a_jsonl=ENOUGH[: len(own_line()) * 30])),
    ("fewer examples than clients", "n_train_examples=5 client_num_in_total=10", "client_num_in_total=10 lower", None),
    ("no pairs to limit", "n_eval_examples=5 server_fraction=0 strategy=fedavg", "n_eval_examples no effect", None),
    ("one training example", "n_train_examples=1", "server_fraction 1 pair in 1 conversation more data", None),
    ("all tested", "datasets=[hh] data_dir={folder}", "all 9 training pairs conversations test conversation",
     files(train_jsonl=hh_lines(range(9)), test_jsonl=hh_lines(range(9)))),
    ("only equal answers", OWN, "no rows chosen equals rejected", files(a_jsonl=own_line(chosen="r") * 9)),
    ("only empty answers", OWN, "no rows empty response", files(a_jsonl=own_line(chosen=" ") * 9)),
    ("cut line", "datasets=[hh] data_dir={folder}", "train.jsonl:2: JSON",
     files(train_jsonl=hh_lines(range(1)) + b"{bad\n", test_jsonl=hh_lines(range(2, 3)))),
    ("missing field", "datasets=[hh] data_dir={folder}", "train.jsonl:1: rejected",
     files(train_jsonl=b'{"chosen": "a"}\n', test_jsonl=hh_lines(range(1)))),
    ("records of another data set", "datasets=[shp] data_dir={folder}", "a.jsonl:1: history", files(a_jsonl=ENOUGH)),
    ("number for a text", OWN, "a.jsonl:61: 'prompt' int string", files(a_jsonl=ENOUGH + own_line(prompt=1))),
    ("a number for a text", OWN, "a.jsonl:61: 'chosen' int string", files(a_jsonl=ENOUGH + own_line(chosen=3))),
    ("another form", OWN, "a.jsonl:61 holds single but a.jsonl:1 pairs own",
     files(a_jsonl=ENOUGH + b'{"prompt": "p", "completion": "c"}')),
    ("no form", OWN, "a.jsonl:1: 'text' no known form docs/data.md columns", files(a_jsonl=b'{"text": "t"}')),
    ("half a Parquet file", OWN, "a.parquet complete Parquet download", files(a_parquet=b"PAR1\x15\x04")),
    ("a ragged CSV file", OWN, "a.csv, row 1: more 3 columns", files(a_csv=b"prompt,chosen,rejected\na,b,c,d\n")),
    ("an image", OWN, "a.jsonl:1: 'prompt' image_url remove the row",
     files(a_jsonl=own_line(prompt=[{"role": "user", "content": [{"type": "image_url"}]}]))),
    ("no such column", f"{OWN} columns.prompt=text", "a.jsonl:1: 'text' columns.prompt names", files(a_jsonl=ENOUGH)),
    ("no column to hold out by", f"{OWN} holdout_by=user", "a.jsonl:1: holdout_by=user no column prompt",
     files(a_jsonl=ENOUGH)),
    ("no column of clients", f"{OWN} partition=natural partition.column=user", "column 'user' divide by group prompt",
     files(a_jsonl=ENOUGH)),
    ("chats without a template", OWN, "no chat template chat_template=FILE none",
     files(a_jsonl=b"".join(own_line(prompt=[{"role": "user", "content": str(n)}]) for n in range(60)))),
    ("a template without chats", f"{OWN} system_prompt=kind", "system_prompt=kind no effect text_as_chat=true",
     files(a_jsonl=ENOUGH)),
    ("a hub name without network", "datasets=[a/b]", "download a/b HF_HUB_OFFLINE unset data_dir=", None),
    ("no such template", f"{OWN} chat_template=none.jinja", "chat_template=none.jinja no such file", None),
    ("list for a record", OWN, "a.jsonl:1: list object", files(a_jsonl=b"[1, 2]\n")),
    ("one array for all", OWN, "a.jsonl:1: list object", files(a_jsonl=b"[" + own_line().strip() + b"]")),
    ("indented JSON", OWN, "a.jsonl:1: JSON one object per line", files(a_jsonl=b'{\n "prompt": 1\n}')),
    ("deep nesting", OWN, "a.jsonl:1: JSON", files(a_jsonl=b"[" * 100_000)),
    ("number of thousands of digits", OWN, "a.jsonl:1: JSON", files(a_jsonl=b"9" * 5000)),
    ("half a character", OWN, "a.jsonl:1: 'prompt' whole characters", files(a_jsonl=own_line(prompt="\ud83d"))),
    ("Latin-1", OWN, "a.jsonl:1: UTF-8", files(a_jsonl='{"prompt": "é"}'.encode("latin-1"))),
    ("UTF-16", OWN, "a.jsonl UTF-16 iconv", files(a_jsonl=ENOUGH.decode().encode("utf-16"))),
    ("gzip cut short", OWN, "a.jsonl.gz gzip download", files(a_jsonl_gz=gzip.compress(ENOUGH)[:-9])),
    ("text called gzip", OWN, "a.jsonl.gz gzip download", files(a_jsonl_gz=ENOUGH)),
    ("Parquet", OWN, "a.jsonl Parquet .parquet", files(a_jsonl=b"PAR1\x15\x04")),
    ("gzip called text", OWN, "a.jsonl gzip .gz", files(a_jsonl=gzip.compress(ENOUGH))),
)  # fmt: skip


class Touch:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.file,)


# Model directories: a good one, with one thing wrong.


def model(damage: Callable[[Path], object] = lambda folder: None, **changes: int) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        save_gpt2(folder, **changes)
        damage(folder)

    return prepare


def without(pattern: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for file in folder.glob(pattern):
            file.unlink()

    return damage


def cut(name: str, kept: int = 50) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:kept])


def changed(name: str, **values: object) -> Callable[[Path], object]:
    """Return a function that sets these keys of a JSON file; None removes a key."""

    def damage(folder: Path) -> None:
        settings = {**json.loads((folder / name).read_text()), **values}
        kept = {key: value for key, value in settings.items() if value is not None}
        (folder / name).write_text(json.dumps(kept))

    return damage


def without_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.ln_1.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def pickled_weights(folder: Path) -> None:
    import torch

    without("model.safetensors")(folder)
    torch.save({"x": Touch(folder / "ran")}, folder / "pytorch_model.bin")


def gguf(folder: Path) -> None:
    (folder / "model.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 40)


DIRECTORY = "model=blank_model model.name_or_path={folder}"
MODEL = (
    ("no model", "model=blank_model", "model.name_or_path model.gguf_file", None),
    ("empty name", "model=blank_model model.name_or_path=", "model.name_or_path model.gguf_file", None),
    ("no such directory", "model=blank_model model.name_or_path=./nowhere", "nowhere exist", None),
    ("hub out of reach", "model=gpt2", "gpt2 hub HF_HUB_OFFLINE is set: unset it", None),
    ("empty directory", DIRECTORY, "tokenizer directory", files()),
    ("no weights", DIRECTORY, "model.safetensors weights", model(without("model.safetensors"))),
    ("no config", DIRECTORY, "cannot load config", model(without("config.json"))),
    ("no tokenizer", DIRECTORY, "tokenizer model.tokenizer_name_or_path", model(without("tokenizer*"))),
    ("no end of text", DIRECTORY, "end-of-text eos_token", model(changed("tokenizer_config.json", eos_token=None))),
    ("weights cut short", DIRECTORY, "cannot load the model", model(cut("model.safetensors", 2000))),
    ("weights that are none", DIRECTORY, "cannot load the model", model(cut("model.safetensors", 0))),
    ("config cut short", DIRECTORY, "cannot load", model(cut("config.json"))),
    ("tokenizer cut short", DIRECTORY, "cannot load the tokenizer", model(cut("tokenizer.json"))),
    ("one weight missing", DIRECTORY, "lacks 1 weights transformer.h.1.ln_1.weight", model(without_a_weight)),
    ("shapes of another config", DIRECTORY, "lacks weights complete", model(changed("config.json", n_embd=32))),
    ("unknown model type", DIRECTORY, "cannot load", model(changed("config.json", model_type="nonsense"))),
    ("no language model", DIRECTORY, "cannot load the model", model(changed("config.json", model_type="clip"))),
    ("tokenizer larger than the model", DIRECTORY, "257 tokens embeds 100", model(vocabulary=100)),
    ("fewer positions than max_length", DIRECTORY, "max_length=512 32 positions max_length=32", model(positions=32)),
    ("an adapter", DIRECTORY, "adapter model.adapter=", files(adapter_config_json=b"{}")),
    ("code of its own", DIRECTORY, "code not run model.trust_remote_code=true", model(
        changed("config.json", model_type="custom", auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"})
    )),
    ("code in its weights", DIRECTORY, "cannot load the model pickled code never run", model(pickled_weights)),
    ("tokenizer that cannot be saved", DIRECTORY, "tokenizer cannot be saved '../up' tokenizer_config.json", model(
        changed("tokenizer_config.json", chat_template=[{"name": "../up", "template": ""}])
    )),
    ("tokenizer elsewhere", DIRECTORY + " model.tokenizer_name_or_path=./nowhere", "nowhere exist", model()),
    ("no such block", "model.block_name=Wrong", "model.block_name=Wrong LlamaDecoderLayer", None),
    ("unknown dtype", "model.policy_dtype=int8", "model.policy_dtype=int8 float32, bfloat16", None),
    ("unknown compute dtype", "model.fsdp_policy_mp=int8", "model.fsdp_policy_mp=int8 float32, bfloat16", None),
    ("reference in another dtype", "model.reference_dtype=bfloat16", "model.reference_dtype=bfloat16 null", None),
    ("no such GGUF file", "model=blank_model model.gguf_file=nowhere.gguf", "nowhere.gguf no such file", None),
    ("damaged GGUF file", "model=blank_model model.gguf_file={folder}/model.gguf", "cannot load", gguf),
    ("empty GGUF file", "model=blank_model model.gguf_file={folder}/model.gguf", "cannot load", files(model_gguf=b"")),
    ("an adapter wider than the model", "lora.r=1000000000", "lora.r=1000000000 above width lower it", None),
    ("no such layer for LoRA", "lora.r=2 lora.target_modules=[nope]", "lora.target_modules=nope q_proj", None),
)  # fmt: skip


# Archives that should seed the demo's weights.


def archive(make: Callable[[dict[str, Any], Path], object], kept: int | None = None) -> Callable[[Path], None]:
    """Return a function that saves what `make` returns as `policy.pt`, cut after `kept` bytes."""

    def prepare(folder: Path) -> None:
        import torch

        from fed.model.demo import demo_model, demo_tokenizer

        torch.save(make(demo_model(demo_tokenizer()).state_dict(), folder), folder / "policy.pt")
        if kept is not None:
            cut("policy.pt", kept)(folder)

    return prepare


def checkpoint(folder: Path) -> None:
    (folder / "weights").mkdir()
    (folder / "weights/shard-00001-model-00001-of-00001.safetensors").write_bytes(b"\x10" + b"\0" * 20)


POLICY = "model.archive={folder}/policy.pt"
NORM = "model.norm.weight"
ARCHIVE = (
    ("no such file", "model.archive=nowhere.pt", "nowhere.pt exist", None),
    ("empty name", "model.archive=", "model.archive empty", None),
    ("empty folder", "model.archive={folder}", "archive model.safetensors", files()),
    ("another family", "model.archive={folder}", "does not match architecture", model()),
    ("damaged checkpoint", "model.archive={folder}", "checkpoint", checkpoint),
    ("an adapter", "model.archive={folder}", "adapter model.adapter=", files(adapter_config_json=b"{}")),
    ("empty file", POLICY, "cannot read archive", files(policy_pt=b"")),
    ("text", POLICY, "cannot read archive", files(policy_pt=b"no weights")),
    ("cut short", POLICY, "cannot read archive", archive(lambda weights, _: weights, kept=3000)),
    ("cut safetensors", "model.archive={folder}/model.safetensors", "cannot read archive",
     model(cut("model.safetensors", 3000))),
    ("no weights in it", POLICY, "holds no weights policy.pt", archive(lambda weights, _: [1, 2])),
    ("an optimizer's", POLICY, "holds no weights", archive(lambda weights, _: {"state": {"state": {}}})),
    ("nothing in it", POLICY, "does not match missing", archive(lambda weights, _: {})),
    ("a weight missing", POLICY, "1 weights missing model.layers",
     archive(lambda weights, _: {name: weights[name] for name in weights if "layers.1.mlp.up" not in name})),
    ("a weight too many", POLICY, "1 weights unknown (first: x)",
     archive(lambda weights, _: {**weights, "x": weights[NORM]})),
    ("a weight of another shape", POLICY, "1 weights of another shape (first: model.norm.weight)",
     archive(lambda weights, _: {**weights, NORM: weights[NORM][1:]})),
    ("code in it", POLICY, "pickled code is never run",
     archive(lambda weights, to: {"state": weights, "x": Touch(to / "ran")})),
)  # fmt: skip

BAD_INPUTS: tuple[BadInput, ...] = (
    *(BadInput("config", typed, typed, words) for typed, words in CONFIG),
    *(BadInput("data", *row) for row in DATA),
    *(BadInput("model", *row) for row in MODEL),
    *(BadInput("archive", *row) for row in ARCHIVE),
)
