"""A process that is one client of a federation behind Flower's grid, or several clients in turn."""

import json
import secrets
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, MessageType, MetricRecord, RecordDict

from clients.app import Client, client_app, config_of
from clients.state_files import keep_only, load_state, only_client, remove_old_runs, save_state
from clients.trainer import LocalTrainer
from fed.config.checks import Request
from fed.config.flower import DATA, FORMAT, PARTITION_ID
from fed.config.policy import NodePolicy, check_weights
from fed.config.schema import Config, has_own_data
from fed.data.rows import Loaded
from fed.data.source import Reading
from fed.distributed import launch
from fed.distributed.stop import Deadline
from fed.errors import Failed, Refused
from fed.files import inside, keep_newest
from fed.grids.remote import CLIENT, MODEL
from fed.grids.wire import Wire, unpacking
from fed.model.arrays import model_tensors, snapshot, to_tensors
from fed.model.identity import difference, identity
from fed.privacy import described
from fed.seeding import seeded_globals
from fed.tracking.log import ConsoleLog, Log
from load_data import load_file
from run.plan import local_settings
from run.prepare import prepare_client
from run.references import ReferencedPairs, columns_of

ENTRIES = 100  # of each cache of a node with data of its own
CLIENTS_IN_MEMORY = 64  # clients whose pairs a process keeps


def site_of(request: Request, node_config: Mapping[str, Any], policy: NodePolicy | None) -> "Site":
    """Return this process's site for these settings; it is made once and serves every message of the run."""
    key = repr((request, node_config.get(DATA), node_config.get(FORMAT), policy))
    if key not in _sites:
        site = Site(request, node_config, policy)
        _sites.clear()  # of another run
        _sites[key] = site
    return _sites[key]


_sites: dict[str, "Site"] = {}


class Site:
    """A model, its trainer and the pairs of the clients that this process may be asked to be.

    Args:
        request: The run's settings, with those that this node decides for itself.
        node_config: The node's configuration; with `DATA` its owner has pairs that nobody else has.
        policy: What the owner lets a run do here; the settings have been checked against it. None: there is no owner.

    Raises:
        ValueError: If the settings or the data cannot be used.
        Failed: If the policy does not allow the model's weights.
    """

    def __init__(self, request: Request, node_config: Mapping[str, Any], policy: NodePolicy | None) -> None:
        self._config, self._is_alone = request.config, DATA in node_config
        with launch.joined(self._config.device, self._config.process_timeout) as device:
            plan = prepare_client(request, device, _own_rows(request, node_config))
        initial = snapshot(model_tensors(plan.policy.model))
        self._identity = identity(plan.policy)
        columns = columns_of(plan, initial, self._identity["weights"], Log())
        self._pairs = ReferencedPairs(plan.pairs, columns, CLIENTS_IN_MEMORY)
        self._policy = policy
        if policy is not None:
            check_weights(policy, self._config, node_config.keys(), self._identity["weights"])
        self._deadline = _deadline(self._config, policy)
        client = Client(
            LocalTrainer(plan.policy, local_settings(plan)),
            self._pairs,
            ConsoleLog() if self._is_alone else Log(),
            self._deadline,
            accuracy_on=self._config.accuracy_on,
            strict=not plan.mods,
        )
        unpack = unpacking(Wire(self._config.wire_dtype, to_tensors(initial)))
        self._app = client_app(client, [unpack, *plan.mods])

    def introduce(self, message: Message, context: Context, folder: Path) -> Message:
        """Answer with the client's number, if it has one, and get ready for the first round.

        Args:
            message: The server's question.
            context: The node's context.
            folder: Where the clients of this run keep their states.

        Raises:
            Failed: If the client cannot take part.
        """
        metrics = MetricRecord()
        own = context.node_config.get(PARTITION_ID)
        if own is None and self._is_alone:
            own = only_client(folder)
        if own is not None:
            metrics[PARTITION_ID] = int(own)
        if self._is_alone:
            self._check_model(message)
            _ = self._pairs[0]  # ready for the first round
            if self._config.privacy.kind != "none":
                print(described(self._config.privacy, self._config.comm_round), file=sys.stderr, flush=True)
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    def answer(self, message: Message, context: Context, folder: Path) -> Message:
        """Train or evaluate as the client that the message names.

        Args:
            message: A "train" or "evaluate" message.
            context: The node's context; if it is empty, the client's state is read from `folder`.
            folder: Where the clients of this run keep their states.

        Raises:
            Failed: If the client has another model than the server, or no time left.
        """
        self._check_model(message)
        config = config_of(message)
        client_id, server_round = _number(config, CLIENT), _number({"server-round": 1, **config}, "server-round")
        numbered = replace(context, node_config={**context.node_config, PARTITION_ID: client_id})
        self._deadline.begin()
        if not context.state:
            for key, record in load_state(folder, client_id, server_round).items():
                context.state[key] = record
        with self._random_numbers(message.metadata.message_type, client_id, server_round):
            reply = self._app(message, numbered)
        if message.metadata.message_type == MessageType.TRAIN:
            every = self._config.checkpoint_every
            if self._is_alone or (every and not self._config.debug):  # else the run cannot be resumed
                save_state(folder, client_id, server_round, context.state, every)
            if self._is_alone:  # whatever numbers and names a server sends, the disk holds few files
                keep_only(folder, client_id)
                remove_old_runs(folder)
        return reply

    def trim_caches(self) -> None:
        """Remove the oldest token ids and reference log-probabilities, of which a run adds some for all its settings.

        Those of simulated clients stay.
        """
        for name in ("tokens", "reference") if self._is_alone else ():
            keep_newest(inside(Path(self._config.cache_dir), name), ENTRIES)

    def _random_numbers(self, kind: str, client_id: int, server_round: int) -> AbstractContextManager[None]:
        """Seed a simulated client as engine=local does, and a real one so that nobody can repeat its noise."""
        if self._is_alone:
            return seeded_globals(secrets.randbits(63), "a real client", 0)
        return seeded_globals(self._config.seed, f"client {kind}", client_id, server_round, 1)

    def _check_model(self, message: Message) -> None:
        """Refuse a message from a server that has another model.

        Raises:
            Refused: Naming what differs.
        """
        if other := difference(self._identity, _digests(str(config_of(message)[MODEL]))):
            raise Refused(
                f"this client's model is not the server's: {other}; give it the same files, e.g. by --node-config "
                "'model.name_or_path=\"...\"'"
            )


def _digests(text: str) -> dict[str, str]:
    """Return the digests of the server's model.

    Raises:
        Refused: If the text is none.
    """
    try:
        found = json.loads(text)
        return {str(name): str(digest) for name, digest in found.items()}
    except Exception as error:  # whatever a server may send
        raise Refused(f"the server sends {MODEL}={text[:40]!r}; expected digests by name") from error


def _number(config: Mapping[str, Any], key: str) -> int:
    """Return a number that the server sends.

    Raises:
        Refused: If it is no whole number from 0.
    """
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise Refused(f"the server sends {key}={value!r}; expected a whole number from 0")
    return value


def _deadline(config: Config, policy: NodePolicy | None) -> Deadline:
    """Return the limit on the time of a training: the owner's, or that of a simulation on Ray."""
    if policy is not None:
        return Deadline(policy.max_seconds, "max_seconds")
    return Deadline(config.client_timeout if config.engine == "ray" else None)


def _own_rows(request: Request, node_config: Mapping[str, Any]) -> Callable[[Reading], Loaded] | None:
    """Return the reader of this node's own file; None if clients share the run's data sets.

    Raises:
        ValueError: If clients have their own files and this node has none.
        Failed: If this node has a file but the run divides a data set.
    """
    file = node_config.get(DATA)
    if has_own_data(request.config) and not request.config.partition["client_data"]:
        if file is None:
            raise ValueError(f"this node has no data; start its SuperNode with --node-config '{DATA}=\"path.jsonl\"'")
        name = str(node_config.get(FORMAT, "files"))
        return lambda reading: load_file(str(file), name, reading)
    if file is not None:
        raise Failed("this node has data of its own, but the run divides a data set; start the run with partition=own")
    return None
