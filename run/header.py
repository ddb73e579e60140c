"""The lines that a run prints before it starts."""

from collections.abc import Iterator

import torch
from rich.console import Console

from fed.config.schema import Config
from fed.cpu.runtime import has_bfloat16
from fed.model.policy import Policy
from fed.privacy import described
from run.plan import Plan


def describe(plan: Plan, console: Console) -> None:
    """Print in a few lines what is about to run."""
    lines = [*_settings(plan), *_data_remarks(plan), *_model_remarks(plan)]
    if plan.config.accuracy_on == "test":
        lines.append(
            "warning: accuracy_on=test uses the test pairs for weights and decay, so the test curve is not held out"
        )
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def _settings(plan: Plan) -> Iterator[str]:
    config, pairs, model = plan.config, plan.pairs, plan.policy.model
    engine = "" if config.engine == "local" else f" (engine={config.engine})"
    yield (
        f"{config.exp_name}: {config.mode}{engine}, {plan.num_clients} clients x {config.comm_round} rounds, "
        f"{config.strategy['_target_'].rsplit('.', 1)[-1]}"
    )
    yield (
        f"model: {config.model.gguf_file or config.model.name_or_path}, {model.num_parameters() / 1e6:.1f} M "
        f"parameters, {config.model.policy_dtype} on {plan.policy.device}, {_computation(plan.policy, config)}"
    )
    yield f"cpu: {plan.machine.cpu}"
    yield (
        f"data: {'+'.join(config.datasets) or 'none'}; clients train on {_sizes(plan)}, server validates on "
        f"{len(pairs.validation)}, test {len(pairs.test)}"
    )
    computes = (plan.policy.compute_dtype, model.dtype)
    if plan.policy.device.type == "cpu" and torch.bfloat16 in computes and not has_bfloat16():
        yield "this CPU has no bfloat16 instructions and emulates them: float32 is faster here"


def _data_remarks(plan: Plan) -> Iterator[str]:
    pairs = plan.pairs
    if pairs.skipped:
        yield "skipped rows: " + ", ".join(f"{count} {reason}" for reason, count in pairs.skipped.items())
    if pairs.split.overlapping:
        yield f"dropped {pairs.split.overlapping} training pairs whose conversation is in the test pairs"


def _model_remarks(plan: Plan) -> Iterator[str]:
    config = plan.config
    if config.lora.r:
        yield f"lora: {sum(p.numel() for p in plan.policy.model.parameters() if p.requires_grad)} trained weights"
    if config.privacy.kind != "none":
        yield described(config.privacy, config.comm_round)
    elif "DifferentialPrivacy" in config.strategy["_target_"]:
        yield "privacy: this strategy adds noise, but no epsilon is accounted for; see docs/privacy.md"
    yield from plan.policy.remarks
    if plan.machine.mesh.world.count > 1:
        yield _processes(plan)
    elif config.trainer != "BasicTrainer":
        yield f"trainer={config.trainer}: one process, so the model is not split"


def _computation(policy: Policy, config: Config) -> str:
    """Describe in a few words how the model's steps are computed."""
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
    """Describe what the processes of the run share."""
    mesh = plan.machine.mesh
    text = f"{mesh.world.count} processes"
    if mesh.groups.count > 1:
        text += f": {mesh.groups.count} clients at once"
    if mesh.own.count > 1:
        split = "each model" if plan.policy.root is not None else "each layer"
        text += f"{',' if mesh.groups.count > 1 else ':'} {split} split over {mesh.own.count}"
    return text


def _sizes(plan: Plan) -> str:
    sizes = [len(client.train) for client in plan.pairs.clients]
    return f"{sum(sizes)} pairs ({min(sizes)} to {max(sizes)} each)" if sizes else "pairs of their own"
