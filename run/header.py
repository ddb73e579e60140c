"""The lines that a run prints before it starts."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from clients.schedule import Schedule, warmed_up
from clients.settings import RoundSettings
from clients.state import ClientState
from fed.config.choices import chosen
from fed.config.explain import counted
from fed.config.schema import Config, flat
from fed.cpu.runtime import has_bfloat16
from fed.data.rows import Chat, Preference, are_few_conversations, in_conversations, unknown_roles
from fed.model.lora import named_base
from fed.model.policy import Policy
from fed.model.precision import vanishing
from fed.model.quantization import weight_count
from fed.privacy import described
from run.local import budget
from run.plan import Pairs, Plan, local_settings
from server.traits import asks, constant_decay

MANY = 0.5  # of the weights
MOST_NAMED = 10  # fields that nothing reads; a damaged file may have one in every line
LOOKED_AT = 1000  # rows
ENOUGH = 30  # validation pairs; with fewer, an accuracy of one half has a standard error above 0.09


def describe(plan: Plan, console: Console) -> None:
    """Print in a few lines what is about to run."""
    lines = [*_settings(plan), *_data_remarks(plan), *_model_remarks(plan)]
    if plan.config.accuracy_on == "test":
        lines.append(
            "warning: accuracy_on=test uses the test pairs for weights and decay, so the test curve is not held out"
        )
    console.print("\n".join(lines))


def _settings(plan: Plan) -> Iterator[str]:
    config, pairs, model = plan.config, plan.pairs, plan.policy.model
    engine = "" if config.engine == "local" else f" (engine={config.engine})"
    size = f"{counted(plan.num_clients, 'client')} x {counted(config.comm_round, 'round')}"
    strategy = f", {_strategy(config)}" if config.mode == "federated" else ""
    yield f"{config.exp_name}: {config.mode}{engine}, {size}{strategy}"
    yield (
        f"model: {config.model.gguf_file or config.model.name_or_path}, {weight_count(model) / 1e6:.1f} M "
        f"parameters, {config.model.policy_dtype} on {plan.policy.device}, {_computation(plan.policy, config)}"
    )
    yield f"cpu: {plan.machine.cpu}"
    evaluated = f"server validates on {len(pairs.validation)}, test {len(pairs.test)}"
    if plan.judge is not None and not any(client.train for client in pairs.clients):
        evaluated = f"test prompts {len(pairs.rows.split.test)}"
    yield f"data: {'+'.join(config.datasets) or 'none'}; {_sizes(plan)}, {evaluated}"
    if plan.judge is not None:
        yield _online(config, plan.judge.name)
    elif pairs.clients:
        yield _learning_rate(plan)
    computes = (plan.policy.compute_dtype, model.dtype)
    if plan.policy.device.type == "cpu" and torch.bfloat16 in computes and not has_bfloat16():
        yield "this CPU has no bfloat16 instructions and emulates them: float32 is faster here"


def _online(config: Config, judge: str) -> str:
    """Describe the pairs that clients make themselves."""
    online = config.online
    often = "in every round" if online.every == 1 else f"in every {online.every}. round"
    text = f"online: a client draws {online.n} responses to {online.prompts or 'all'} of its prompts {often}"
    mixed = f", and trains on {online.mix:.0%} pairs of the data beside the fresh ones" if online.mix else ""
    return f"{text}, judged by {judge}{mixed}; reference {online.reference}"


def _strategy(config: Config) -> str:
    """Return the strategy as it is chosen on the command line, or the name of its class."""
    return chosen("strategy", dict(flat(asdict(config)))) or str(config.strategy["_target_"]).rpartition(".")[2]


def _learning_rate(plan: Plan) -> str:
    """Describe how many steps clients take and which learning rate they reach; say so if it is not `lr`."""
    config, settings = plan.config, local_settings(plan)
    schedule, train = Schedule(settings, plan.policy.layout), [client.train for client in plan.pairs.clients]
    sizes = [len(examples) for examples in train]
    ends = sorted({sizes.index(min(sizes)), sizes.index(max(sizes))}, key=lambda client_id: sizes[client_id])
    this_round = RoundSettings(pairs=next(iter(budget(plan, schedule)), None))
    steps = [len(schedule.steps(train[client_id], client_id, ClientState(), this_round)) for client_id in ends]
    rounds = config.comm_round * plan.clients_per_round // plan.num_clients
    decay = constant_decay(plan.make_strategy()) if config.decay_target == "lr" else 1.0
    whole = config.lr * decay
    reached = [whole * warmed_up(settings, n, n - 1, n * max(rounds, 1) - 1) for n in steps]
    text = f"steps: {_span(steps)} per client and round, learning rate up to {_span(reached)}"
    decayed = f"lr={config.lr:g}" if decay == 1 else f"lr={config.lr:g} times decay_rate={decay:g}"
    if min(reached) == whole:
        return text if decay == 1 else f"{text}: {decayed}"
    return f"warning: {text} of {decayed}: warm-up takes the rest; {_less_warm_up(config)}"


def _less_warm_up(config: Config) -> str:
    """Say which settings, of those that are not in force, let clients reach the learning rate."""
    if config.warmup_ratio is None:
        ways = [f"lower warmup_steps={config.warmup_steps}", "give warmup_ratio=0.1"]
    else:
        ways = [f"lower warmup_ratio={config.warmup_ratio:g}"]
    if config.warmup_restarts and config.client_optimizer == "reset":
        ways.append("give warmup_restarts=false, which counts over rounds")
    return ", or ".join(ways)


def _span(values: Sequence[float]) -> str:
    """Return "3" or "3 to 5"."""
    return " to ".join(dict.fromkeys(f"{value:.3g}" for value in values))


def _data_remarks(plan: Plan) -> Iterator[str]:
    pairs, split = plan.pairs, plan.pairs.rows.split
    if len(pairs.validation) < ENOUGH and _scores_decide(plan):
        yield (
            f"warning: the server scores clients on {len(pairs.validation)} pairs, so the accuracies that decide "
            f"weights and decay have a standard error of up to {0.5 / math.sqrt(len(pairs.validation)):.2f}"
        )
    rows = [*split.pool, *split.validation, *split.test]
    yield from pairs.rows.remarks
    yield from _forms(plan, rows)
    yield from _losses(pairs)
    if rows and are_few_conversations(rows):
        yield (
            f"warning: {in_conversations(rows)} by their first human turns, and no conversation is divided; if these "
            "are more, tell them apart by a field conversation or by holdout_by=COLUMN"
        )
    if split.overlapping:
        yield f"dropped {split.overlapping} pairs whose conversation is in the test or validation pairs"
    if split.shared:
        yield (
            f"warning: the conversations of {split.shared} of the clients' own pairs are also in the test or "
            "validation pairs, so clients train on what they are tested on; give datasets other pairs"
        )
    if split.unused:
        yield (
            f"not used: the {split.unused} training pairs of datasets; clients have files of their own, and the "
            "validation files are the server's"
        )


def _forms(plan: Plan, rows: Sequence[Preference]) -> Iterator[str]:
    """Describe what the records were taken for, and how they become text."""
    config = plan.config
    forms, has_template = plan.pairs.rows.forms, bool(getattr(plan.policy.tokenizer, "chat_template", None))
    if forms:
        yield f"form: {', '.join(forms)}; {_as_text(plan.config, rows)}"
    elif any(isinstance(row.prompt, Chat) for row in rows):
        yield f"form: {_as_text(plan.config, rows)}"
    if has_template and rows and not plan.config.text_as_chat and all(isinstance(row.prompt, str) for row in rows):
        yield (
            "prompts are text and are trained as they are written, but this model has a chat template: "
            "text_as_chat=true makes conversations of them"
        )
    if roles := unknown_roles(rows):
        yield f"roles that most chat templates do not know: {_names(roles)}; docs/data.md lists those that are known"
    is_named = any(key.partition(".")[0] == "model" for key in plan.given)
    if config.model.name_or_path == "demo" and "files" in config.datasets and not is_named:
        yield "warning: no model is given, so the demo's toy is trained; model=smollm2-135m is a real one"
    if found := _spelt(plan, rows):
        yield f"the text spells special tokens such as {found}, which stay text; docs/data.md says how to give chats"
    if names := sorted({name for row in rows for name in row.extra.names}):
        yield f"columns beside the pairs: {_names(names)}"
    if unread := plan.pairs.rows.unread:
        yield f"not read from the data: {_names(unread)}"


def _spelt(plan: Plan, rows: Sequence[Preference]) -> str | None:
    """Return a special token that text prompts spell, as those do which a chat template has already written."""
    special = getattr(plan.policy.tokenizer, "all_special_tokens", [])
    texts = [row.prompt for row in rows[:LOOKED_AT] if isinstance(row.prompt, str)]
    return next((token for token in special if any(token in text for text in texts)), None)


def _as_text(config: Config, rows: Sequence[Preference]) -> str:
    if not config.text_as_chat and not any(isinstance(row.prompt, Chat) for row in rows):
        return "text as it is written"
    if config.chat_template == "none":
        return "conversations as text with HH's markers"
    return f"conversations through the chat template {config.chat_template or 'of the tokenizer'}"


def _names(names: Sequence[str]) -> str:
    shown = [name if name and name.isprintable() else repr(name) for name in names[:MOST_NAMED]]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(shown) + more


def _losses(pairs: Pairs) -> Iterator[str]:
    """Describe what was left out of the data, and what was cut."""
    cuts, skipped = pairs.cuts, pairs.rows.skipped
    if skipped:
        yield "skipped rows: " + ", ".join(f"{count} {reason}" for reason, count in skipped.items())
    if cuts.dropped:
        yield "dropped pairs: " + ", ".join(f"{count} {reason}" for reason, count in cuts.dropped.items())
    if cuts.pairs:
        yield f"cut to max_length: {counted(cuts.pairs, 'pair')}, which lost {cuts.tokens:,} tokens"
    for remark, count in cuts.remarks.items():
        yield f"{remark} ({counted(count, 'pair')})"


def _scores_decide(plan: Plan) -> bool:
    """Return True if the accuracy of clients on the server's pairs decides their weights or their decay."""
    config, strategy = plan.config, plan.make_strategy()
    decides = asks(strategy, "reads_accuracy") or asks(strategy, "needs_server_accuracy")
    return decides and config.mode == "federated" and config.accuracy_on == "server"


def _model_remarks(plan: Plan) -> Iterator[str]:
    config = plan.config
    if config.lora.r:
        trained = sum(p.numel() for p in plan.policy.model.parameters() if p.requires_grad)
        packed = {"nf4": "4", "int8": "8", None: None}[config.model.quantization]
        below = f"; the weights below them are kept in {packed} bits ({config.model.quantization})" if packed else ""
        yield f"lora: {trained} trained weights{below}"
    if config.model.adapter is not None:
        yield from _adapter(config)
    if config.privacy.kind != "none":
        yield described(config.privacy, config.comm_round)
    elif "DifferentialPrivacy" in config.strategy["_target_"]:
        yield "privacy: this strategy adds noise, but no epsilon is accounted for; see docs/privacy.md"
    yield from _vanishing_updates(plan)
    yield from plan.policy.remarks
    if plan.machine.mesh.world.count > 1:
        yield _processes(plan)
    elif config.trainer != "BasicTrainer":
        yield f"trainer={config.trainer}: one process, so the model is not split"


def _adapter(config: Config) -> Iterator[str]:
    """Describe what becomes of the adapter with which the run begins."""
    assert config.model.adapter is not None
    more = "a new adapter is trained" if config.lora.r else "all weights are trained; lora.r=8 would train an adapter"
    yield f"model.adapter={config.model.adapter} is part of the weights of policy and reference, and {more}"
    base, name = named_base(config.model.adapter), config.model.name_or_path
    if base is not None and name is not None and Path(base).expanduser().resolve() != Path(name).expanduser().resolve():
        yield f"warning: {config.model.adapter} was trained on {base}, and is added to {name}: are they the same?"


def _vanishing_updates(plan: Plan) -> Iterator[str]:
    config, trained = plan.config, [p for p in plan.policy.model.parameters() if p.requires_grad]
    if config.optimizer == "SGD" or all(parameter.dtype == torch.float32 for parameter in trained):
        return
    share = vanishing(trained, config.lr)
    if share > MANY:
        dtype = str(trained[0].dtype).removeprefix("torch.")
        yield (
            f"warning: a step of lr={config.lr:g} is lost in rounding for {share:.0%} of the {dtype} weights; "
            f"precision={dtype} computes in {dtype} and keeps the weights in float32 (model.policy_dtype=float32)"
        )


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


def _each(sizes: Sequence[int]) -> str:
    """Return "38" or "38 to 40"."""
    return " to ".join(f"{size:,}" for size in sorted({min(sizes), max(sizes)}))


def _sizes(plan: Plan) -> str:
    """Describe what clients train on and what they hold out: "clients train on 76 pairs (38 each) and hold out 4"."""
    sizes = [len(client.train) for client in plan.pairs.clients]
    if not sizes:
        return "clients train on pairs of their own"
    if plan.judge is not None and not any(sizes):
        asked = [len(client.train) for client in plan.pairs.rows.split.clients]
        return f"clients have {counted(sum(asked), 'prompt')} ({_each(asked)} each)"
    each = f" ({_each(sizes)} each)" if len(sizes) > 1 else ""
    held_out = sum(len(client.held_out) for client in plan.pairs.clients)
    who, train, hold = ("clients", "train", "hold") if len(sizes) > 1 else ("the client", "trains", "holds")
    return f"{who} {train} on {counted(sum(sizes), 'pair')}{each}" + (f" and {hold} out {held_out}" if held_out else "")
