"""Make a trained policy ready for others: `python -m scripts.export POLICY OPTION=VALUE ...`."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fed.tracking import steps
from scripts.command import Command
from scripts.options import option

if TYPE_CHECKING:
    from feedback.policies import Found

CONVERTER, CURVES = "convert_hf_to_gguf.py", "curves.png"


@dataclass(frozen=True)
class Options:
    """The options of the command."""

    out: str = option("export", "The folder to write; it must not exist.")
    merge: bool = option(True, "Add an adapter to its base's weights; false: keep it an adapter.")
    dtype: str | None = option(None, "Type of the weights written, bfloat16 for one; null: as they are.")
    licence: str | None = option(None, "The hub's name of a licence, for the card: apache-2.0, cc-by-nc-4.0, ...")
    base: str | None = option(None, "The hub's name of the model that was trained; null: the run's, if it was one.")
    push: str | None = option(None, "owner/name: upload the folder to the hub; the token comes from HF_TOKEN.")
    private: bool = option(True, "The repository that push= makes can be seen by its owner only.")
    gguf: str | None = option(None, "A GGUF file to write too, by llama.cpp's converter.")
    converter: str | None = option(None, f"Path of llama.cpp's {CONVERTER}; null: found on the PATH.")
    round: str | None = option(None, "A round of which the run has a checkpoint, or best; null: the trained policy.")
    trust_remote_code: bool = option(False, "Run Python code that lies beside the weights.")


COMMAND = Command(
    "python -m scripts.export POLICY",
    "Writes a policy (a run's folder, or the directory of a model or an adapter) as a folder that transformers and the "
    "hub read, with its adapter merged and a model card.",
    Options,
    (
        ("python -m scripts.export data/fedpo/DATE_TIME out=mine licence=apache-2.0", "merged, with a card"),
        ("python -m scripts.export data/fedpo/DATE_TIME merge=false push=owner/name", "an adapter, to the hub"),
        (
            "python -m scripts.export data/fedpo/DATE_TIME gguf=mine.gguf converter=llama.cpp/" + CONVERTER,
            "for llama.cpp",
        ),
    ),
    (
        ("OUT/", "weights and tokenizer, for AutoModelForCausalLM.from_pretrained"),
        ("OUT/README.md", "the model card: data, settings, results with intervals, privacy, limits, how to cite"),
        (f"OUT/{CURVES}", "the curves of the run"),
    ),
    names=("POLICY",),
    needed=1,
)


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code."""
    return COMMAND.main(arguments, carry_out)


def carry_out(plain: list[str], options: Options) -> None:
    """Write the folder, and upload or convert it.

    Raises:
        ValueError: For a mistake of the user's.
        CannotWrite: If the disk refuses a file.
    """
    out = Path(options.out)
    converter = _check(options, out)
    steps.say_loading()
    from fed.files import writing
    from feedback.policies import find

    found = find(plain[0], options.round)
    keeps_adapter = found.has_adapter and not options.merge
    steps.say(f"writing {out}")
    with writing(out):
        _write(found, options, out, keeps_adapter)
        _write_card(found, options, out, is_adapter=keeps_adapter)
    if options.gguf is not None:
        _convert(converter, out, Path(options.gguf))
    if options.push is not None:
        _push(options, out)
    print(out.resolve())


def _check(options: Options, out: Path) -> str:
    """Return the converter; "" if none is wanted.

    Raises:
        ValueError: If an option cannot work.
    """
    if out.exists():
        raise ValueError(f"out={out} exists; give a folder that does not")
    if options.push is not None and options.push.count("/") != 1:
        raise ValueError(f"push={options.push} is no name on the hub; expected owner/name")
    if not options.merge and options.dtype is not None:
        raise ValueError(
            f"dtype={options.dtype} has no effect with merge=false, which copies the adapter; leave it out"
        )
    if options.gguf is None:
        if options.converter is not None:
            raise ValueError("converter= has no effect without gguf=")
        return ""
    if Path(options.gguf).exists():
        raise ValueError(f"gguf={options.gguf} exists; give a file that does not")
    if not options.merge:
        raise ValueError("gguf= needs whole weights; leave merge=false out")
    found = options.converter or shutil.which(CONVERTER)
    if found is None or not Path(found).is_file():
        raise ValueError(
            f"gguf= needs llama.cpp's {CONVERTER}, which no Python package brings: get "
            f"https://github.com/ggml-org/llama.cpp and give converter=PATH/{CONVERTER}"
        )
    return found


def _write(found: "Found", options: Options, out: Path, keeps_adapter: bool) -> None:
    """Write weights and tokenizer."""
    import torch

    from fed.model.policy import save_policy
    from feedback.policies import Loading, load, merged

    if keeps_adapter and found.adapter is not None and Path(found.adapter).is_dir():
        shutil.copytree(found.adapter, out)
        return
    one = found if keeps_adapter else merged(found)
    how = Loading(torch.device("cpu"), options.dtype, 1, options.trust_remote_code)
    policy = load(one, how)
    out.mkdir(parents=True)
    save_policy(policy, out)


def _write_card(found: "Found", options: Options, out: Path, *, is_adapter: bool) -> None:
    """Write the card of a policy whose run is known, with the run's curves."""
    if found.run is None:
        steps.remark(f"no model card: {found.name} is of no run that is known")
        return
    from fed.reports.model_card import Card, model_card
    from fed.reports.runs import Run

    curve = found.run / CURVES
    if curve.is_file():
        shutil.copyfile(curve, out / CURVES)
    name, began = options.push or out.name, found.reference
    base = options.base or (_hub_name(began.model.name_or_path) if began is not None else None)
    # A folder `best` leads to that of its round.
    round_name = None if found.checkpoint is None else found.checkpoint.resolve().name.removeprefix("round-")
    number = int(round_name) if round_name is not None and round_name.isdecimal() else None
    card = Card(name, options.licence, base, is_adapter, CURVES if curve.is_file() else None, number)
    (out / "README.md").write_text(model_card(Run(found.run), card), encoding="utf-8")


def _hub_name(name: str | None) -> str | None:
    """Return the name if others can find it on the hub: "owner/name", and no folder here."""
    is_name = name is not None and name.count("/") == 1 and not Path(name).expanduser().exists()
    return name if is_name and not str(name).startswith((".", "/", "~")) else None


def _convert(converter: str, folder: Path, file: Path) -> None:
    """Write the GGUF file by llama.cpp's converter.

    Raises:
        ValueError: If it refuses the model.
    """
    steps.say(f"converting to {file}")
    command = [sys.executable, converter, str(folder), "--outfile", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not file.is_file():
        last = (done.stderr.strip().splitlines() or ["it wrote no file"])[-1]
        raise ValueError(f"{converter} could not convert {folder}: {last}")


def _push(options: Options, folder: Path) -> None:
    """Upload the folder.

    Raises:
        ValueError: If the hub cannot be reached or refuses it; the folder stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    assert options.push is not None
    steps.say(f"uploading to {options.push}")
    api: Any = HfApi()
    try:
        api.create_repo(options.push, private=options.private, exist_ok=True)
        if options.private and not api.repo_info(options.push).private:
            raise ValueError("it is public already; give private=false")
        done = api.upload_folder(repo_id=options.push, folder_path=folder)
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"push={options.push} failed ({reason}); {folder} is written: try again with hf upload"
        ) from error
    print(done.repo_url if hasattr(done, "repo_url") else options.push)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
