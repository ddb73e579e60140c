"""Holds the framework in nine subfolders, none of which imports `clients/` or `server/`."""

import os

# Libraries read these when they are loaded, so they are set before any module of this package loads one.
DEFAULTS = {
    # Threads that wait sleep. By default they spin, and beside another busy process each wait takes a time slice.
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",  # the texts of most runs are short, and of a client few
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
}
for name, value in DEFAULTS.items():
    os.environ.setdefault(name, value)
