"""The lines that a run prints before it begins."""

import torch
from rich.console import Console

from fed.config.schema import Config
from fed.cpu.runtime import has_bfloat16
from fed.model.policy import Policy
from fed.privacy import described
from run.plan import Plan


def _how(policy: Policy, config: Config) -> str:
    """How its steps are computed, in a few words."""
    layout = policy.layout
    parts = {
        "padded": not layout.packing,
        "packed": layout.packing,
        "prompts shared": layout.packing and layout.prefix_sharing,
        "fused head": layout.fused_head,
        f"computing in {str(policy.compute_dtype).removeprefix('torch.')}": policy.compute_dtype is not None,
        "activation checkpointing": config.activation_checkpointing,
    }
    return ", ".join(part for part, applies in parts.items() if applies)


def _processes(plan: Plan) -> str:
    """What the processes of the run share, in words."""
    mesh, text = plan.mesh, f"{plan.mesh.world.count} processes"
    if mesh.groups.count > 1:
        text += f": {mesh.groups.count} clients at once"
    if mesh.own.count > 1:
        split = "each model" if plan.policy.root is not None else "each layer"
        text += f"{',' if mesh.groups.count > 1 else ':'} {split} split over {mesh.own.count}"
    return text


def _sizes(plan: Plan) -> str:
    sizes = [len(client.train) for client in plan.clients]
    return f"{sum(sizes)} pairs ({min(sizes)} to {max(sizes)} each)" if sizes else "pairs of their own"


def describe(plan: Plan, console: Console) -> None:
    """Say in a few lines what is about to run."""
    config, split, model = plan.config, plan.split, plan.policy.model
    engine = "" if config.engine == "local" else f" (engine={config.engine})"
    lines = [
        f"{config.exp_name}: {config.mode}{engine}, {plan.num_clients} clients x {config.comm_round} rounds, "
        f"{config.strategy['_target_'].rsplit('.', 1)[-1]}",
        f"model: {config.model.gguf_file or config.model.name_or_path}, {model.num_parameters() / 1e6:.1f} M "
        "parameters, "
        f"{config.model.policy_dtype} on {plan.policy.device}, {_how(plan.policy, config)}",
        f"cpu: {plan.cpu}",
        f"data: {'+'.join(config.datasets) or 'none'}; clients train on {_sizes(plan)}, server validates on "
        f"{len(plan.validation)}, test {len(plan.test)}",
    ]
    computes = (plan.policy.compute_dtype, model.dtype)
    if plan.policy.device.type == "cpu" and torch.bfloat16 in computes and not has_bfloat16():
        lines.append("this CPU has no bfloat16 instructions and emulates them: float32 is faster here")
    if plan.skipped:
        lines.append("skipped rows: " + ", ".join(f"{count} {reason}" for reason, count in plan.skipped.items()))
    if split.overlapping:
        lines.append(f"dropped {split.overlapping} training pairs whose conversation is in the test pairs")
    if config.lora.r:
        lines.append(f"lora: {sum(p.numel() for p in model.parameters() if p.requires_grad)} trained weights")
    if config.privacy.kind != "none":
        lines.append(described(config.privacy, config.comm_round))
    elif "DifferentialPrivacy" in config.strategy["_target_"]:
        lines.append("privacy: this strategy adds noise, but no epsilon is accounted for; see docs/privacy.md")
    lines += plan.policy.remarks
    if plan.mesh.world.count > 1:
        lines.append(_processes(plan))
    elif config.trainer != "BasicTrainer":
        lines.append(f"trainer={config.trainer}: one process, so the model is not split")
    if config.accuracy_on == "test":
        lines.append(
            "warning: accuracy_on=test lets weights and decay read the test pairs, so the test curve is not untouched"
        )
    console.print("\n".join(lines), highlight=False, soft_wrap=True)
