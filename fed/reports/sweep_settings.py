"""The settings of a sweep: the keys whose values differ among runs, and the runs of each combination of values."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from fed.config.schema import flat
from fed.reports.runs import OF_THE_RUN, Run
from fed.reports.statistics import Mean, Share, accuracy, mean_and_se

Value = str | int | float | bool | None
Column = tuple[Value, ...]  # the values of one key, one for each run

NAMES_ITS_FILE = ("_target_", "name_or_path")  # the parameter by which a file of a group is known


@dataclass(frozen=True)
class Setting:
    """Runs that differ only in their seed."""

    values: Column  # of the swept keys, in their order
    runs: Sequence[Run]

    def final(self, metric: str) -> list[float]:
        """Return the metric of each run that has it, after its last round."""
        found = (run.points[-1].metrics.get(metric) for run in self.runs)
        return [value for value in found if value is not None]

    def summed_up(self, accuracies: Sequence[float]) -> Mean | Share:
        """Return the mean of the runs' accuracies and its uncertainty: see `fed.reports.statistics.accuracy`.

        Runs that do not say how many test pairs they had have no interval.
        """
        pairs = self.runs[0].points[-1].metrics.get("examples")
        return accuracy(accuracies, pairs) if pairs else mean_and_se(accuracies)

    @property
    def noise(self) -> float:
        """The width of the 95 % interval of one run's accuracy; 0 if it is unknown."""
        found = [self.summed_up([value]) for value in self.final("accuracy")[:1]]
        return found[0].high - found[0].low if found and isinstance(found[0], Share) else 0.0


def swept_keys(runs: Sequence[Run]) -> list[str]:
    """Return the dotted keys that differ among the runs: typed ones first, then the shorter.

    A key that follows from others is left out: of `temp` and `strategy.temp`, which always change together, the longer
    one; with `strategy=fedavg,fedpo` all parameters of the strategies' files but `strategy._target_`.
    """
    columns, typed = _columns(runs), _typed(runs)
    kept: dict[str, Column] = {}
    for key in sorted(_differing(columns), key=lambda key: _rank(key, typed)):
        column = columns[key]
        if key in typed:
            follows = column in kept.values()
        else:
            follows = column == columns.get("seed") or (bool(kept) and _follows(column, kept.values()))
        if not follows:
            kept[key] = column
    return list(kept)


def settings(runs: Iterable[Run], keys: Sequence[str]) -> list[Setting]:
    """Return a setting for each combination of values, in order; of runs with the same seed the newest counts."""
    by_values: dict[Column, dict[int, Run]] = {}
    for run in sorted(runs, key=lambda run: (run.folder.name, str(run.folder))):
        values = _settings(run)
        by_values.setdefault(tuple(values.get(key) for key in keys), {})[run.seed] = run
    found = [Setting(values, [of_seed[seed] for seed in sorted(of_seed)]) for values, of_seed in by_values.items()]
    return sorted(found, key=lambda setting: [order(value) for value in setting.values])


def best_first(swept: Iterable[Setting]) -> list[Setting]:
    """Return the settings that have an accuracy, the highest mean first."""
    known = [setting for setting in swept if setting.final("accuracy")]
    return sorted(known, key=lambda setting: -fmean(setting.final("accuracy")))


def order(value: Value) -> tuple[bool, float, str]:
    """Return the sort key of a value: numbers by size, then all others by their text."""
    return (False, float(value), "") if is_number(value) else (True, 0.0, str(value))  # type: ignore[arg-type]


def is_number(value: Value) -> bool:
    """Return True for a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def label(key: str) -> str:
    """Return the key as it is typed: `strategy` for `strategy._target_`."""
    return key.removesuffix("._target_")


def shown(key: str, value: Value) -> str:
    """Return the value as it is typed; of a dotted path the last part."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text.rpartition(".")[2] if key.endswith("_target_") else text


def _settings(run: Run) -> dict[str, Value]:
    """Return the run's settings by dotted key; lists are text as typed."""
    return {
        key: value if value is None or isinstance(value, str | int | float | bool) else _typed_list(value)
        for key, value in flat(run.config)
    }


def _typed_list(value: object) -> str:
    return str(value).replace("'", "").replace(" ", "")


def _columns(runs: Sequence[Run]) -> dict[str, Column]:
    rows = [_settings(run) for run in runs]
    return {key: tuple(row.get(key) for row in rows) for key in dict.fromkeys(key for row in rows for key in row)}


def _differing(columns: Mapping[str, Column]) -> list[str]:
    return [key for key, column in columns.items() if key not in OF_THE_RUN and len(set(column)) > 1]


def _typed(runs: Sequence[Run]) -> set[str]:
    """Return the keys that were typed, and the undotted keys that a preset sweeps."""
    given = {key for run in runs for key in run.environment.get("given", ()) if "." not in key}
    return given | {word.lstrip("+~").partition("=")[0] for run in runs for word in run.environment.get("argv", ())}


def _rank(key: str, typed: set[str]) -> tuple[bool, bool, bool, int, str]:
    group, _, parameter = key.partition(".")
    return key not in typed, group not in typed, parameter not in NAMES_ITS_FILE, len(key), key


def _follows(column: Column, others: Iterable[Column]) -> bool:
    """Return True if runs that are alike in the other columns are alike in this one too."""
    alike = list(zip(*others, strict=True))
    return len(set(alike)) == len(set(zip(alike, column, strict=True)))
