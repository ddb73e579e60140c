"""Keys of the federation."""

from dataclasses import dataclass, field

from fed.config.conditions import ABOVE_0, ALL_HERE, AT_LEAST_0, AT_LEAST_1, NO_FEDERATION, PRIVATE
from fed.config.groups import FaultSettings
from fed.config.meaning import Limits, Scope, at, key

NO_SAMPLES = at("sample_during_eval", False)
WEIGHTINGS = ("accuracy", "samples", "accuracy_times_samples")  # what FeDPO weights a client's reply by


@dataclass
class FederationKeys:
    """The federation."""

    client_num_in_total: int | None = key(
        10, "Clients of the federation; null: with `partition=natural`, all that the data has.", AT_LEAST_1
    )
    clients_per_round: int | None = key(
        None,
        "Clients that train in a round; null: all.",
        AT_LEAST_1,
        idle=(at("mode", "local", "which aggregates nothing"),),
        read_by=("strategy", "clients_per_round"),
    )
    comm_round: int = key(100, "Rounds.", AT_LEAST_1, scope=Scope(resume="free"))
    frequency_of_test: int = key(1, "Rounds between evaluations at the server.", AT_LEAST_1)
    sample_during_eval: bool = key(False, "At each of them draw responses to test prompts, from policy and reference.")
    n_eval_model_samples: int = key(
        16,
        "Prompts to draw responses to, the first different ones of the test pairs.",
        AT_LEAST_1,
        idle=(NO_SAMPLES,),
    )
    sample_temperature: float = key(
        1.0, "Divides the logits of drawn responses; 0 takes the likeliest token.", AT_LEAST_0, idle=(NO_SAMPLES,)
    )
    sample_top_p: float = key(
        1.0,
        "Only the likeliest tokens are drawn, as many as have this share of the probability.",
        Limits(above=0, at_most=1),
        idle=(NO_SAMPLES, at("sample_temperature", 0)),
    )
    sample_fixed_length: bool = key(
        False,
        "Drawn responses have all `max_length` - `max_prompt_length` tokens, whatever they say; false: they end where "
        "the model ends them.",
        idle=(NO_SAMPLES,),
    )
    temp: float = key(
        0.1,
        "FeDPO: inverse temperature of the softmax over accuracies; 0 weighs all clients alike.",
        AT_LEAST_0,
        idle=(*NO_FEDERATION, at("weighting", "samples")),
        read_by=("strategy", "temp"),
    )
    decay_rate: float = key(
        0.995,
        "FeDPO: factor on the learning rate of a client that did not beat the server; 1 never decays.",
        Limits(above=0, at_most=1),
        idle=NO_FEDERATION,
        read_by=("strategy", "decay_rate"),
    )
    decay_target: str = key(
        "lr",
        "What the decay multiplies: the learning rate or the loss.",
        choices=("lr", "loss"),
        idle=(*NO_FEDERATION, at("decay_rate", 1)),
        read_by=("strategy", "decay_rate"),
    )
    weighting: str = key(
        "accuracy",
        "What a client's weight in the mean depends on.",
        choices=WEIGHTINGS,
        idle=NO_FEDERATION,
        read_by=("strategy", "weighting"),
    )
    max_client_weight: float | None = key(
        None,
        "Largest share of a client in the mean, whatever it reports; null: no limit. With it a round's replies are in "
        "memory all at once.",
        Limits(above=0, at_most=1),
        idle=NO_FEDERATION,
        read_by=("strategy", "max_client_weight"),
    )
    accuracy_on: str = key(
        "server",
        "Pairs that a client's result is scored on: the server's validation pairs, the client's held-out pairs, or "
        "the test pairs, which the curve then no longer tests.",
        choices=("server", "client", "test"),
    )
    score_on: str = key(
        "client",
        "Where clients are elsewhere, who scores a client's result for its weight: the client itself, or the server on "
        "its validation pairs, which takes one evaluation for each reply.",
        choices=("client", "server"),
        idle=(ALL_HERE, PRIVATE),
    )
    alpha: float | None = key(
        None, "Weight of the anchor term; null: 1 with `strategy=fedpo`, 0 with others.", AT_LEAST_0
    )
    anchor_norm: str = key(
        "token", "The anchor term is a mean per token or a sum.", choices=("token", "sum"), idle=(at("alpha", 0),)
    )
    min_fit_clients: int = key(
        1,
        "A round in which fewer clients succeed ends the run.",
        AT_LEAST_0,
        scope=Scope(resume="free", federated_only=True),
    )
    client_timeout: float | None = key(
        None,
        "A client is left out after so many seconds of training (at SuperNodes: since the message was sent); "
        "null: never.",
        ABOVE_0,
        scope=Scope(resume="free"),
    )
    faults: FaultSettings = field(default_factory=FaultSettings)
    wire_dtype: str = key(
        "float32",
        "Type of weights under way; `bfloat16` sends differences, with half the bytes.",
        choices=("float32", "bfloat16"),
        idle=NO_FEDERATION,
    )
    client_mods: list[str] = key([], "Dotted paths of Flower mods for the clients.")
    client_metrics: list[str] = key(
        [],
        "Names of the metrics that these mods add to a reply; a reply with others is left out.",
        idle=(ALL_HERE,),
    )
