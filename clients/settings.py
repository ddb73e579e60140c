"""The settings of a client's training, and of one round of it."""

from dataclasses import dataclass

from fed.model.evaluation import Loss


@dataclass(frozen=True)
class LocalSettings:
    """The settings of every client's local update; fields named like a key of `fed.config.schema.Config` mean the same.

    There are no defaults here: those stand in the schema.
    """

    loss: Loss
    beta: float  # scales reported rewards
    supervised: bool  # the loss reads chosen responses only
    by_pair: bool  # the loss of a pair is the same whichever pairs stand beside it
    optimizer: str
    lr: float
    warmup_steps: int
    warmup_ratio: float | None
    warmup_restarts: bool
    max_grad_norm: float
    batch_size: int  # pairs per optimizer step
    max_tokens_per_step: int | None  # if given, a step takes as many pairs as hold no more tokens
    gradient_accumulation_steps: int  # micro-batches per step
    eval_batch_size: int
    local_epochs: int
    local_steps: int | None  # optimizer steps per round, in place of local_epochs
    eval_every: int  # pairs between evaluations on the client's own held-out pairs
    do_first_eval: bool
    alpha: float
    anchor_norm: str
    decay_target: str
    client_optimizer: str
    reshuffle: bool
    seed: int


@dataclass(frozen=True)
class RoundSettings:
    """The requests of the strategy for one round."""

    decay: float = 1.0  # lambda_k
    proximal_mu: float = 0.0  # FedProx, arXiv 1812.06127: adds mu/2 ||theta - theta^t||^2
    lr: float | None = None  # in place of the settings' learning rate
    pairs: int | None = None  # pairs to train on, in place of local_epochs and local_steps
