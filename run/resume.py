"""`resume=`: the settings of a run that goes on where it was cut off, from the files in its folder."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fed.config.checks import Request
from fed.config.schema import Config
from fed.config.scopes import on_resume
from fed.tracking.run_files import CONFIG, ENVIRONMENT
from fed.tracking.run_folder import newest_run

LATEST = "latest"
FINDS = on_resume("finds")  # keys that say which run is meant
MAY_CHANGE = on_resume("free")
# What environment.json must say, and how.
KINDS: dict[str, tuple[type, ...]] = {"threads": (int,), "library": (str, type(None)), "given": (list,)}
# What decides the last bits of a run: the same versions, on the same processor.
DECIDES_BITS = ("python", "device", "processor", "packages")


def resumed(settings: Request) -> Request:
    """The settings of the run that `resume` names, with those that were typed beside it.

    Raises:
        ValueError: If there is no such run, or something was typed that it cannot change.
    """
    typed = settings.config
    assert typed.resume is not None
    for key in sorted(settings.given - {*FINDS, *MAY_CHANGE}):
        raise ValueError(
            f"{key} cannot be given with resume: the run goes on as it began; {', '.join(MAY_CHANGE)} can, for others "
            "start a new run"
        )
    if typed.resume == LATEST:
        folder = newest_run(typed.output_dir, typed.exp_name if "exp_name" in settings.given else None)
    else:
        folder = Path(typed.resume)
        for key in sorted(settings.given & {"output_dir", "exp_name"}):
            raise ValueError(f"{key} has no effect with resume={typed.resume}, which names the run; leave it out")
    began, environment = _config(folder), _environment(folder)
    if (began.engine == "flower") != (typed.engine == "flower"):
        how = (
            "flwr run . NAME -c 'settings=\"resume=FOLDER\"'"
            if began.engine == "flower"
            else "python main.py resume=FOLDER"
        )
        raise ValueError(f"resume={folder} is a run that goes on with: {how}")
    changed = {key: getattr(typed, key) for key in MAY_CHANGE if key in settings.given}
    if began.cpu_matmul == "auto" and environment["library"]:
        changed["cpu_matmul"] = environment["library"]
    config = replace(began, resume=str(folder), num_threads=environment["threads"], **changed)
    return Request(config, frozenset(environment["given"]))


def as_begun(settings: Request) -> Request:
    """The settings without what `resumed` found of this machine, which says nothing of a client's."""
    config = settings.config
    if config.resume is None:
        return settings
    began = _config(Path(config.resume))
    return replace(settings, config=replace(config, num_threads=began.num_threads, cpu_matmul=began.cpu_matmul))


def differences(folder: Path, now: Mapping[str, Any]) -> list[str]:
    """What of `surroundings` is not as it was when the run began: the last bits may then differ."""
    then, found = _environment(folder), []
    for key in DECIDES_BITS:
        before, after = then.get(key), now.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
            found += [f"{name} {before.get(name)}, now {after.get(name)}" for name in names]
        elif before != after:
            found.append(f"{key} {before}, now {after}")
    return found


def _config(folder: Path) -> Config:
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(
            f"resume={folder} is no run that began: it has no {CONFIG}; give the folder output_dir/exp_name/date_time"
        )
    try:
        found = OmegaConf.load(path)
        config: Config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), found))  # type: ignore[assignment]
        for key in sorted(Config.__dataclass_fields__.keys() - found.keys()):
            raise ValueError(f"it lacks {key}")
    except Exception as error:  # whatever a damaged file makes the readers raise
        raise ValueError(f"{path} cannot be read as the settings of a run: {error}; start a new run") from error
    return config


def _environment(folder: Path) -> dict[str, Any]:
    path = folder / ENVIRONMENT
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for key, kinds in KINDS.items():
            if not isinstance(found[key], kinds):
                raise TypeError(f"its {key} is {found[key]!r}")
        if found["threads"] < 1:
            raise ValueError(f"its threads is {found['threads']}")
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not say what the run was started with: {error}; start a new run") from error
