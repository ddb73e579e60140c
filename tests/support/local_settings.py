"""The settings of a client's training in tests."""

from typing import Any

from clients.settings import LocalSettings


def local_settings(**changes: Any) -> LocalSettings:
    """Return settings of a plain local update with some of them changed; `loss` must be among the changes."""
    plain: dict[str, Any] = {
        "beta": 0.5,
        "supervised": False,
        "by_pair": True,
        "optimizer": "RMSprop",
        "lr": 5e-7,
        "warmup_steps": 150,
        "warmup_ratio": None,
        "warmup_restarts": True,
        "max_grad_norm": 10.0,
        "batch_size": 4,
        "max_tokens_per_step": None,
        "gradient_accumulation_steps": 1,
        "eval_batch_size": 16,
        "local_epochs": 1,
        "local_steps": None,
        "eval_every": 20_000,
        "do_first_eval": False,
        "alpha": 0.0,
        "anchor_norm": "token",
        "decay_target": "lr",
        "client_optimizer": "reset",
        "reshuffle": True,
        "seed": 0,
    }
    return LocalSettings(**plain | changes)
