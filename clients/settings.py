"""The settings of a client's training, and of one round of it."""

from collections.abc import Callable
from dataclasses import dataclass

from fed.model.evaluation import Loss, Metrics

# Told of each optimizer step or evaluation: split ("train" or "eval"), tags with values, update count.
OnUpdate = Callable[[str, Metrics, int], None]


@dataclass(frozen=True)
class LocalSettings:
    """What every client's local update follows; the meaning of the keys of the same names."""

    loss: Loss
    beta: float = 1.0  # scales reported rewards
    supervised: bool = False  # the loss reads chosen responses only
    by_pair: bool = True  # the loss of a pair is the same whichever pairs stand beside it
    optimizer: str = "RMSprop"
    lr: float = 5e-7
    warmup_steps: int = 150
    max_grad_norm: float = 10.0
    batch_size: int = 4  # pairs per optimizer step
    max_tokens_per_step: int | None = None  # pairs per optimizer step: as many as hold no more tokens
    gradient_accumulation_steps: int = 1  # micro-batches per step
    eval_batch_size: int = 16
    local_epochs: int = 1
    local_steps: int | None = None  # optimizer steps per round, in place of local_epochs
    eval_every: int = 20_000  # pairs between evaluations on the client's own held-out pairs
    do_first_eval: bool = False
    alpha: float = 0.0
    anchor_norm: str = "token"
    decay_target: str = "lr"
    client_optimizer: str = "reset"
    reshuffle: bool = True
    seed: int = 0


@dataclass(frozen=True)
class RoundSettings:
    """What the strategy asks of this round."""

    decay: float = 1.0  # lambda_k
    proximal_mu: float = 0.0  # FedProx, arXiv 1812.06127: adds mu/2 ||theta - theta^t||^2
    pairs: int | None = None  # to train on, in place of what the settings say
