"""The keys with a point in their name, `model.name_or_path` for one, by group."""

from dataclasses import dataclass
from typing import Any

from fed.config.conditions import (
    ABOVE_0,
    AT_LEAST_0,
    NO_LORA,
    NOT_LOCAL,
    NOT_PRIVATE,
    PROBABILITY,
)
from fed.config.meaning import Idle, Limits, Scope, at, key

BY_THE_NODE = Scope(decider="node")
EACH_CLIPS = Idle("privacy.kind", lambda kind: kind == "local_dp", "privacy=local_dp, where every client clips")


@dataclass
class ModelSettings:
    """The model that is trained, and the types of its numbers. The files of config/model/ set these keys."""

    name_or_path: str | None = key(
        "demo", "`demo`, a local directory, or a name on the Hugging Face hub.", scope=BY_THE_NODE
    )
    tokenizer_name_or_path: str | None = key(
        None, "Directory or hub name of the tokenizer; null: `model.name_or_path`.", scope=BY_THE_NODE
    )
    gguf_file: str | None = key(
        None, "A GGUF file to read the weights from; `model.name_or_path` may then be left out.", scope=BY_THE_NODE
    )
    archive: str | None = key(
        None,
        "Weights for policy and reference: a model directory, a checkpoint, a safetensors file or a `policy.pt`.",
        scope=BY_THE_NODE,
    )
    adapter: str | None = key(
        None,
        "A LoRA adapter, by directory or hub name, that is merged into the weights; policy and reference begin so.",
        scope=BY_THE_NODE,
    )
    quantization: str | None = key(
        None,
        "Keep the frozen weights of linear layers in 4 bits (`nf4`, as in QLoRA, arXiv 2305.14314) or 8 (`int8`), "
        "beside an adapter; null: as `model.policy_dtype` says. `nf4` needs bitsandbytes: the extra `[quant]`.",
        choices=("nf4", "int8"),
    )
    block_name: str | None = key(
        None, "Class name of the block that the model repeats, which FSDP splits one by one; null: found by itself."
    )
    policy_dtype: str = key("float32", "Type of the weights.")
    reference_dtype: str | None = key(None, "Type of the reference's weights; only `model.policy_dtype` works.")
    fsdp_policy_mp: str | None = key(
        None, "Mixed precision: the type to compute in, with weights kept in `model.policy_dtype`; see `precision`."
    )
    trust_remote_code: bool = key(False, "Run Python code that lies beside the model's weights.")


@dataclass
class ColumnSettings:
    """The names that the data has for the fields of its records, if they are others; docs/data.md lists the forms."""

    prompt: str | None = key(None, "The prompt: text, or a list of messages.", scope=BY_THE_NODE)
    chosen: str | None = key(None, "The preferred response.", scope=BY_THE_NODE)
    rejected: str | None = key(None, "The other response.", scope=BY_THE_NODE)
    messages: str | None = key(None, "A conversation: a list of messages.", scope=BY_THE_NODE)
    completion: str | None = key(None, "A response to imitate, or one with a label.", scope=BY_THE_NODE)
    label: str | None = key(None, "Whether a response is a good one.", scope=BY_THE_NODE)
    system: str | None = key(None, "The system text of a conversation.", scope=BY_THE_NODE)
    tools: str | None = key(None, "The tools that the assistant may call.", scope=BY_THE_NODE)
    responses: str | None = key(None, "Several responses to a prompt: a list.", scope=BY_THE_NODE)
    scores: str | None = key(None, "The scores of several responses: a list, the highest is best.", scope=BY_THE_NODE)
    response_a: str | None = key(None, "The first of two responses.", scope=BY_THE_NODE)
    response_b: str | None = key(None, "The second of two responses.", scope=BY_THE_NODE)
    winner: str | None = key(None, "The better one of two: `a`, `b` or `tie`.", scope=BY_THE_NODE)
    score_a: str | None = key(None, "The score of the first of two responses.", scope=BY_THE_NODE)
    score_b: str | None = key(None, "The score of the second of two responses.", scope=BY_THE_NODE)
    group: str | None = key(None, "The topic or source of a pair.", scope=BY_THE_NODE)
    conversation: str | None = key(None, "What is never divided by a split.", scope=BY_THE_NODE)


@dataclass
class LoraSettings:
    """A low-rank adapter that is trained while the model's own weights stay as they are."""

    r: int = key(0, "Rank of the adapter; 0 trains all weights.", AT_LEAST_0)
    alpha: float | None = key(
        None, "The adapter's product is scaled by alpha / r; null: 2 r.", ABOVE_0, idle=(NO_LORA,)
    )
    use_rslora: bool = key(
        False, "Scale by alpha / sqrt(r) in place of alpha / r (rsLoRA, arXiv 2312.03732).", idle=(NO_LORA,)
    )
    use_dora: bool = key(
        False,
        "Train the length of each row of a weight apart from its direction (DoRA, arXiv 2402.09353).",
        idle=(NO_LORA,),
    )
    init_lora_weights: str = key(
        "default",
        "How the adapter's first matrix is drawn: `default`, uniformly as by Kaiming He, or `gaussian`. The second "
        "begins at 0, so that the untrained policy is its reference.",
        choices=("default", "gaussian"),
        idle=(NO_LORA,),
    )
    dropout: float = key(
        0.0,
        "Probability of dropout on the adapter's input, in training steps only; draws are a function of `seed`, client "
        "and step.",
        Limits(at_least=0, below=1),
        idle=(NO_LORA,),
    )
    bias: str = key(
        "none",
        "Biases that are trained too: those of layers with an adapter (`lora_only`), or `all`.",
        choices=("none", "all", "lora_only"),
        idle=(NO_LORA,),
    )
    modules_to_save: list[str] = key(
        [],
        "Modules that are trained whole beside the adapter, and sent and saved with it, for example `[lm_head]`; "
        "weights that the model ties come apart, and a head in this list is not fused.",
        idle=(NO_LORA,),
    )
    target_modules: Any = key(
        None,
        "Linear layers that get an adapter, as a list of names; `all-linear`: all but the head; null: those peft knows "
        "for the family, or all but the head.",
        idle=(NO_LORA,),
    )


@dataclass
class FaultSettings:
    """Failures to simulate."""

    dropout_rate: float = key(
        0.0, "Probability that a client does not answer in a round.", PROBABILITY, idle=(NOT_LOCAL,)
    )
    straggler_rate: float = key(
        0.0,
        "Probability that a client is late; it is left out if by more than `client_timeout`.",
        PROBABILITY,
        idle=(at("client_timeout", None, "where nobody is too late"), NOT_LOCAL),
    )
    straggler_seconds: float = key(
        0.0,
        "Mean of the exponential distribution of that delay, in seconds; nobody really waits.",
        AT_LEAST_0,
        idle=(at("faults.straggler_rate", 0), NOT_LOCAL),
    )
    nan_rate: float = key(0.0, "Probability that a client's weights are not numbers.", PROBABILITY, idle=(NOT_LOCAL,))
    byzantine_clients: int = key(
        0, "So many clients, the first ones, send the opposite of their update.", AT_LEAST_0, idle=(NOT_LOCAL,)
    )
    byzantine_scale: float = key(
        10.0,
        "The opposite of an update is multiplied by this.",
        AT_LEAST_0,
        idle=(at("faults.byzantine_clients", 0), NOT_LOCAL),
    )


@dataclass
class PrivacySettings:
    """Differential privacy for the data of each client; docs/privacy.md says what it protects and what not."""

    kind: str = key(
        "none",
        "Who adds noise: `central_dp`: the server, which is trusted; `local_dp`: every client; `none`: nobody.",
        choices=("none", "central_dp", "local_dp"),
        idle=(NOT_PRIVATE,),
    )
    clipping_norm: float = key(
        1.0, "A client's update that is longer is shortened to this norm.", ABOVE_0, idle=(NOT_PRIVATE,)
    )
    noise_multiplier: float = key(
        1.0,
        "Standard deviation of the noise, in units of the most that one client can change.",
        ABOVE_0,
        idle=(NOT_PRIVATE,),
    )
    clipping: str = key(
        "server",
        "With `central_dp`: who clips the updates.",
        choices=("server", "client"),
        idle=(EACH_CLIPS, NOT_PRIVATE),
    )
    delta: float = key(
        1e-5,
        "Delta of (epsilon, delta); less than 1 / `client_num_in_total`.",
        Limits(above=0, below=1),
        idle=(NOT_PRIVATE,),
    )
    max_epsilon: float | None = key(
        None,
        "The run ends before a round would exceed this epsilon; null: no limit.",
        ABOVE_0,
        idle=(NOT_PRIVATE,),
    )
    seeded_noise: bool = key(
        True,
        "Draw the noise from `seed`, so that a run can be repeated; with false nobody can draw it again. "
        "`flwr run` sets it to false.",
        idle=(NOT_PRIVATE,),
    )


@dataclass
class TensorBoardSettings:
    """Curves for TensorBoard."""

    enabled: bool = key(True, "Write event files to the run's folder `tensorboard/`.")
