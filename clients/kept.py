"""A client's state on its own disk: for a SuperNode that is started again, or a run that goes on after a checkpoint."""

from pathlib import Path

from flwr.app import RecordDict

from fed import trees

LAST = 3  # files kept: a run may go on from a round before the newest


def keep(folder: Path, client_id: int, server_round: int, state: RecordDict) -> None:
    """Keep what the client stores after a round.

    Raises:
        OSError: If the disk refuses it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trees.save(dict(state), _path(folder, client_id, server_round))
    for number in sorted(_rounds(folder, client_id))[:-LAST]:
        _path(folder, client_id, number).unlink()


def recall(folder: Path, client_id: int, server_round: int) -> RecordDict:
    """What it stored before this round; nothing if it took part in none."""
    for number in sorted(_rounds(folder, client_id), reverse=True):
        if number < server_round:
            try:
                return RecordDict(trees.load(_path(folder, client_id, number)))
            except trees.Damaged:
                continue
    return RecordDict()


def _rounds(folder: Path, client_id: int) -> list[int]:
    return [int(path.stem.rpartition("-")[2]) for path in folder.glob(f"client-{client_id}-round-*.safetensors")]


def _path(folder: Path, client_id: int, server_round: int) -> Path:
    return folder / f"client-{client_id}-round-{server_round}.safetensors"
