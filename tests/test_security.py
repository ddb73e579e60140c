"""Files and names that a user hands in run no code and reach no place outside the run's folder."""

import ast
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fed.config.arguments import check_arguments
from support.bad_inputs import Touch
from support.command_line import SMALL, CommandLine, refused
from support.good_inputs import save_gpt2

ROOT = Path(__file__).parents[1]
# Calls that a test may make with a file that it wrote itself.
ACCEPTED = {
    ("tests/grids/test_outline.py", "pickle.loads"),  # of what the test itself has just pickled
    ("tests/model/test_archive.py", "torch.load"),  # shows that the file does hold code
    ("tests/support/compositions.py", "pickle.loads"),  # of what the tests themselves have pickled
    ("tests/support/forked.py", "runpy.run_path"),  # runs the project's own programs
    ("tests/support/ranks.py", "torch.load"),  # what the processes of a test say to each other
}
RUN_CODE = {"os.system", "os.popen", "pty.spawn", "runpy.run_path", "runpy.run_module"}
RUN_CODE |= {"eval", "exec", "compile", "__import__", "torch.hub.load", "yaml.unsafe_load", "yaml.full_load"}
PICKLES = {"cPickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
# Names of pickle that load nothing: its errors, and what writes one for a test.
HARMLESS = {"pickle.UnpicklingError", "pickle.PickleError", "pickle.dumps"}
# A call that needs a word to be safe.
SAFE_BY = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "np.lib.format.read_array": ("allow_pickle", False),
}
NEVER = {("shell", True), ("allow_pickle", True), ("weights_only", False), ("trust_remote_code", True)}


def python_files() -> list[Path]:
    folders = [path for path in ROOT.iterdir() if path.is_dir() and path.name[0] not in "._" and path.name != "build"]
    return sorted([*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))])


def dangers(source: str) -> Iterator[str]:
    """Yield what in the source could run code from a file or a shell."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PICKLES:
            yield f"from {node.module}"
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in PICKLES - {"pickle"} or name.asname in PICKLES)
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("pickle."):
            yield from {ast.unparse(node)} - HARMLESS
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {(word.arg, getattr(word.value, "value", word.value)) for word in node.keywords}
            unsafe = name in SAFE_BY and SAFE_BY[name] not in given
            unsafe |= name in ("yaml.load", "yaml.load_all") and "SafeLoader" not in ast.unparse(node)
            if unsafe or name in RUN_CODE or given & NEVER:
                yield name


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_of_the_project_can_run_what_it_reads(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    assert {(name, danger) for danger in dangers(path.read_text())} <= ACCEPTED


@pytest.mark.parametrize(
    "source",
    [
        "from pickle import load",
        "import pickle\npickle.load(file)",
        "import pickle\npickle.Unpickler(file)",
        "import dill",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "np.load(file)",
        "np.load(file, allow_pickle=True)",
        "frame.read(file, allow_pickle=True)",
        "eval(text)",
        "exec(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "yaml.load(text)",
        "yaml.unsafe_load(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_a_danger_is_found(source: str) -> None:
    assert list(dangers(source))


def test_safe_calls_are_no_dangers() -> None:
    safe = "import pickle\ntry: torch.load(file, weights_only=True)\nexcept pickle.UnpicklingError: model.eval()"
    assert not list(dangers(f"{safe}\nyaml.safe_load(text)\nyaml.load(text, Loader=yaml.SafeLoader)"))


# Files with code in them


def in_torchs_archive(file: Path, content: object) -> None:
    torch.save(content, file)


def in_torchs_old_format(file: Path, content: object) -> None:
    torch.save(content, file, _use_new_zipfile_serialization=False)


def as_plain_pickle(file: Path, content: object) -> None:
    file.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("save", [in_torchs_archive, in_torchs_old_format, as_plain_pickle])
@pytest.mark.parametrize("name", ["policy.pt", "policy.bin", "model.safetensors", "pytorch_model.bin in a folder"])
def test_code_in_an_archive_is_not_run(
    command_line: CommandLine, tmp_path: Path, save: Callable[[Path, object], None], name: str
) -> None:
    folder, marker = tmp_path / "archive", tmp_path / "ran"
    folder.mkdir()
    file = folder / name.partition(" ")[0]
    save(file, {"state": {"weight": torch.zeros(1)}, "code": Touch(marker)})
    archive = folder if "folder" in name else file
    refused(command_line(*SMALL, f"model.archive={archive}"), f"archive {archive}" if archive == file else "archive")
    assert not marker.exists()


CODE = """
from pathlib import Path
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
Path(MARKER).touch()


class Config(GPT2Config):
    model_type = "custom"


class Model(GPT2LMHeadModel):
    config_class = Config


class Tokenizer(PreTrainedTokenizerFast):
    pass
"""


def with_code(directory: Path, marker: Path, *, model_type: str) -> None:
    """Save a model directory that asks for its own classes."""
    save_gpt2(directory)
    (directory / "code.py").write_text(CODE.replace("MARKER", repr(str(marker))))
    classes = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    for name, changes in (
        ("config.json", {"model_type": model_type, "auto_map": classes}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": [None, "code.Tokenizer"]}}),
    ):
        settings = json.loads((directory / name).read_text())
        (directory / name).write_text(json.dumps({**settings, **changes}))


def test_a_model_with_code_of_its_own_is_refused_and_nothing_of_it_runs(
    command_line: CommandLine, tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    with_code(tmp_path / "model", marker, model_type="custom")
    result = command_line(*SMALL, "model=blank_model", f"model.name_or_path={tmp_path / 'model'}")
    refused(result, str(tmp_path / "model"), "needs code of its own", "model.trust_remote_code=true")
    assert not marker.exists()


def test_a_family_that_transformers_knows_needs_no_code_of_its_own(command_line: CommandLine, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    with_code(tmp_path / "model", marker, model_type="gpt2")
    assert command_line(
        *SMALL, "model=blank_model", f"model.name_or_path={tmp_path / 'model'}", "max_length=128", "debug=true",
        "max_prompt_length=96",
    ).run  # fmt: skip
    assert not marker.exists()


def test_hydra_loads_no_pickle(command_line: CommandLine, tmp_path: Path) -> None:
    """`--experimental-rerun` would load one in Hydra 1.3, and its argparse would complete the beginning."""
    marker = tmp_path / "ran"
    as_plain_pickle(tmp_path / "config.pickle", Touch(marker))
    for flag, reason in (("--experimental-rerun", "pickle"), ("--experimental-re", "unrecognized arguments")):
        refused(command_line(f"{flag}={tmp_path / 'config.pickle'}", *SMALL), flag, reason)
        refused(command_line(flag, str(tmp_path / "config.pickle"), *SMALL), flag, reason)
    assert not marker.exists()


# Secrets


@pytest.mark.parametrize(
    "typed",
    [
        "+strategy.api_key=abc",
        "+strategy.OPENAI_API_KEY=abc",
        "+loss.password=abc",
        "+token=abc",
        "+strategy.hf_token=abc",
        "+strategy.login={user:me,secret_key:abc}",
        "exp_name=${oc.env:HF_TOKEN}",
        "exp_name=${oc.env:AWS_SECRET_ACCESS_KEY,none}",
        "exp_name=x-0123456789-of-the-environment",
    ],
)
def test_a_secret_is_refused_without_being_told(monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    """Typed text is kept in config.yaml and environment.json."""
    monkeypatch.setenv("GITHUB_TOKEN", "0123456789-of-the-environment")
    with pytest.raises(ValueError, match="secret") as refusal:
        check_arguments([typed])
    assert "abc" not in str(refusal.value) and "0123456789" not in str(refusal.value)


@pytest.mark.parametrize(
    "typed", ["anchor_norm=token", "max_tokens_per_step=9", "+strategy.eos_token=a", "+strategy.keys=[a]", "seed=1"]
)
def test_a_word_like_a_secrets_is_none(typed: str) -> None:
    check_arguments([typed])


# Names that come from data


GROUPS = ("../../above", "/tmp/absolute", "a/b", "..", "~", "$(touch ran)", "nul\0", "new\nline", "x" * 300)


def test_names_from_the_data_are_no_paths(command_line: CommandLine, tmp_path: Path) -> None:
    """Groups, prompts and answers stand inside files only; folders and tags are named by the program."""
    data = tmp_path / "data" / "own.jsonl"
    data.parent.mkdir()
    with data.open("w") as file:
        for number in range(90):
            group = GROUPS[number % len(GROUPS)]
            record = {"prompt": f"{group}{number}", "chosen": group, "rejected": group + "!", "group": group}
            file.write(json.dumps(record) + "\n")
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    result = command_line(
        *SMALL, "datasets=[files]", f"data_dir={data}", "partition=group", "max_length=512", "max_prompt_length=256",
        "eval_every=1",
    )  # fmt: skip
    names = {path.name for path in result.run.rglob("*")}
    assert not [name for name in names if "above" in name or "absolute" in name or "x" * 300 in name or "ran" in name]
    after = {path for path in tmp_path.rglob("*") if "cache" not in path.parts} - before
    assert after and all(path.is_relative_to(result.folder) for path in after)
    assert [path.name for path in result.folder.iterdir()] == ["runs"]
    assert {path.name for path in (result.run / "tensorboard").iterdir()} == {"Server", "Client-0", "Client-1"}
    assert set(json.loads((result.run / "partition.json").read_text())["clients"][0]["groups"]) <= set(GROUPS)


@pytest.mark.parametrize("name", ["../up", "/tmp", "..", "a/b"])
def test_the_names_of_an_experiment_and_of_data_sets_are_no_paths(command_line: CommandLine, name: str) -> None:
    refused(command_line(*SMALL, f"exp_name={name}"), f"exp_name={name}", "slashes")
    told = "cannot download a/b from the hub" if name == "a/b" else f"no data set {name!r}"
    refused(command_line(*SMALL, f"datasets=[{name}]"), told)
