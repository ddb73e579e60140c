"""Start a SuperNode that runs the client app of this checkout: `python -m scripts.node ARGUMENTS OF flower-supernode`.

A plain `flower-supernode` runs the code that a run brings with it, so whoever may start runs has the node's data.
"""

import os
import sys
from pathlib import Path

OWN_CODE = Path(__file__).resolve().parent / "own_code"  # programs that stand before Flower's of the same names
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}


def main(arguments: list[str]) -> None:
    """Become Flower's SuperNode, which finds the programs of `scripts/own_code` before its own."""
    path = os.pathsep.join([str(OWN_CODE), str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    os.execvpe("flower-supernode", ["flower-supernode", *arguments], {**os.environ, **QUIET, "PATH": path})


if __name__ == "__main__":
    main(sys.argv[1:])
