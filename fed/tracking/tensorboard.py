"""The TensorBoard output of a run: scalars, sampled responses as text, and the hparams plug-in."""

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fed.files import writing
from fed.tracking.event_files import EventFiles

# Shown beside the settings.
HPARAM_METRICS = tuple(f"test/{name}" for name in ("accuracy", "margin", "loss", "log_ratio"))
METHOD = "strategy, mode"
# The settings that the hparams plug-in selects at first, with the heads of their columns. It selects the first five
# that differ among runs, by name, and believes the record which ones do: so strategy and mode share a column.
PRESELECTED = {
    METHOD: METHOD,
    "lr": "lr",
    "strategy.temp": "temp",
    "loss.beta": "beta",
    "client_num_in_total": "clients",
}


class TensorBoard:
    """The event files of a run, one sub-folder for the server and one per client; disabled, it writes nothing."""

    def __init__(self, folder: Path, *, enabled: bool) -> None:
        self._folder = folder
        self._files = EventFiles(folder) if enabled else None

    def scalars(self, who: str, tags: Mapping[str, float], step: int, *, flush: bool = False) -> None:
        """Write one event with these values; `flush` brings all events to the disk at once."""
        if self._files:
            with writing(self._folder / who):
                self._files.write(who, tags, step)
                if flush:
                    self._files.flush()

    def samples(self, who: str, samples: Sequence[Mapping[str, str]], step: int) -> None:
        """Write the policy's and the reference's responses as one table each."""
        if self._files:
            from tensorboardX.summary import text

            tables = (text(f"{whose}_samples", _table(samples, whose)) for whose in ("policy", "reference"))
            self._summaries(who, tables, step)

    def begin(self, settings: Mapping[str, object]) -> None:
        """Write the settings that the run starts with."""
        if self._files:
            experiment, start, _ = _hparams(settings, HPARAM_METRICS)
            self._summaries("Server", [_preselected(experiment), start], 0)

    def end(self) -> None:
        """Write that the run is finished."""
        if self._files:
            self._summaries("Server", _hparams({}, ())[2:], 0)

    def close(self) -> None:
        """Flush and close all files."""
        if self._files:
            self._files.close()

    def state_dict(self) -> dict[str, Any] | None:
        """Return the name and the sizes of all files, now on the disk; None if disabled."""
        return self._files.state_dict() if self._files else None

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Truncate all files to the sizes that `state_dict` returned."""
        if self._files and state is not None:
            self._files.load_state_dict(state)

    def start_over(self) -> None:
        """Remove what an earlier process wrote."""
        if self._files:
            self._files.load_state_dict({**self._files.state_dict(), "sizes": {}})

    def _summaries(self, who: str, summaries: Iterable[Any], step: int) -> None:
        assert self._files
        with writing(self._folder / who):
            for summary in summaries:
                self._files.add(who, summary, step)
            self._files.flush()


def _hparams(values: Mapping[str, object], metrics: Iterable[str]) -> tuple[Any, Any, Any]:
    """Return the hparams plug-in's records of the experiment, of the session's start and of its end."""
    from tensorboardX.summary import hparams

    return hparams(dict(values), dict.fromkeys(metrics))  # type: ignore[no-any-return]


def _preselected(experiment: Any) -> Any:
    """Return the record of the experiment with the settings that are selected at first.

    Of several runs the plug-in reads the first one's record only, so these settings are in it even if the run has none.
    """
    # tensorboardX's own message has no field `differs`.
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    plugin = experiment.value[0].metadata.plugin_data
    record = HParamsPluginData.FromString(plugin.content)
    infos = {info.name: info for info in record.experiment.hparam_infos}
    for name, head in PRESELECTED.items():
        info = infos.get(name) or record.experiment.hparam_infos.add(
            name=name, type="DATA_TYPE_STRING" if name == METHOD else "DATA_TYPE_FLOAT64"
        )
        info.display_name, info.differs = head, True
    plugin.content = record.SerializeToString()
    return experiment


def _table(samples: Sequence[Mapping[str, str]], whose: str) -> str:
    """Return a Markdown table of prompts, the data's responses and the model's; line breaks are kept."""
    columns = ("prompt", "chosen", whose)
    rows = [columns, *([_cell(sample[column]) for column in columns] for sample in samples)]
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|---|---|---|", *body])


def _cell(value: str) -> str:
    text = html.escape(value).replace("\\", "\\\\")
    return "".join(f"\\{c}" if c in "|*_`[]#" else c for c in text).strip().replace("\n", "<br>")
