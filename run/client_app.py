"""Flower's client app: it answers each message at a SuperNode, and in the workers of engine=ray.

A SuperNode starts a process for every message, which finds token ids and reference log-probabilities in `cache_dir`. A
worker of Ray keeps its model and serves one client after the other.
"""

import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from clients.app import config_of
from clients.privacy import check_promise
from fed.config.flower import DATA, POLICY, from_text, node_settings
from fed.config.policy import NodePolicy, check_allowed, read_policy
from fed.errors import CannotContinue, CannotWrite, Failed
from fed.files import inside
from fed.foreign import one_line
from fed.grids.remote import RUN, SETTINGS
from run.site import Site, site_of

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
    """Return the answer, or an error that says why there is none.

    The client's console shows the reason. The text of an unexpected error may hold some of the data or a place on this
    disk, so a client with data of its own sends the server only the error's type.
    """
    has_own_data = DATA in context.node_config
    try:
        sent = config_of(message)
        request = node_settings(from_text(str(sent[SETTINGS])), context.node_config)
        policy = _policy(context.node_config)
        if policy is not None:
            check_allowed(policy, request.config, context.node_config.keys())
        if has_own_data:
            check_promise(request.config.privacy, context.node_config)
        usual = inside(Path(request.config.cache_dir), "clients", str(sent[RUN]))
        return answer(site_of(request, context.node_config, policy), message, context, folder or usual)
    except Exception as error:
        kind, reason = type(error).__name__, one_line(str(error))
        is_expected = isinstance(error, (Failed, CannotContinue))
        if not (is_expected or isinstance(error, ValueError)):
            traceback.print_exc()
            reason = f"{kind}: {reason}"
        if is_expected and not isinstance(error, CannotWrite):  # of the run's settings and messages
            shared = reason
        elif has_own_data:
            shared = f"{kind}; the log of its SuperNode says more"
        else:
            shared = f"{reason}\n{traceback.format_exc()}"
    print(f"error: {reason}", file=sys.stderr, flush=True)
    return Message(Error(0, shared), reply_to=message)
