"""Start a SuperNode that runs the client app of this checkout: `python -m scripts.node ARGUMENTS OF flower-supernode`.

A plain `flower-supernode` runs the code that a run brings with it, so whoever may start runs has the node's data.
"""

import itertools
import os
import re
import sys
from pathlib import Path

from fed.config.flower import DATA, POLICY
from fed.config.places import check_data_file
from fed.config.policy import read_policy

OWN_CODE = Path(__file__).resolve().parent / "own_code"  # programs that stand before Flower's of the same names
VALUE = re.compile(r"""(\S+?)=(["'])(.*?)\2""")  # of --node-config 'KEY="VALUE" KEY="VALUE"'
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}


def main(arguments: list[str]) -> None:
    """Become Flower's SuperNode, which finds the programs of `scripts/own_code` before its own."""
    try:
        _check_files(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    path = os.pathsep.join([str(OWN_CODE), str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    os.execvpe("flower-supernode", ["flower-supernode", *arguments], {**os.environ, **QUIET, "PATH": path})


def _check_files(arguments: list[str]) -> None:
    """Refuse to start without the files that the node needs; Flower would tell it at the first message of a run.

    Raises:
        ValueError: Naming the file.
    """
    configs = [value for flag, value in itertools.pairwise(arguments) if flag == "--node-config"]
    for name, _, path in (found for config in configs for found in VALUE.findall(config)):
        if name == DATA:
            check_data_file(path)
        if name == POLICY:
            read_policy(path)


if __name__ == "__main__":
    main(sys.argv[1:])
