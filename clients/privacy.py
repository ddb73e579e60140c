"""The mods that keep a client's data with the client."""

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod
from flwr.clientapp.typing import ClientAppCallable, Mod

from fed.config import PrivacySettings
from fed.privacy import classical_epsilon, local_sensitivity
from fed.seeding import unseed_noise


def privacy_mods(settings: PrivacySettings) -> list[Mod]:
    """What `privacy=` asks of a client, outermost first; a user's own mods come after, so within."""
    if settings.kind == "none":
        return []
    if settings.kind == "central_dp":
        return [only_weights] if settings.clipping == "server" else [only_weights, fixedclipping_mod]
    noise = LocalDpMod(settings.clipping_norm, local_sensitivity(settings), classical_epsilon(settings), settings.delta)
    return [only_weights, noise] if settings.seeded_noise else [only_weights, noise, unseeded]


def only_weights(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """The reply with its weights and, in place of all metrics, `num-examples` 1: losses and counts carry no noise.

    So clients weigh alike in every mean.
    """
    reply = call_next(message, context)
    if not reply.has_error():
        content = RecordDict(dict(reply.content.array_records.items()))
        content["metrics"] = MetricRecord({"num-examples": 1})
        reply.content = content
    return reply


def unseeded(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """The reply; noise that is added to it from here on cannot be drawn again."""
    reply = call_next(message, context)
    unseed_noise()
    return reply
