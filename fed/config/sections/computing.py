"""Keys that say how a step is computed."""

from dataclasses import dataclass

from fed.config.conditions import on_a_device
from fed.config.meaning import Scope, at, key


@dataclass
class ComputingKeys:
    """The computation of a step.

    For the same pairs only `precision` changes the result by more than rounding; with `lora.dropout` so does the layout
    (`packing`, `prefix_sharing`), which the draws follow.
    """

    precision: str | None = key(
        None,
        "Type to compute in; weights keep theirs. null: `model.fsdp_policy_mp`.",
        choices=("float32", "bfloat16"),
    )
    packing: bool = key(True, "Lay sequences end to end, without padding.")
    prefix_sharing: bool = key(
        True, "Compute the prompt of a pair once for both responses.", idle=(at("packing", False),)
    )
    fused_head: bool = key(True, "Make logits in blocks that are turned into their own gradient.")
    activation_checkpointing: bool = key(False, "Use less memory at the price of one more forward pass.")
    cpu_matmul: str = key(
        "auto",
        "Library that multiplies float32 matrices on a CPU; `auto` measures both once.",
        choices=("auto", "mkl", "onednn"),
        idle=(on_a_device(),),
        scope=Scope("upkeep", "node"),
    )
    keep_freed_memory: bool = key(
        True, "On Linux: keep a step's memory for the next step.", scope=Scope(decider="node")
    )
