"""Flower's client app: it answers each message at a SuperNode, and in the workers of engine=ray.

A SuperNode starts a process for every message, which finds token ids and reference log-probabilities in `cache_dir`. A
worker of Ray keeps its model and serves one client after the other.
"""

import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, MessageType
from flwr.clientapp import ClientApp

from clients.app import config_of
from clients.privacy import check_promise
from fed.config.flower import DATA, POLICY, from_text, node_settings
from fed.config.policy import NodePolicy, check_allowed, read_policy
from fed.errors import CannotContinue, CannotWrite, Failed, Refused
from fed.files import inside
from fed.foreign import one_line
from fed.grids.remote import MODEL, RUN, SETTINGS
from run.site import Site, site_of

KINDS = (MessageType.QUERY, MessageType.TRAIN, MessageType.EVALUATE)
Answer = Callable[[Site, Message, Context, Path], Message]


def flower_app(folder: Path | None = None) -> ClientApp:
    """Return the client app.

    Args:
        folder: Where clients keep their states between rounds; None: in `cache_dir`, in a folder of the run's name.
    """
    client = ClientApp()

    @client.query()
    def query(message: Message, context: Context) -> Message:
        return _guarded(Site.introduce, message, context, folder)

    @client.train()
    def train(message: Message, context: Context) -> Message:
        return _guarded(Site.answer, message, context, folder)

    @client.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return _guarded(Site.answer, message, context, folder)

    return client


app = flower_app()


def _policy(node_config: Mapping[str, Any]) -> NodePolicy | None:
    """Return the policy of this node; None: it has no data of its own and so no owner, as simulated clients."""
    path = node_config.get(POLICY)
    return read_policy(None if path is None else str(path)) if DATA in node_config else None


def _guarded(answer: Answer, message: Message, context: Context, folder: Path | None) -> Message:
    """Return the answer, or an error that says why there is none; this process's log says it too."""
    has_own_data, is_private = DATA in context.node_config, False
    try:
        sent = _carried(message)
        request = node_settings(from_text(sent[SETTINGS]), context.node_config)
        is_private = has_own_data and request.config.privacy.kind != "none"
        policy = _policy(context.node_config)
        if policy is not None:
            check_allowed(policy, request.config, context.node_config.keys())
        if has_own_data:
            check_promise(request.config.privacy, context.node_config)
        usual = inside(Path(request.config.cache_dir), "clients", sent[RUN])
        site = site_of(request, context.node_config, policy)
        try:
            return answer(site, message, context, folder or usual)
        finally:
            site.trim_caches()
    except Exception as error:
        reason = _told(error, has_own_data=has_own_data, is_private=is_private)
        return Message(Error(0, reason), reply_to=message)


def _carried(message: Message) -> dict[str, str]:
    """Return the texts that every message of the server carries.

    Raises:
        Refused: If the message is of a type that nothing checks, or lacks a text.
    """
    kind, config = message.metadata.message_type, config_of(message)
    if kind not in KINDS:  # Flower takes "train.anything" for "train"
        raise Refused(f"the server sends a message of type {kind}; expected {', '.join(KINDS)}")
    for key in (SETTINGS, MODEL, RUN):
        if not isinstance(config.get(key), str):
            raise Refused(f"the server sends {key}={config.get(key)!r:.40}; expected text")
    return {key: str(config[key]) for key in (SETTINGS, MODEL, RUN)}


def _told(error: Exception, *, has_own_data: bool, is_private: bool) -> str:
    """Print why there is no answer, and return what the server is told of it.

    The text of an error may hold some of the data, or a place on this disk. So of an unexpected error a client with
    data of its own tells the type only, and with `privacy=` nothing but that there is no answer.
    """
    kind, reason = type(error).__name__, one_line(str(error))
    printed, is_foreseen = reason, isinstance(error, (Failed, CannotContinue))
    if not (is_foreseen or isinstance(error, ValueError)):
        traceback.print_exc()
        printed = f"{kind}: {reason}"
    print(f"error: {printed}", file=sys.stderr, flush=True)
    if isinstance(error, Refused):
        return reason
    if is_private:
        return "it has nothing to send; the log of its SuperNode says why"
    if is_foreseen and not isinstance(error, CannotWrite):
        return reason
    if has_own_data:
        return f"{kind}; the log of its SuperNode says more"
    return f"{printed}\n{traceback.format_exc()}"
