"""Every way to take one DPO step that `make bench` times: those of others, and this project's, part by part."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from clients.settings import LocalSettings, RoundSettings
from clients.step import Step as ClientStep
from fed.cpu.onednn import use_onednn, use_torch
from fed.data.collate import PADDED, Layout
from fed.data.examples import Example
from fed.model.attention import NAME as PACKED_ATTENTION
from fed.model.policy import Policy
from losses.preference import dpo
from scripts.benchmark.baselines import Models, Step, Trl, checkpointing, fedpo_step, plain_step, restored, trl_version

FLOAT32, BFLOAT16 = "float32", "bfloat16"
OURS = {FLOAT32: "ours_float32", BFLOAT16: "ours_bfloat16"}
# TRL checkpoints activations by default. It is faster without, so its other rows go without, to be fair. `padding_free`
# would not be faster: TRL 1.16 warns that it is unavailable, and pads.
TRL_FASTER = {"gradient_checkpointing": False}
TRL_BEST = {**TRL_FASTER, "precompute_ref_log_probs": True}
HEAD = Layout(packing=False, prefix_sharing=False, fused_head=True)
PACKED = Layout(packing=True, prefix_sharing=False, fused_head=False)
SHARED = Layout(packing=True, prefix_sharing=True, fused_head=False)
ALL = Layout(packing=True, prefix_sharing=True, fused_head=True)


@dataclass(frozen=True)
class Setting:
    """Everything that the steps are built from."""

    models: Models
    tokenizer: Any
    batch: int  # pairs
    folder: str  # where trainers may write
    library: str | None  # for float32 matrices, as the project chooses on this machine: mkl or onednn


@dataclass(frozen=True)
class Variant:
    """One way to take the step: a row of the table."""

    name: str
    meaning: str
    build: Callable[[Setting], Callable[[], AbstractContextManager[Step]]]  # sets the shared model up
    precision: str = FLOAT32
    reference: bool = False  # runs a reference model
    server: bool = False  # runs a copy of the server's model
    keeps_freed_memory: bool = False


def others_step(step: Callable[[Models, Sequence[Example]], float]) -> Any:
    """Return a builder of a step that is written from its definition."""
    return lambda setting: lambda: nullcontext(functools.partial(step, setting.models))


def trl_step(**configuration: Any) -> Any:
    """Return a builder of TRL's step, with DPOConfig's defaults except for `configuration`."""
    return lambda s: Trl(s.models, s.tokenizer, s.folder, s.batch, **configuration).prepared


def our_step(
    layout: Layout, dtype: torch.dtype | None = None, library: str | None = None, recompute: bool = False
) -> Any:
    """Return a builder of this project's step, in that layout, precision, library and with activations recomputed."""
    return lambda s: functools.partial(project_step, s, layout, dtype, library or s.library, recompute)


@contextmanager
def project_step(
    setting: Setting, layout: Layout, dtype: torch.dtype | None, library: str | None, recompute: bool = False
) -> Iterator[Step]:
    """Yield the step of a client's local update; meanwhile the shared model is as this project loads it."""
    models = setting.models
    policy = Policy(models.policy, setting.tokenizer, models.device, dtype, layout=layout)
    step = ClientStep(policy, _local_settings(models, setting.batch))
    with restored(models.policy):
        if layout.packing:
            models.policy.config._attn_implementation = PACKED_ATTENTION
        if library == "onednn":
            use_onednn(models.policy)
        if recompute:
            checkpointing(models.policy, "enable")
            models.policy.train()
        try:
            yield lambda pairs: step.take(models.optimizer, pairs, RoundSettings(), {})["loss"]
        finally:
            use_torch(models.policy)


def _local_settings(models: Models, batch_size: int) -> LocalSettings:
    """Return the settings of one step over a whole batch; those of rounds and evaluations are not read."""
    return LocalSettings(
        loss=functools.partial(dpo, beta=models.beta),
        beta=models.beta,
        supervised=False,
        by_pair=True,
        optimizer="RMSprop",
        lr=5e-7,
        warmup_steps=0,
        warmup_ratio=None,
        warmup_restarts=True,
        max_grad_norm=models.max_grad_norm,
        batch_size=batch_size,
        max_tokens_per_step=None,
        gradient_accumulation_steps=1,
        eval_batch_size=batch_size,
        local_epochs=1,
        local_steps=None,
        eval_every=1,
        do_first_eval=False,
        alpha=0.0,
        anchor_norm="token",
        decay_target="lr",
        client_optimizer="reset",
        reshuffle=True,
        seed=0,
    )


VARIANTS = (
    Variant("plain", "the original DPO code", others_step(plain_step), reference=True),
    Variant("fedpo_original", "FeDPO as published", others_step(fedpo_step), reference=True, server=True),
    Variant("trl_default", "TRL as it comes: bfloat16, checkpointing", trl_step(), BFLOAT16, reference=True),
    Variant("trl_best", "TRL, bfloat16, reference precomputed", trl_step(**TRL_BEST), BFLOAT16),
    Variant("trl_float32", "TRL, float32", trl_step(bf16=False, **TRL_FASTER), reference=True),
    Variant("trl_best_float32", "TRL, float32, reference precomputed", trl_step(bf16=False, **TRL_BEST)),
    Variant("ours_reference", "reference log-probs as a column", our_step(PADDED), keeps_freed_memory=True),
    Variant("ours_fused_head", "+ fused head", our_step(HEAD), keeps_freed_memory=True),
    Variant("ours_packing", "+ packing", our_step(PACKED), keeps_freed_memory=True),
    Variant("ours_prefix_sharing", "+ packing, prompts shared", our_step(SHARED), keeps_freed_memory=True),
    Variant("ours_recompute", "all, activations recomputed", our_step(ALL, recompute=True), keeps_freed_memory=True),
    Variant(
        "ours_recompute_bfloat16",
        "all, activations recomputed, bfloat16",
        our_step(ALL, torch.bfloat16, recompute=True),
        BFLOAT16,
        keeps_freed_memory=True,
    ),
    Variant("ours_mkl", "all, but matrices by MKL", our_step(ALL, library="mkl"), keeps_freed_memory=True),
    Variant(OURS[FLOAT32], "all together", our_step(ALL), keeps_freed_memory=True),
    Variant(OURS[BFLOAT16], "all together, bfloat16", our_step(ALL, torch.bfloat16), BFLOAT16, keeps_freed_memory=True),
)


def choose(names: Sequence[str]) -> list[Variant]:
    """Return the named variants and those that all are compared with; `all` names every variant that can run.

    Raises:
        ValueError: If there is no such variant, or it needs TRL and there is none.
    """
    known = {variant.name: variant for variant in VARIANTS}
    every = list(names) == ["all"]
    wanted = list(known) if every else names
    unknown = [name for name in wanted if name not in known]
    if unknown:
        expected = f"expected all or some of {', '.join(known)}"
        raise ValueError(f"variants={','.join(names)}: there is no {', '.join(unknown)}; {expected}")
    able = [name for name in known if trl_version() is not None or not name.startswith("trl_")]
    unable = [name for name in wanted if name not in able]
    if unable and not every:
        raise ValueError(f"{', '.join(unable)} needs TRL; install it: pip install -c constraints.txt -e '.[bench]'")
    return [known[name] for name in able if name in {*wanted, *OURS.values()}]
