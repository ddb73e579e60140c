"""Keys of the clients' training."""

from dataclasses import dataclass

from fed.config.conditions import ABOVE_0, AT_LEAST_0, AT_LEAST_1, NO_FEDERATION, NO_HELD_OUT, NOT_LOCAL, PROBABILITY
from fed.config.meaning import Scope, at, key, unless

STATES_PER_WEIGHT = {"RMSprop": 1, "AdamW": 2, "Adam": 2, "SGD": 0}  # numbers that an optimizer keeps


@dataclass
class TrainingKeys:
    """Local training."""

    trainer: str = key(
        "BasicTrainer",
        "`FSDPTrainer` splits a client's model over processes, `TensorParallelTrainer` splits its layers.",
        choices=("BasicTrainer", "FSDPTrainer", "TensorParallelTrainer"),
        idle=(at("engine", "flower", "where each client trains in one process"),),
    )
    trainer_processes: int | None = key(
        None, "Processes of the run; null: one per GPU, or `clients_in_parallel`.", AT_LEAST_1
    )
    clients_in_parallel: int = key(
        1,
        "Clients that train at once, each in processes of its own.",
        AT_LEAST_1,
        idle=(at("engine", "flower", "where nodes train by themselves"), *NO_FEDERATION),
    )
    cpu_offload: bool = key(
        False,
        "With `FSDPTrainer` on GPUs: keep weights, gradients and optimizer state in main memory between uses.",
        idle=(unless("trainer", "FSDPTrainer", "a trainer other than FSDPTrainer"),),
    )
    process_timeout: float = key(
        600.0,
        "Seconds to wait for a process, or for remote clients, before the run ends.",
        ABOVE_0,
        scope=Scope("upkeep", resume="free"),
    )
    batch_size: int = key(
        4,
        "Pairs per optimizer step.",
        AT_LEAST_1,
        idle=(unless("max_tokens_per_step", None, "max_tokens_per_step, which counts tokens"),),
    )
    eval_batch_size: int = key(16, "Pairs per step of an evaluation.", AT_LEAST_1, scope=Scope(decider="node"))
    max_tokens_per_step: int | None = key(
        None, "In place of `batch_size`: as many pairs as hold no more tokens in their layout.", AT_LEAST_1
    )
    gradient_accumulation_steps: int = key(2, "Parts of an optimizer step, computed one by one.", AT_LEAST_1)
    local_epochs: int = key(1, "Passes over a client's pairs per round.", AT_LEAST_1)
    local_steps: int | None = key(None, "Optimizer steps per round, in place of `local_epochs`.", AT_LEAST_1)
    optimizer: str = key("RMSprop", "Optimizer of the clients.", choices=tuple(STATES_PER_WEIGHT))
    lr: float = key(5e-7, "Learning rate.", ABOVE_0)
    warmup_steps: int = key(
        150,
        "Optimizer steps in which the learning rate rises from 0.",
        AT_LEAST_0,
        idle=(unless("warmup_ratio", None, "warmup_ratio, which gives a share of the steps"),),
    )
    warmup_ratio: float | None = key(
        None, "In place of `warmup_steps`: the share of a round's steps in which the learning rate rises.", PROBABILITY
    )
    warmup_restarts: bool = key(
        True,
        "The learning rate rises anew in each round, as published; false: only in a client's first steps of the run.",
        idle=(at("client_optimizer", "persist", "which warms up once"),),
    )
    max_grad_norm: float = key(10.0, "A gradient that is longer is shortened to this norm.", ABOVE_0)
    client_optimizer: str = key(
        "reset",
        "`persist`: a client keeps optimizer state and warm-up across rounds.",
        choices=("reset", "persist"),
    )
    reshuffle: bool = key(True, "Shuffle a client's pairs anew for each round; false: replay one order, as published.")
    eval_every: int = key(
        20_000,
        "Pairs between a client's evaluations on its held-out pairs.",
        AT_LEAST_1,
        idle=(NO_HELD_OUT, NOT_LOCAL),
    )
    do_first_eval: bool = key(
        False, "Evaluate a client before its first step of a round too.", idle=(NO_HELD_OUT, NOT_LOCAL)
    )
