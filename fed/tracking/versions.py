"""The versions of this program and of the packages that it computes with. Nothing large is imported."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "flwr",
    "flwr-datasets",
    "datasets",
    "hydra-core",
    "omegaconf",
    "numpy",
    "tensorboardX",
)

SHOWN = ("torch", "transformers", "flwr")
CHANGED = "+changes"  # ends a commit from which files differ


def packages() -> dict[str, str]:
    """Return the versions of the packages on which the last bits of a run may depend."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def described() -> str:
    """Return what `--version` prints: this program, its commit if there is one, and the packages that matter most."""
    try:
        number = importlib.metadata.version("fedpo")
    except importlib.metadata.PackageNotFoundError:
        number = "(not installed)"
    found = commit()
    program = f"fedpo {number}" + (f", commit {found}" if found else "")
    versions = {"python": platform.python_version(), **{name: packages()[name] for name in SHOWN}}
    return "\n".join([program, *(f"{name} {version}" for name, version in versions.items())])


def commit() -> str | None:
    """Return the commit of this source tree, with `CHANGED` if files differ from it; None outside git."""
    here = Path(__file__).parent
    try:
        shown = subprocess.run(
            ["git", "describe", "--always", f"--dirty={CHANGED}", "--abbrev=40", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return shown.stdout.strip() or None
