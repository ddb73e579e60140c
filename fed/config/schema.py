"""The typed schema of the command line. Defaults stand here, in the YAML files of config/, and nowhere else.

Defaults are those of the published code, except where docs/decisions.md says why not; `model=demo` brings settings of
its own.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

OPEN_GROUPS = ("loss", "partition", "strategy")  # what `_target_` names takes keys that the schema does not know
GROUPS = ("model", "privacy", *OPEN_GROUPS)
PRESETS = (
    "experiment"  # chosen from a folder of config/ like a group, but its files set other keys and no key of their own
)


@dataclass
class ModelSettings:
    """`model.*`; presets stand in config/model/."""

    name_or_path: str | None = "demo"  # demo, a local directory, or a hub name
    tokenizer_name_or_path: str | None = None  # None: name_or_path
    gguf_file: str | None = None  # a GGUF file; name_or_path may then be left out
    archive: str | None = None  # weights that seed policy, reference: HF directory, checkpoint, safetensors, policy.pt
    block_name: str | None = None  # class name of the repeated block
    policy_dtype: str = "float32"
    reference_dtype: str | None = None
    fsdp_policy_mp: str | None = None  # mixed precision: compute in this dtype, keep policy_dtype weights
    trust_remote_code: bool = False


@dataclass
class LoraSettings:
    """`lora.*`: train a low-rank adapter and leave the model's own weights as they are."""

    r: int = 0  # rank; 0: train all weights
    alpha: float | None = None  # the adapter's product is scaled by alpha / r; null: 2 r
    target_modules: list[str] | None = None  # linear layers; null: peft's for this family, else all but the head


@dataclass
class FaultSettings:
    """`faults.*`: failures to simulate."""

    dropout_rate: float = 0.0  # probability that a client does not answer in a round
    straggler_rate: float = 0.0  # probability that it is late, and left out if by more than client_timeout
    straggler_seconds: float = 0.0  # mean of the exponential distribution of that delay; nobody waits for it
    nan_rate: float = 0.0  # probability that its weights are not numbers
    byzantine_clients: int = 0  # the first so many clients send the opposite of what they learned
    byzantine_scale: float = 10.0  # times this


@dataclass
class PrivacySettings:
    """`privacy.*`: differential privacy of what clients send; what it protects, and what not: docs/privacy.md."""

    kind: str = "none"  # none | central_dp (the server, which is trusted, adds noise) | local_dp (every client does)
    clipping_norm: float = 1.0  # of a client's update; a longer one is shortened to it
    noise_multiplier: float = 1.0  # standard deviation of the noise, in units of the most that one client can change
    clipping: str = "server"  # central_dp: who clips, server | client
    delta: float = 1e-5  # of (epsilon, delta); less than 1 / client_num_in_total
    max_epsilon: float | None = None  # the run ends before a round would exceed it; null: no limit
    # Noise follows from `seed`, so runs can be repeated; false, as `flwr run` has it: nobody can draw it again.
    seeded_noise: bool = True


@dataclass
class TensorBoardSettings:
    """`tensorboard.*`."""

    enabled: bool = True


@dataclass
class Config:
    """Every key of the command line. `model`, `privacy`, `loss`, `partition`, `strategy`: files of config/<group>/."""

    model: ModelSettings = field(default_factory=ModelSettings)
    loss: dict[str, Any] = field(default_factory=dict)
    partition: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    lora: LoraSettings = field(default_factory=LoraSettings)

    # The run
    exp_name: str = "fedpo"
    engine: str = "local"  # local (this program) | ray (Flower's simulation); what `flwr run` starts is "flower"
    mode: str = "federated"  # federated | centralized (one client holds all pairs) | local (every client alone)
    seed: int = 0
    deterministic: bool = False  # refuse operations whose result may vary from run to run
    debug: bool = False  # keep metrics, save no model
    resume: str | None = None  # folder of a run that goes on where it was cut off; latest: the newest one
    checkpoint_every: int = 1  # rounds between checkpoints; 0: none, and then a run that is cut off begins again
    checkpoint_keep: int = 2  # checkpoints kept, the newest ones; the best one stays besides
    checkpoint_within_round: bool = (
        True  # with checkpoint_every=1: a round's clients that are done need not train again
    )
    output_dir: str = "data"  # runs go to output_dir/exp_name/date_time
    cache_dir: str = ".cache"  # reference log-probs, token ids of clients elsewhere, downloaded data sets
    num_threads: int | None = None  # CPU threads; null: torch's choice, but no more than the process may use
    device: str | None = None  # cpu, cuda, ...; null: cuda if there is one
    tensorboard: TensorBoardSettings = field(default_factory=TensorBoardSettings)

    # How a step is computed; for the same pairs none of these but precision changes its result by more than rounding
    precision: str | None = None  # float32 | bfloat16 (autocast; weights stay as they are); null: model.fsdp_policy_mp
    packing: bool = True  # sequences end to end, no padding
    prefix_sharing: bool = True  # with packing: a pair's prompt once for both responses
    fused_head: bool = True  # logits in blocks that become their own gradient
    activation_checkpointing: bool = False  # less memory, one more forward pass
    cpu_matmul: str = "auto"  # auto (measured once) | mkl | onednn: what multiplies float32 matrices on a CPU
    keep_freed_memory: bool = True  # on Linux: a step's memory stays with the process, which takes it again at once

    # Data
    datasets: list[str] = field(default_factory=lambda: ["demo"])
    data_dir: str | None = None
    test_fraction: float | None = None  # of data without a test split of its own; null: 0.1 (se: 0.01)
    n_train_examples: int | None = None  # training pairs used at most, drawn by seed; null: all
    use_small_dataset: bool = False  # a seeded tenth of the training pairs
    client_data: list[str] = field(default_factory=list)  # partition=own: a JSON-lines file for each client
    data_evenly_distributed: bool = True  # partition=contiguous: equal blocks, or random cuts
    server_fraction: float = 0.05  # of the training pairs: the server's validation pairs
    client_eval_fraction: float = 0.05  # of each client's pairs: its own held-out pairs
    n_eval_examples: int = 256  # validation pairs used at most
    n_test_examples: int = 512  # test pairs used at most
    max_length: int = 512  # tokens of prompt and response
    max_prompt_length: int = 256

    # The federation
    client_num_in_total: int = 10
    clients_per_round: int | None = None  # null: all
    comm_round: int = 100
    frequency_of_test: int = 1  # rounds between server evaluations
    sample_during_eval: bool = False  # draw responses to test prompts at each of them, from policy and reference
    n_eval_model_samples: int = 16  # prompts, the first of the test pairs
    temp: float = 0.1  # FeDPO: inverse temperature of the accuracy softmax
    decay_rate: float = 0.995  # FeDPO: of a client that did not beat the server
    decay_target: str = "lr"  # lr | loss
    weighting: str = "accuracy"  # accuracy | samples | accuracy_times_samples
    accuracy_on: str = "server"  # server | client | test: pairs that a client's result is scored on
    alpha: float | None = None  # weight of the anchor term; null: 1 with strategy=fedpo, 0 with others
    anchor_norm: str = "token"  # token | sum
    min_fit_clients: int = 1  # a round in which fewer clients succeed ends the run
    client_timeout: float | None = (
        None  # seconds of training (SuperNodes: from sending) until a client is left out; null: none
    )
    faults: FaultSettings = field(default_factory=FaultSettings)
    wire_dtype: str = "float32"  # float32 | bfloat16: weights travel as differences, with half the bytes
    client_mods: list[str] = field(default_factory=list)  # dotted paths of Flower mods

    # Local training
    trainer: str = (
        "BasicTrainer"  # FSDPTrainer: a client's model split over processes | TensorParallelTrainer: its layers
    )
    trainer_processes: int | None = None  # processes of the run; null: one per GPU, or clients_in_parallel
    clients_in_parallel: int = 1  # clients that train at once, each in processes of its own
    cpu_offload: bool = False  # FSDPTrainer on GPUs: weights, gradients, optimizer state in main memory between uses
    process_timeout: float = 600.0  # seconds a process, or clients elsewhere, may be waited for before the run ends
    batch_size: int = 4  # pairs per optimizer step
    eval_batch_size: int = 16
    max_tokens_per_step: int | None = None  # instead: as many pairs as hold no more tokens in their layout
    gradient_accumulation_steps: int = 2
    local_epochs: int = 1  # passes over a client's pairs per round
    local_steps: int | None = None  # optimizer steps per round instead
    optimizer: str = "RMSprop"  # RMSprop | AdamW | Adam | SGD
    lr: float = 5e-7
    warmup_steps: int = 150
    max_grad_norm: float = 10.0
    client_optimizer: str = "reset"  # reset | persist: optimizer state and warm-up across rounds
    reshuffle: bool = True  # false: every round replays the same order from its start, as published
    eval_every: int = 20_000  # pairs between a client's evaluations on its held-out pairs
    do_first_eval: bool = False  # also before its first step of a round


def register() -> None:
    """Make the schema and the functions that YAML files call known to Hydra."""
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("either", lambda value, default: default if value is None else value, replace=True)
    OmegaConf.register_new_resolver("fraction", lambda part, whole: 1.0 if part is None else part / whole, replace=True)
    OmegaConf.register_new_resolver("scratch", lambda: str(scratch()), replace=True)


def scratch() -> Path:
    """Where Hydra writes its own record of a `--multirun`; `main` removes it."""
    return Path(tempfile.gettempdir()) / f"fedpo-multirun-{os.getpid()}"


def is_own(config: Config) -> bool:
    """Whether clients bring data of their own, and the data sets are the server's alone."""
    return bool(config.partition["_target_"] == "fed.data.partition.OwnData")


def keys(schema: type = Config, prefix: str = "") -> list[str]:
    """All dotted keys of the schema."""
    found: list[str] = []
    for item in fields(schema):
        nested = item.type if is_dataclass(item.type) else None
        found.append(prefix + item.name)
        if nested is not None:
            found += keys(nested, f"{prefix}{item.name}.")  # type: ignore[arg-type]
    return found


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each setting with its dotted key."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
