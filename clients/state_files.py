"""A client's state on its own disk, for a SuperNode that is started again or a run that is resumed."""

import re
import shutil
from pathlib import Path

from flwr.app import RecordDict

from fed.checkpoints import serialize
from fed.files import is_own, make_private

CHECKPOINTS = 3  # the server's last checkpoints: a run may be resumed from one before the newest
NAME = re.compile(r"client-(\d{1,18})-round-(\d{1,18})\.safetensors", re.ASCII)
RUNS = 10  # runs whose files stay on the disk


def save_state(folder: Path, client_id: int, server_round: int, state: RecordDict, every: int) -> None:
    """Write a client's state after a round; only it and the states at the server's last checkpoints stay on the disk.

    Args:
        folder: The folder of the run.
        client_id: The client's number.
        server_round: The round in which it has trained.
        state: The state in its context.
        every: Rounds between the server's checkpoints; 0: there are none.

    Raises:
        OSError: If the disk refuses the file.
    """
    make_private(folder.parent)
    make_private(folder)
    found = _rounds(folder, client_id)
    rounds = [r for r in found if r < server_round]
    for later in set(found).difference(rounds):  # a resumed run repeats these rounds
        _path(folder, client_id, later).unlink()
    serialize.save(dict(state), _path(folder, client_id, server_round))
    _path(folder, client_id, server_round).chmod(0o600)
    rounds.append(server_round)
    newest = server_round // every * every if every else 0
    checkpoints = [newest - back * every for back in range(CHECKPOINTS)]
    needed = {max((r for r in rounds if r <= at), default=0) for at in (server_round, *checkpoints)}
    for unneeded in set(rounds) - needed:
        _path(folder, client_id, unneeded).unlink()


def only_client(folder: Path) -> int | None:
    """Return the number of the only client with files of this run; None: no client has any, or several have."""
    found = {client_id for client_id, _, _ in _states(folder)}
    return found.pop() if len(found) == 1 else None


def keep_only(folder: Path, client_id: int) -> None:
    """Remove what other clients of this run have stored: a node with data of its own is one client."""
    for other, _, path in _states(folder):
        if other != client_id:
            path.unlink()


def remove_old_runs(folder: Path) -> None:
    """Remove the files of old runs, beside this run's folder."""
    others = [path for path in folder.parent.glob("*") if path.is_dir() and path != folder]
    for old in sorted(others, key=lambda path: path.stat().st_mtime)[: -(RUNS - 1)]:
        shutil.rmtree(old, ignore_errors=True)


def load_state(folder: Path, client_id: int, server_round: int) -> RecordDict:
    """Return the newest state that the client stored before this round; an empty one if it took part in none."""
    for earlier in sorted(_rounds(folder, client_id), reverse=True):
        if earlier < server_round:
            try:
                return RecordDict(serialize.load(_path(folder, client_id, earlier)))
            except serialize.Damaged:
                continue
    return RecordDict()


def _rounds(folder: Path, client_id: int) -> list[int]:
    return [server_round for _, server_round, _ in _states(folder, client_id)]


def _states(folder: Path, client_id: int | None = None) -> list[tuple[int, int, Path]]:
    """Return client, round and path of each state that this user has written; what others put there is none.

    Args:
        folder: The folder of the run.
        client_id: The client whose states are wanted: simulated clients share a folder; None: all.
    """
    pattern = f"client-{'*' if client_id is None else client_id}-round-*"
    found = ((NAME.fullmatch(path.name), path) for path in folder.glob(pattern))
    return [(int(name[1]), int(name[2]), path) for name, path in found if name and is_own(path)]


def _path(folder: Path, client_id: int, server_round: int) -> Path:
    return folder / f"client-{client_id}-round-{server_round}.safetensors"
