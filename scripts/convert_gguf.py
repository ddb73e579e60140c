"""Convert a GGUF file to a Hugging Face directory: `python scripts/convert_gguf.py FILE.gguf FOLDER`.

transformers takes many seconds to read a GGUF file, and a SuperNode reads its model for every message. The weights
stay the same, in float32, so a node may have the directory while the server has the file. The folder must not exist.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from fed.config.groups import ModelSettings
from fed.model.loading import load_policy
from fed.model.placement import Placement
from fed.model.policy import save_policy


def main(arguments: Sequence[str]) -> int:
    """Write the directory; exit code 2 for a mistake on the command line or a file that cannot be read."""
    if len(arguments) != 2:
        print("error: expected FILE.gguf FOLDER", file=sys.stderr)
        return 2
    file, folder = arguments
    if Path(folder).exists():
        print(f"error: {folder} exists; give a folder that does not", file=sys.stderr)
        return 2
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        save_policy(load_policy(ModelSettings(gguf_file=file), Placement(torch.device("cpu"))), Path(folder))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
