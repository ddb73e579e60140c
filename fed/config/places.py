"""Files and folders that settings name: looked for before the libraries are loaded, and where each is read."""

import os
from collections.abc import Sequence
from pathlib import Path

from fed.config.schema import Config


def check_places(config: Config) -> None:
    """Refuse settings that name a file or a folder which does not exist.

    Raises:
        ValueError: Naming it.
    """
    model = config.model
    if config.data_dir is not None:
        check_data_dir(config.data_dir)
    files: Sequence[str] = config.partition.get("client_data") or ()
    for file in files:
        check_data_file(file)
    if model.gguf_file is not None:
        gguf_path(model.name_or_path or ".", model.gguf_file)
    for name in (None if model.gguf_file else model.name_or_path, model.tokenizer_name_or_path):
        check_model_folder(name or "")
    check_model_folder(model.adapter or "")
    if config.chat_template not in (None, "none") and not Path(config.chat_template).expanduser().is_file():
        raise ValueError(
            f"chat_template={config.chat_template}: no such file; give a file with a Jinja template, none, or null for "
            "the tokenizer's own"
        )
    if model.archive:
        check_archive(Path(model.archive).expanduser())


def check_data_dir(path: str | Path) -> None:
    """Refuse a `data_dir` that does not exist."""
    if not _exists(path):
        raise ValueError(f"data_dir={path} does not exist; give a folder or a file of records")


def check_data_file(path: str) -> None:
    """Refuse a client's own file that does not exist."""
    if not os.path.isfile(path):
        raise ValueError(f"there is no file {path}; give a file of records, such as pairs.jsonl")


def gguf_path(name: str, gguf: str) -> Path:
    """Return the path of a GGUF file, which may be relative to the directory `name`.

    Raises:
        ValueError: If there is no such file.
    """
    file = Path(name) / gguf if (Path(name) / gguf).is_file() else Path(gguf)
    if not file.is_file():
        raise ValueError(f"model.gguf_file={gguf}: no such file")
    return file


def check_model_folder(name: str) -> None:
    """Refuse a path of a model's or tokenizer's directory that does not exist or holds TensorFlow's checkpoint."""
    path = Path(name).expanduser()
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1  # a hub name is owner/name
    if is_path or (name and path.is_dir()):
        _check_not_tensorflow(path)
    if is_path and not path.is_dir():
        raise ValueError(f"model directory {name} does not exist; give a directory or a hub name")
    if (path / "policy").is_dir() and not (path / "config.json").is_file():
        raise ValueError(f"{name} is the folder of a run; its model is {path / 'policy'}")


def check_archive(path: Path) -> None:
    """Refuse an archive that does not exist or is a checkpoint of TensorFlow."""
    _check_not_tensorflow(path)
    if not _exists(path):
        raise ValueError(f"archive {path} does not exist; give an HF directory, a *.safetensors file or a policy.pt")


def _check_not_tensorflow(path: Path) -> None:
    """Refuse TensorFlow's checkpoints: files NAME.ckpt.index, NAME.ckpt.meta and so on, named whole or as NAME.ckpt."""
    folder = path if path.is_dir() else path.parent
    found = sorted(file.name for file in folder.glob("*.ckpt*.index")) if folder.is_dir() else []
    if found and not (folder / "config.json").is_file() and (path.is_dir() or ".ckpt" in path.name):
        raise ValueError(
            f"{path} is a checkpoint of TensorFlow ({found[0]}), which transformers 5 does not read; docs/data.md has "
            "the command that makes a directory of it"
        )


def offline() -> str | None:
    """Return the variable of the environment that keeps Hugging Face's libraries from the hub; None if none does."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    return next((name for name in names if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")), None)


def _exists(path: str | Path) -> bool:
    return os.path.isfile(path) or os.path.isdir(path)
