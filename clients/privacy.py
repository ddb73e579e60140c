"""The mods that keep a client's data with the client, and the check of what its owner demands of a run."""

from collections.abc import Mapping

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod
from flwr.clientapp.typing import ClientAppCallable, Mod

from fed.config.flower import KIND, LEAST
from fed.config.groups import PrivacySettings
from fed.errors import Failed
from fed.privacy import classical_epsilon, local_sensitivity, moved
from fed.seeding import unseed_noise


def privacy_mods(settings: PrivacySettings) -> list[Mod]:
    """Return the mods that `privacy=` needs at a client, outermost first; a user's own mods go inside them."""
    if settings.kind == "none":
        return []
    if settings.kind == "central_dp":
        return [only_weights] if settings.clipping == "server" else [only_weights, fixedclipping_mod, hide_unchanged]
    noise = LocalDpMod(settings.clipping_norm, local_sensitivity(settings), classical_epsilon(settings), settings.delta)
    mods: list[Mod] = [only_weights, noise, hide_unchanged]
    return mods if settings.seeded_noise else [*mods, unseeded]


def check_promise(settings: PrivacySettings, demanded: Mapping[str, object]) -> None:
    """Refuse a run that does not promise the privacy which the owner of the data demands.

    Args:
        settings: The privacy settings of the run, as the server states them.
        demanded: The node's configuration. It may hold "privacy.kind" and the least "privacy.noise_multiplier".

    Raises:
        Failed: If the run promises less, or if others could draw the noise again.
    """
    kind, least = demanded.get(KIND), demanded.get(LEAST)
    if settings.kind != "none" and settings.seeded_noise:
        raise Failed("privacy.seeded_noise=true: whoever knows the seed subtracts the noise; leave it out")
    if kind is not None and settings.kind != kind:
        raise Failed(f"this client takes part only with privacy={kind}; the run has privacy={settings.kind}")
    if least is not None and (settings.kind == "none" or not settings.noise_multiplier >= float(str(least))):
        raise Failed(
            f"this client takes part only with privacy.noise_multiplier={least} or more; the run has "
            f"privacy={settings.kind} and privacy.noise_multiplier={settings.noise_multiplier:g}"
        )


def only_weights(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
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


def hide_unchanged(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Return the reply with weights that differ from those received, so that nobody sees an unchanged model."""
    reply = call_next(message, context)
    if not reply.has_error():
        for key, sent in message.content.array_records.items():
            if key in reply.content.array_records:
                reply.content[key] = moved(sent, reply.content.array_records[key])
    return reply


def unseeded(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Return the reply; noise that is added to it afterwards cannot be drawn again."""
    reply = call_next(message, context)
    unseed_noise()
    return reply
