"""The TensorBoard output of a run: scalars, sampled responses as text, and the hparams plug-in."""

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fed.files import writing
from fed.tracking.event_files import EventFiles

HPARAM_METRICS = tuple(
    f"test/{name}" for name in ("accuracy", "margin", "loss", "log_ratio")
)  # shown beside the settings


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
            self._summaries("Server", _hparams(settings, HPARAM_METRICS)[:2], 0)

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


def _table(samples: Sequence[Mapping[str, str]], whose: str) -> str:
    """Return a Markdown table with one row per prompt; line breaks within a response are preserved."""
    rows = [f"| {_cell(sample['prompt'])} | {_cell(sample[whose])} |" for sample in samples]
    return "\n".join([f"| prompt | {whose} |", "|---|---|", *rows])


def _cell(value: str) -> str:
    text = html.escape(value).replace("\\", "\\\\")
    return "".join(f"\\{c}" if c in "|*_`[]#" else c for c in text).strip().replace("\n", "<br>")
