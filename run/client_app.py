"""Flower's client app: what runs for each message at a SuperNode, and in the workers of engine=ray.

A SuperNode starts a process for every message: what takes long is found on its disk, in `cache_dir`. A worker of Ray
keeps its model and serves one client after the other.
"""

import functools
import json
import os
import secrets
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a client's texts are few

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.app import Client, ClientPairs, client_app
from clients.first_visit import Columns
from clients.privacy import check_promise
from clients.state_files import forget, keep, number, recall
from clients.trainer import LocalTrainer
from fed.config.checks import Request
from fed.config.flower import DATA, FORMAT, PARTITION_ID, from_text, node_settings
from fed.config.schema import is_own
from fed.data.rows import Loaded
from fed.distributed import launch
from fed.distributed.stop import Deadline
from fed.errors import Failed
from fed.grids.remote import CLIENT, MODEL, RUN, SETTINGS
from fed.grids.wire import Wire, unpacking
from fed.model.arrays import model_tensors, snapshot, to_tensors
from fed.model.identity import difference, identity
from fed.privacy import described
from fed.seeding import seeded_globals
from fed.tracking.log import ConsoleLog, Log
from load_data import load_file
from run.plan import Plan, check_lengths, local_settings, references
from run.prepare import prepare_client

PREPARED = 64  # clients whose tokens a process keeps
Answer = Callable[["Site", Message, Context], Message]


def flower_app(kept: Path | None = None) -> ClientApp:
    """The app; what clients store between rounds is in the folder `kept`, None: in one of the run in `cache_dir`."""
    outer = ClientApp()

    @outer.query()
    def query(message: Message, context: Context) -> Message:
        return _guarded(_introduced, kept, message, context)

    @outer.train()
    def train(message: Message, context: Context) -> Message:
        return _guarded(Site.answer, kept, message, context)

    @outer.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return _guarded(Site.answer, kept, message, context)

    return outer


app = flower_app()


def _guarded(answer: Answer, kept: Path | None, message: Message, context: Context) -> Message:
    """The answer, or why there is none: on this client's console, and to the server as far as it may know.

    What an error of a client with data of its own says may hold some of them.
    """
    is_alone = DATA in context.node_config
    try:
        told = _config(message)
        settings = node_settings(from_text(str(told[SETTINGS])), context.node_config)
        if is_alone:
            check_promise(settings.config.privacy, context.node_config)
        site = _site(settings, context.node_config)
        site.kept = kept or Path(settings.config.cache_dir) / "clients" / str(told[RUN])
        return answer(site, message, context)
    except Failed as error:
        reason = shared = " ".join(str(error).split())
    except Exception as error:
        kind, reason = type(error).__name__, " ".join(str(error).split())
        if not isinstance(error, ValueError):
            traceback.print_exc()
            reason = f"{kind}: {reason}"
        shared = f"{kind}; the log of its SuperNode says more" if is_alone else f"{reason}\n{traceback.format_exc()}"
    print(f"error: {reason}", file=sys.stderr, flush=True)
    return Message(Error(0, shared), reply_to=message)


def _introduced(site: "Site", message: Message, context: Context) -> Message:
    """Who this client is; then it has all it needs for the first round."""
    metrics = MetricRecord()
    own = context.node_config.get(PARTITION_ID)
    if own is None and site.is_alone:
        own = number(site.kept)
    if own is not None:
        metrics[PARTITION_ID] = int(own)
    if site.is_alone:
        forget(site.kept)
        site.check_model(message)
        _ = site.pairs[0]
        if site.config.privacy.kind != "none":
            print(described(site.config.privacy, site.config.comm_round), file=sys.stderr, flush=True)
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


class Site:
    """What a process needs to be one client, or several in turn."""

    def __init__(self, settings: Request, node_config: Mapping[str, Any]) -> None:
        config = settings.config
        self.config, self.is_alone = config, DATA in node_config
        self.kept = Path(config.cache_dir)  # the folder of the run, for what clients store
        with launch.joined(config.device, config.process_timeout) as device:
            self.plan = prepare_client(settings, device, _own_rows(settings, node_config))
        initial = snapshot(model_tensors(self.plan.policy.model))
        self.model = identity(self.plan.policy)
        self.pairs = _Pairs(self.plan, initial, self.model["weights"])
        self.deadline = Deadline(config.client_timeout if config.engine == "ray" else None)
        wire = Wire(config.wire_dtype, to_tensors(initial))
        client = Client(
            LocalTrainer(self.plan.policy, local_settings(self.plan)),
            self.pairs,
            ConsoleLog() if self.is_alone else Log(),
            self.deadline,
        )
        self._app = client_app(client, [unpacking(wire), *self.plan.mods])

    def answer(self, message: Message, context: Context) -> Message:
        """The client's answer to "train" or "evaluate".

        Raises:
            Failed: If it has another model than the server, or no time left.
        """
        self.check_model(message)
        config = _config(message)
        client_id, server_round = int(config[CLIENT]), int(config.get("server-round", 1))  # type: ignore[arg-type]
        numbered = replace(context, node_config={**context.node_config, PARTITION_ID: client_id})
        self.deadline.begin()
        if not context.state:
            for key, record in recall(self.kept, client_id, server_round).items():
                context.state[key] = record
        with self._drawing(message.metadata.message_type, client_id, server_round):
            reply = self._app(message, numbered)
        if message.metadata.message_type == MessageType.TRAIN:
            every = self.config.checkpoint_every
            if self.is_alone or (every and not self.config.debug):  # else no run goes on where this one ends
                keep(self.kept, client_id, server_round, context.state, every)
        return reply

    def _drawing(self, kind: str, client_id: int, server_round: int) -> AbstractContextManager[None]:
        """Noise of a simulated client comes from the stream of engine=local; nobody may know that of a real one."""
        if self.is_alone:
            return seeded_globals(secrets.randbits(63), "a real client", 0)
        return seeded_globals(self.config.seed, f"client {kind}", client_id, server_round, 1)

    def check_model(self, message: Message) -> None:
        """Find out whether this client's model is the server's.

        Raises:
            Failed: If not.
        """
        if other := difference(self.model, json.loads(str(_config(message)[MODEL]))):
            raise Failed(
                f"this client's model is not the server's: {other}; give it the same files, e.g. by --node-config "
                "'model.name_or_path=\"...\"'"
            )


class _Pairs:
    """The pairs of each client, by its number, with the columns that its training and evaluation read."""

    def __init__(self, plan: Plan, initial: ArrayRecord, model: str) -> None:
        self._plan = plan
        fill = references(plan, model)
        scored = {"server": plan.validation, "test": plan.test}.get(plan.config.accuracy_on)
        scoring = None if scored is None else fill(scored)
        self._columns = Columns(plan.policy.model, initial, fill, plan.supervised, scoring)
        self._prepared = functools.lru_cache(PREPARED)(self._prepare)

    def __getitem__(self, client_id: int) -> ClientPairs:
        return self._prepared(client_id if len(self._plan.split.clients) > 1 else 0)

    def _prepare(self, client_id: int) -> ClientPairs:
        own = self._plan.pairs(client_id)
        check_lengths(self._plan, (*own.train, *own.held_out))
        if self._plan.config.accuracy_on == "client" and not own.held_out:
            raise Failed(f"of client {client_id}'s data no pair can be held out; it needs two conversations or more")
        return self._columns.filled(own)


def _site(settings: Request, node_config: Mapping[str, Any]) -> Site:
    """That of this process, made when it is first asked for."""
    global _made
    key = repr((settings, node_config.get(DATA), node_config.get(FORMAT)))
    if _made is None or _made[0] != key:
        _made = key, Site(settings, node_config)
    return _made[1]


_made: tuple[str, Site] | None = None


def _own_rows(settings: Request, node_config: Mapping[str, Any]) -> Loaded | None:
    """The rows of this node's own file, if clients have such files.

    Raises:
        ValueError: If they have and this one has not, or the other way round.
    """
    file = node_config.get(DATA)
    if is_own(settings.config) and not settings.config.partition["client_data"]:
        if file is None:
            raise ValueError(f"this node has no data; start its SuperNode with --node-config '{DATA}=\"path.jsonl\"'")
        return load_file(str(file), str(node_config.get(FORMAT, "jsonl")))
    if file is not None:
        raise Failed("this node has data of its own, but the run divides a data set; start the run with partition=own")
    return None


def _config(message: Message) -> ConfigRecord:
    return next(iter(message.content.config_records.values()), ConfigRecord())
