"""The mods that keep a client's data with the client, and the check of what its owner demands of a run."""

import functools
from collections.abc import Iterator, Mapping

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod
from flwr.clientapp.typing import ClientAppCallable, Mod
from torch import Tensor

from fed.config.flower import KIND, LEAST
from fed.config.groups import PrivacySettings
from fed.errors import Failed, Refused
from fed.grids.replies import Sent, arrays_of
from fed.privacy import (
    check_rounding,
    classical_epsilon,
    local_sensitivity,
    longest_update,
    moved,
    update_norm,
)
from fed.seeding import unseed_noise

LONGEST = 1e18  # its square is a float32


def privacy_mods(settings: PrivacySettings) -> list[Mod]:
    """Return the mods that `privacy=` needs at a client, outermost first; a user's own mods go inside them."""
    if settings.kind == "none":
        return []
    if settings.kind == "central_dp" and settings.clipping == "server":
        return [send_weights_only, require_norm]
    held: list[Mod] = [send_weights_only, functools.partial(check_norm, settings)]
    if settings.kind == "central_dp":
        return [*held, fixedclipping_mod, hide_unchanged, require_norm]
    noise = LocalDpMod(settings.clipping_norm, local_sensitivity(settings), classical_epsilon(settings), settings.delta)
    mods: list[Mod] = [*held, noise, hide_unchanged, require_norm]
    return mods if settings.seeded_noise else [*mods, unseed]


def check_promise(settings: PrivacySettings, demanded: Mapping[str, object]) -> None:
    """Refuse a run that does not promise the privacy which the owner of the data demands.

    Args:
        settings: The privacy settings of the run, as the server states them.
        demanded: The node's configuration. It may hold "privacy.kind" and the least "privacy.noise_multiplier".

    Raises:
        Refused: If the run promises less, or if others could draw the noise again.
    """
    kind, least = demanded.get(KIND), demanded.get(LEAST)
    if settings.kind != "none" and settings.seeded_noise:
        raise Refused("privacy.seeded_noise=true: whoever knows the seed subtracts the noise; leave it out")
    if kind is not None and settings.kind != kind:
        raise Refused(f"this client takes part only with privacy={kind}; the run has privacy={settings.kind}")
    if least is not None and (settings.kind == "none" or not settings.noise_multiplier >= float(str(least))):
        raise Refused(
            f"this client takes part only with privacy.noise_multiplier={least} or more; the run has "
            f"privacy={settings.kind} and privacy.noise_multiplier={settings.noise_multiplier:g}"
        )


def send_weights_only(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Reduce the reply to its weights and, in place of all metrics, `num-examples` 1.

    Losses and counts carry no noise, so they stay at the client; and clients weigh alike in every mean.
    """
    reply = call_next(message, context)
    if not reply.has_error():
        sent = message.content.array_records
        content = RecordDict({key: record for key, record in reply.content.array_records.items() if key in sent})
        content["metrics"] = MetricRecord({"num-examples": 1})
        reply.content = content
    return reply


def check_norm(settings: PrivacySettings, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Return the reply if its update is as short as clipping and noise leave it, whatever they did.

    Raises:
        Failed: If it is longer, or if the noise is lost in the rounding of weights as large as those received.
    """
    sent = arrays_of(message)
    if settings.kind == "local_dp":
        for tensors in sent.values():
            check_rounding(settings, tensors)
    reply = call_next(message, context)
    if not reply.has_error():
        for before, after in _updates(sent, reply):
            if not update_norm(before, after) <= longest_update(settings, before):
                raise Failed(f"privacy={settings.kind}: the update is longer than clipping and noise leave it")
    return reply


def require_norm(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Return the reply if its update has a norm: clipping lets one pass whole that has none.

    Raises:
        Failed: If the update, or its norm, is not finite in float32.
    """
    sent = arrays_of(message)
    reply = call_next(message, context)
    if not reply.has_error():
        for before, after in _updates(sent, reply):
            if not update_norm(before, after) < LONGEST:
                raise Failed("the update has no norm that can be clipped; nothing is sent")
    return reply


def _updates(sent: Sent, reply: Message) -> Iterator[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]:
    """Yield the arrays of a message and those that a reply has under the same key."""
    answered = arrays_of(reply)
    yield from ((sent[key], answered[key]) for key in sent.keys() & answered.keys())


def hide_unchanged(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Return the reply with weights that differ from those received, so that nobody sees an unchanged model."""
    received = dict(message.content.array_records)  # mods inside may replace them
    reply = call_next(message, context)
    if not reply.has_error():
        for key, sent in received.items():
            if key in reply.content.array_records:
                reply.content[key] = moved(sent, reply.content.array_records[key])
    return reply


def unseed(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Return the reply; noise that is added to it afterwards cannot be drawn again."""
    reply = call_next(message, context)
    unseed_noise()
    return reply
