"""`resume=`: the settings of the run to resume, read from its folder."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fed.config.checks import Request
from fed.config.combinations import check_combinations
from fed.config.components import imported
from fed.config.schema import OPEN_GROUPS, Config
from fed.config.scopes import on_resume
from fed.config.values import check_values
from fed.tracking.recorded import recorded_settings
from fed.tracking.run_files import CONFIG, ENVIRONMENT, LATEST, check_run
from fed.tracking.run_folder import newest_run
from fed.tracking.versions import CHANGED, commit

FINDS = on_resume("finds")  # keys that say which run to resume
MAY_CHANGE = on_resume("free")
# Modules whose classes and functions a run's folder may name.
KNOWN_CODE = (
    *("server.strategies", "losses.preference", "losses.reward", "losses.sft", "fed.data.partition"),
    *("flwr.serverapp.strategy", "flwr.clientapp.mod", "flwr_datasets.partitioner"),
)
# The keys that environment.json must have, and their types.
KINDS: dict[str, tuple[type, ...]] = {"threads": (int,), "library": (str, type(None)), "given": (list,)}
MOST_THREADS = 4096  # processors of a machine
# These keys of environment.json decide the last bits of a run.
DECIDES_BITS = ("python", "device", "processor", "packages")


def resumed(request: Request) -> Request:
    """Return the settings of the run that `resume` names, changed by those that were typed beside it.

    Raises:
        ValueError: If there is no such run, or a key was typed that a resumed run cannot change.
    """
    typed = request.config
    assert typed.resume is not None
    for key in sorted(request.given - {*FINDS, *MAY_CHANGE}):
        raise ValueError(
            f"{key} cannot be given with resume: a resumed run may change only {', '.join(MAY_CHANGE)}; leave it out "
            "or start a new run"
        )
    if typed.resume == LATEST:
        folder = newest_run(typed.output_dir, typed.exp_name)
    else:
        folder = Path(typed.resume)
        for key in sorted(request.given & {"output_dir", "exp_name"}):
            raise ValueError(f"{key} has no effect with resume={typed.resume}, which names the run; leave it out")
    began, environment = _config(folder), _environment(folder)
    check_code(folder, began, trusts=typed.resume_trusts)
    if (began.engine == "flower") != (typed.engine == "flower"):
        flower, here = "flwr run . NAME -c 'settings=\"resume=FOLDER\"'", "python main.py resume=FOLDER"
        how = flower if began.engine == "flower" else here
        raise ValueError(f"resume={folder} was started with engine={began.engine}; resume it with: {how}")
    changed = {key: getattr(typed, key) for key in MAY_CHANGE if key in request.given}
    if began.cpu_matmul == "auto" and environment["library"]:
        changed["cpu_matmul"] = environment["library"]
    config = replace(began, resume=str(folder), num_threads=environment["threads"], **changed)
    _check_settings(folder, config, has_cache="cache_dir" in request.given or typed.resume_trusts)
    return Request(config, frozenset(environment["given"]))


def as_begun(request: Request) -> Request:
    """Return the settings for clients elsewhere, without the threads and the library that `resumed` took over.

    These belong to the server's machine.
    """
    config = request.config
    if config.resume is None:
        return request
    began = _config(Path(config.resume))
    return replace(request, config=replace(config, num_threads=began.num_threads, cpu_matmul=began.cpu_matmul))


def differences(folder: Path, now: Mapping[str, Any]) -> list[str]:
    """Describe how `surroundings` differ from those in which the run started; then the last bits may differ.

    Args:
        folder: The folder of the run.
        now: The present surroundings, as `fed.tracking.run_folder.surroundings` returns them.
    """
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
    check_run(folder)
    try:
        return recorded_settings(folder, whole=True)
    except ValueError as error:
        raise ValueError(f"{error}; {_older_commit(folder)}start a new run") from error


def check_code(folder: Path, config: Config, *, trusts: bool, key: str = "resume_trusts") -> None:
    """Check that the settings of a folder, which may come from anybody, run no code but this program's and Flower's.

    Args:
        folder: The folder of the run.
        config: Its settings.
        trusts: The user trusts the folder.
        key: The key that says so.

    Raises:
        ValueError: If they name other code and the user does not trust the folder, or code that cannot be imported.
    """
    named = [(f"{group}.{key}", path) for group in OPEN_GROUPS for key, path in _targets(getattr(config, group))]
    named += [("client_mods", path) for path in config.client_mods]
    foreign = [f"{key}={path}" for key, path in named if str(path).rpartition(".")[0] not in KNOWN_CODE]
    foreign += ["model.trust_remote_code=true"] * config.model.trust_remote_code
    if foreign and not trusts:
        raise ValueError(
            f"{folder}: its settings name code that is not part of this program: {foreign[0]}; if you trust the "
            f"folder, add {key}=true"
        )
    for key, path in named:
        try:
            imported(key, path)
        except ValueError as error:
            reason = f"{folder / CONFIG} cannot be read as the settings of a run: {error}"
            raise ValueError(f"{reason}; {_older_commit(folder)}start a new run") from error


def _check_settings(folder: Path, config: Config, *, has_cache: bool) -> None:
    """Check the settings of a folder, which may come from anybody, as those on a command line are checked.

    Raises:
        ValueError: If they cannot work, or if they name a cache that no run has made.
    """
    try:
        check_values(config)
        check_combinations(config)
    except ValueError as error:
        raise ValueError(f"resume={folder}: its settings cannot be used: {error}") from error
    cache = Path(config.cache_dir)
    if not has_cache and config.cache_dir != Config().cache_dir and not (cache / "reference").is_dir():
        raise ValueError(f"resume={folder}: its cache_dir={cache} is not there; give a cache_dir beside resume")


def _targets(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every `_target_` in a group, with its key; strategies wrap others."""
    if isinstance(group, list):
        for item in group:
            yield from _targets(item, prefix)
    if isinstance(group, dict):
        for key, value in group.items():
            if key == "_target_":
                yield prefix + key, value
            else:
                yield from _targets(value, f"{prefix}{key}.")


def _older_commit(folder: Path) -> str:
    """Return the way out for a run of another commit, "resume it with commit ..., or "; "" if there is none."""
    try:
        began = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))["commit"].removesuffix(CHANGED)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    here = (commit() or "").removesuffix(CHANGED)
    return f"resume it with commit {began}, with which it began, or " if began != here else ""


def _environment(folder: Path) -> dict[str, Any]:
    path = folder / ENVIRONMENT
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for key, kinds in KINDS.items():
            if not isinstance(found[key], kinds):
                raise TypeError(f"its {key} is {found[key]!r}")
        if isinstance(found["threads"], bool) or not 1 <= found["threads"] <= MOST_THREADS:
            raise ValueError(f"its threads is {found['threads']}")
        if not all(isinstance(key, str) for key in found["given"]):
            raise TypeError("its given holds other things than keys")
        return found
    except Exception as error:  # a damaged file makes the reader raise anything
        raise ValueError(f"{path} cannot be read as the environment of a run: {error}; start a new run") from error
