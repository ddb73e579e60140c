"""Draws and tabulates the runs of a sweep: `sweep.png`, `sweep.csv` and `sweep.md`."""

import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from fed.config.explain import in_a_row
from fed.reports.runs import Run
from fed.reports.statistics import SAME, mean_and_se
from fed.reports.sweep_png import picture
from fed.reports.sweep_settings import Setting, best_first, label, settings, shown, swept_keys
from fed.tracking.run_files import CONFIG, SUMMARY

METRICS = ("accuracy", "margin", "loss", "log_ratio")
CHOSEN = "accuracy_at_best_validation"  # after the round that the validation pairs chose
MOST_NAMED = 4  # settings of the highest accuracy that are named
BEST = "best_accuracy"  # of all rounds after training began, on the test pairs themselves


def draw(runs: Path | Sequence[Run], out_dir: Path) -> Path:
    """Write `sweep.png`, `sweep.csv` and `sweep.md` into `out_dir` and return the path of the picture.

    Args:
        runs: Finished runs, or a folder that holds some at any depth. Of runs that differ only in their folders the
            newest counts.
        out_dir: Is created.

    Raises:
        ValueError: If fewer than two runs count.
    """
    found = finished([runs]) if isinstance(runs, Path) else list(runs)
    keys = swept_keys(found)
    swept = settings(found, keys)
    if sum(len(setting.runs) for setting in swept) < 2:
        raise ValueError(
            f"a sweep needs at least two finished runs that differ in a setting or the seed; found {len(found)}"
        )
    out_dir.mkdir(parents=True, exist_ok=True)
    _write_csv(swept, keys, out_dir / "sweep.csv")
    (out_dir / "sweep.md").write_text(_markdown(swept, keys), encoding="utf-8")
    path = out_dir / "sweep.png"
    picture(swept, keys, path)
    return path


def finished(folders: Sequence[Path]) -> list[Run]:
    """Return the finished runs in and below the folders, each once."""
    found = {path.parent.resolve(): Run(path.parent) for folder in folders for path in sorted(folder.rglob(SUMMARY))}
    return [run for run in found.values() if (run.folder / CONFIG).is_file() and run.points]


def _write_csv(swept: Sequence[Setting], keys: Sequence[str], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*keys, "seed", *(f"final_{metric}" for metric in METRICS), CHOSEN, BEST, "run"])
        for setting in swept:
            for run in setting.runs:
                metrics = [run.points[-1].metrics.get(metric) for metric in METRICS]
                writer.writerow([*setting.values, run.seed, *metrics, run.chosen_accuracy, _best(run), run.folder])


def _markdown(swept: Sequence[Setting], keys: Sequence[str]) -> str:
    names = [label(key) for key in keys]
    head = [*names, "runs", "accuracy", "margin", "loss", "log-ratio", "accuracy at validation's best", "best on test"]
    count = sum(len(setting.runs) for setting in swept)
    rows = [head, ["---"] * len(head), *(_row(setting, keys) for setting in swept)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        f"# {', '.join(names) or 'seed'}: {count} runs\n\n"
        "On the test pairs after the last round; mean ± standard error over a setting's runs, one for each seed. In "
        "brackets: 95 % Wilson interval of one run's accuracy, or of runs that have all the same. Best on test: the "
        "round was chosen on the test pairs themselves, so it flatters.\n\n"
        f"{_best_setting(swept, keys)}{table}\n\n![final accuracy by setting](sweep.png)\n"
    )


def _best_setting(swept: Sequence[Setting], keys: Sequence[str]) -> str:
    """Name the setting with the highest mean accuracy, or all that have the same."""
    if not keys or not (ranked := best_first(swept)):
        return ""
    means = [fmean(setting.final("accuracy")) for setting in ranked]
    best = [setting for setting, mean in zip(ranked, means, strict=True) if means[0] - mean < SAME]
    if len(best) == len(ranked) > 1:
        return f"All {len(ranked)} settings have the same accuracy: {means[0]:.3f}.\n\n"
    named = [" ".join(f"{label(key)}={shown(key, v)}" for key, v in zip(keys, s.values, strict=True)) for s in best]
    texts = [f"`{text}`" for text in named[:MOST_NAMED]]
    if more := len(named) - len(texts):
        texts.append(f"{more} more")
    typed = f"{in_a_row(texts)}{', which have the same,' if len(texts) > 1 else ''}"
    return f"Highest accuracy: {typed} with {means[0]:.3f}. Of {len(ranked)} settings the highest is partly lucky.\n\n"


def _row(setting: Setting, keys: Sequence[str]) -> list[str]:
    values = [shown(*item).replace("|", "\\|") for item in zip(keys, setting.values, strict=True)]
    final, *others = (setting.final(metric) for metric in METRICS)
    chosen = [found for run in setting.runs if (found := run.chosen_accuracy) is not None]
    best = [found for run in setting.runs if (found := _best(run)) is not None]
    cells = [_accuracy(final, setting), *(_mean(values, setting) for values in others)]
    return [*values, str(len(setting.runs)), *cells, _accuracy(chosen, setting), _accuracy(best, setting)]


def _mean(values: Sequence[float], setting: Setting) -> str:
    """Return mean ± standard error; "-" if a run of the setting diverged and so has no value."""
    return str(mean_and_se(values)) if len(values) == len(setting.runs) else "-"


def _accuracy(values: Sequence[float], setting: Setting) -> str:
    """Return the mean accuracy as `_mean` does, or with Wilson's interval on one run's test pairs."""
    return str(setting.summed_up(values)) if len(values) == len(setting.runs) else "-"


def _best(run: Run) -> float | None:
    found = [point.metrics["accuracy"] for point in run.points if point.metrics.get("accuracy") is not None]
    return max(found, default=None)
