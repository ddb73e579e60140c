"""One experiment: build its parts from checked settings, run them, leave the results in a folder."""

import functools
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Strategy
from omegaconf import OmegaConf
from rich.console import Console

from clients.app import ClientPairs, client_app
from clients.trainer import LocalSettings, LocalTrainer
from fed import checkpoint, components
from fed.arrays import load_arrays, model_tensors, snapshot, to_tensors
from fed.batches import Example, tokenize
from fed.checks import Settings
from fed.collate import Layout
from fed.config import Config
from fed.cpu import has_bfloat16, peak_memory, set_up
from fed.curves import curves
from fed.evaluation import Loss, Metrics, evaluate
from fed.launch import local_ranks
from fed.leader import in_parts
from fed.loading import load_policy
from fed.matmul import Choice, choose_library
from fed.partition import partition, write_partition
from fed.policy import Policy, save_policy
from fed.ranks import Mesh, Ranks, arrange
from fed.references import weights_hash, with_reference
from fed.relay import Relay
from fed.run_folder import check_cache_folder, create_run_folder
from fed.seeding import seed_globals
from fed.sharding import Parts
from fed.simulation import Processes, simulate
from fed.splits import Split, SplitSettings, split_rows
from fed.tracking import Tracker
from load_data import load
from losses.logps import Logps
from server.app import asks, check_strategy, joins_groups, layers, server_app, streams, takes_parts
from server.evaluate import ServerEvaluation, ServerLog
from server.strategies import StreamingFedAvg

# Log-probs of five pairs under policy and reference: chosen, rejected, and their tokens.
MADE_UP = (
    (
        (-3.0, -7.0, -5.0, -9.0, -4.0),
        (-4.0, -5.0, -6.0, -2.0, -8.0),
        (2.0, 3.0, 1.0, 4.0, 2.0),
        (2.0, 4.0, 3.0, 1.0, 5.0),
    ),
    (
        (-3.5, -6.0, -5.5, -8.0, -4.5),
        (-4.5, -4.0, -6.0, -3.0, -9.0),
        (2.0, 3.0, 1.0, 4.0, 2.0),
        (2.0, 4.0, 3.0, 1.0, 5.0),
    ),
)


@dataclass(frozen=True)
class Plan:
    """Everything a run needs, checked, before anything is written."""

    config: Config
    split: Split
    skipped: dict[str, int]  # rows left out while loading, by reason
    policy: Policy
    loss: Loss
    supervised: bool  # the loss reads chosen responses only
    by_pair: bool  # the loss of a pair is the same whichever pairs stand beside it
    make_strategy: Callable[[], Strategy]  # a strategy keeps state, so each federation gets its own
    mods: list[Any]
    validation: list[Example]
    test: list[Example]
    clients: list[ClientPairs]
    cpu: str  # threads, memory and library, in words
    mesh: Mesh  # the processes of the run

    @property
    def everyone(self) -> Policy:
        """The policy where all processes share the pairs, not only those of a group."""
        return replace(self.policy, ranks=self.mesh.world)

    @property
    def beta(self) -> float:
        """What rewards are scaled by."""
        return float(self.config.loss.get("beta", 1.0))

    @property
    def clients_per_round(self) -> int:
        """Clients that train in a round."""
        return min(self.config.clients_per_round or len(self.clients), len(self.clients))


def processes(config: Config) -> int:
    """Processes that a run on this machine takes.

    Raises:
        ValueError: If the configuration asks for numbers that do not go together.
    """
    on_gpus = (config.device or "cuda").startswith("cuda") and torch.cuda.is_available()
    usual = max(torch.cuda.device_count(), 1) if on_gpus and config.trainer == "FSDPTrainer" else 1
    count = config.trainer_processes or max(usual, config.clients_in_parallel)
    if count % config.clients_in_parallel:
        raise ValueError(
            f"clients_in_parallel={config.clients_in_parallel} does not divide trainer_processes={count}; every group "
            "of processes that trains a client needs as many"
        )
    if config.trainer == "BasicTrainer" and count > config.clients_in_parallel:
        raise ValueError(
            f"trainer_processes={count} but trainer=BasicTrainer gives each client one process; use "
            f"trainer=FSDPTrainer, or clients_in_parallel={count}"
        )
    return count


def prepare(settings: Settings, device: torch.device) -> Plan:
    """Load and check everything; nothing is written but to `cache_dir`.

    Args:
        settings: The command line.
        device: Of this process, which has joined the others.

    Raises:
        ValueError: Naming the value, what was expected, and the way out.
    """
    config, given = settings.config, settings.given
    _quiet_libraries()
    cpu = _set_up_torch(config)
    mesh = arrange(config.clients_in_parallel, device)
    _check_mesh(mesh, config, given)
    loss = components.bind("loss", config.loss, given)
    by_pair = _check_loss(loss)
    make_strategy = functools.partial(components.create, "strategy", config.strategy, given)
    strategy = make_strategy()
    _check_is_strategy(strategy, config)
    check_strategy(strategy, config.client_num_in_total if config.mode == "federated" else 1)
    mods = [_mod(path) for path in config.client_mods]
    split, skipped = _split(config, given)
    policy = _policy(config, device, mesh)
    cpu += _choose_library(policy, config, mesh.world)
    tokens = functools.partial(
        tokenize,
        tokenizer=policy.tokenizer,
        max_length=config.max_length,
        max_prompt_length=config.max_prompt_length,
    )
    clients = [ClientPairs(tokens(rows.train), tokens(rows.held_out)) for rows in split.clients]
    if config.mode == "centralized":
        clients = [ClientPairs([e for c in clients for e in c.train], [e for c in clients for e in c.held_out])]
    plan = Plan(
        config=config,
        split=split,
        skipped=skipped,
        policy=policy,
        loss=loss,
        supervised=getattr(loss.func, "supervised", False),
        by_pair=by_pair,
        make_strategy=make_strategy,
        mods=mods,
        validation=tokens(split.validation),
        test=tokens(split.test),
        clients=clients,
        cpu=cpu,
        mesh=mesh,
    )
    _check_scoring(plan, strategy)
    _check_decay(plan, strategy)
    _check_lengths(plan)
    return plan


def create_folder(plan: Plan) -> Path:
    """The run's folder with everything that is known before it starts; of several processes the first one makes it.

    Raises:
        ValueError: If it cannot be written.
    """
    return plan.mesh.world.from_first_or_raise(lambda: _create_folder(plan))


def _create_folder(plan: Plan) -> Path:
    config = plan.config
    check_cache_folder(config.cache_dir)
    config_yaml = OmegaConf.to_yaml(OmegaConf.create(asdict(config)))  # with what `mode` implies
    folder = create_run_folder(config.output_dir, config.exp_name, config_yaml, plan.policy.device, plan.cpu)
    write_partition(folder / "partition.json", plan.split.parts, plan.split.pool)
    return folder


def run(plan: Plan, folder: Path) -> None:
    """Train, evaluate, and write metrics, curves and the final model into `folder`."""
    config, writes = plan.config, plan.mesh.world.is_first
    console = Console(quiet=not writes)
    with _tracker(plan, folder, console) if writes else nullcontext(_relay(plan.mesh)) as tracker:
        _describe(plan, console)
        initial = snapshot(model_tensors(plan.policy.model))
        with tracker.phase("reference"):
            plan = _with_references(plan, tracker.reference)
        if config.mode == "local":
            for client_id in range(len(plan.clients)):
                alone, place = _ClientLog(tracker, client_id), f"client-{client_id}"
                final = _federation(plan, tracker, initial, [client_id], alone, folder / "checkpoints" / place)
                _save(plan, final, folder / "policy" / f"client-{client_id}")
        else:
            log = tracker if writes else Relay()
            final = _federation(plan, tracker, initial, range(len(plan.clients)), log, folder / "checkpoints")
            _save(plan, final, folder / "policy")
        memory = plan.mesh.world.gather(_memory(plan.policy.device))
        summary = tracker.summary(**memory[0], **({"processes": memory} if len(memory) > 1 else {}))
    if not writes:
        return
    picture = curves(folder)
    console.print(f"{summary['pairs']} pairs in {summary['wall_seconds']:.0f} s; results in {folder}", soft_wrap=True)
    console.print(f"curves: {picture}  (or: tensorboard --logdir {folder / 'tensorboard'})", soft_wrap=True)


def _relay(mesh: Mesh) -> Relay:
    """For all processes but the first; one of each group speaks for its clients."""
    return Relay(keeps=mesh.groups.index > 0 and mesh.own.is_first)


def _tracker(plan: Plan, folder: Path, console: Console) -> Tracker:
    return Tracker(
        folder,
        tensorboard=plan.config.tensorboard.enabled,
        num_rounds=plan.config.comm_round,
        clients_per_round=plan.clients_per_round,
        console=console,
    )


@dataclass(frozen=True)
class _ClientLog:
    """Where the evaluation of a client that trains alone is logged: under that client's name, not the server's."""

    tracker: Tracker | Relay
    client_id: int

    def server(self, server_round: int, split: str, metrics: Metrics) -> None:
        self.tracker.client(self.client_id, server_round, split, metrics)

    def client(self, client_id: int, server_round: int, split: str, metrics: Metrics) -> None:
        """Its weight in an aggregate of one says nothing."""

    def clients_done(self, server_round: int) -> None:
        """There is no mean over clients while one of them runs alone."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        return self.tracker.phase(name)


def _federation(
    plan: Plan,
    tracker: Tracker | Relay,
    initial: ArrayRecord,
    client_ids: Sequence[int],
    log: ServerLog,
    checkpoints: Path,
) -> ArrayRecord:
    """Run all rounds over these clients; the final global weights."""
    config, strategy = plan.config, plan.make_strategy()
    score = functools.partial(evaluate, loss=plan.loss, beta=plan.beta, batch_size=config.eval_batch_size)
    evaluation = ServerEvaluation(
        policy=plan.everyone,
        splits={"test": plan.test} if config.mode == "local" else {"validation": plan.validation, "test": plan.test},
        score=score,
        log=log,
        num_rounds=config.comm_round,
        frequency_of_test=config.frequency_of_test,
        always_accuracy=asks(strategy, "needs_server_accuracy"),
        seed=config.seed,
        client_weights=lambda: next(
            (layer.client_weights for layer in layers(strategy) if hasattr(layer, "client_weights")), {}
        ),
    )
    trainer = LocalTrainer(plan.policy, _local_settings(plan))
    joins = joins_groups(strategy)
    if isinstance(strategy, StreamingFedAvg) and joins:
        strategy.groups = plan.mesh.groups
    parts = None
    if plan.policy.root is not None and (plan.mods or not takes_parts(strategy)):
        parts = Parts(plan.policy.model)
    mods = plan.mods if parts is None else [*plan.mods, in_parts(parts)]
    return simulate(
        functools.partial(
            server_app, strategy=strategy, train_config=evaluation.train_config, num_rounds=config.comm_round
        ),
        initial,
        functools.partial(_evaluate_and_keep, evaluation, plan, tracker, checkpoints),
        client_app(trainer, plan.clients, tracker, mods=mods),
        client_ids,
        streams=streams(strategy) and (joins or plan.mesh.groups.count == 1),
        processes=Processes(
            plan.mesh,
            [trainer.num_pairs(plan.clients[client].train, client) for client in client_ids],
            lambda: _exchange(plan.mesh.groups, tracker),
            parts,
        ),
    )


def _evaluate_and_keep(
    evaluation: ServerEvaluation,
    plan: Plan,
    tracker: Tracker | Relay,
    checkpoints: Path,
    server_round: int,
    arrays: ArrayRecord,
) -> MetricRecord | None:
    """Flower's `evaluate_fn`, and a checkpoint when one is due."""
    found, every = evaluation(server_round, arrays), plan.config.checkpoint_every
    if every and server_round and server_round % every == 0 and not plan.config.debug:
        with tracker.phase("checkpoint"):
            tensors = Parts(plan.policy.model).distributed(to_tensors(arrays))
            checkpoint.save(tensors, checkpoints / f"round-{server_round}", plan.mesh)
    return found


def _exchange(groups: Ranks, tracker: Tracker | Relay) -> None:
    """Tell the tracker what the other groups' clients reported."""
    told = groups.gather(tracker.fetch() if isinstance(tracker, Relay) else [])
    if isinstance(tracker, Tracker):
        for method, arguments, named in (event for events in told for event in events):
            getattr(tracker, method)(*arguments, **named)


def _local_settings(plan: Plan) -> LocalSettings:
    """The keys of the configuration that local training knows under the same name."""
    names = LocalSettings.__dataclass_fields__.keys() & Config.__dataclass_fields__.keys() - {"loss"}
    same = {name: getattr(plan.config, name) for name in names}
    return LocalSettings(loss=plan.loss, beta=plan.beta, supervised=plan.supervised, by_pair=plan.by_pair, **same)


def _check_mesh(mesh: Mesh, config: Config, given: frozenset[str]) -> None:
    """What would do nothing with these processes, or leave some of them nothing to do."""
    for key, alone in (("process_timeout", mesh.world.count == 1), ("cpu_offload", mesh.own.count == 1)):
        if key in given and alone:
            raise ValueError(f"{key} has no effect in a run of one process; leave it out")
    pairs = config.batch_size // config.gradient_accumulation_steps
    if config.max_tokens_per_step is None and pairs < mesh.own.count:
        raise ValueError(
            f"batch_size={config.batch_size} in gradient_accumulation_steps={config.gradient_accumulation_steps} parts "
            f"leaves {pairs} pairs for {mesh.own.count} processes that share a model; raise batch_size, or lower "
            "gradient_accumulation_steps or the number of processes"
        )


def _check_loss(loss: functools.partial[Any]) -> bool:
    """Whether a pair's loss does not depend on the pairs beside it; it must make one number per pair."""
    logps = [Logps(*(torch.tensor(values) for values in columns)) for columns in MADE_UP]
    pairs = len(logps[0].chosen)
    found = loss(*logps)
    if not isinstance(found, torch.Tensor) or found.shape != (pairs,):
        got = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise ValueError(
            f"loss: {loss.func.__name__} gives {got} for {pairs} pairs; expected a tensor of shape ({pairs},)"
        )
    try:
        apart = [loss(*(column.part(part) for column in logps)) for part in (slice(0, 1), slice(1, 3), slice(3, pairs))]
        return torch.allclose(found, torch.cat([losses.reshape(-1) for losses in apart]), rtol=1e-5, equal_nan=True)
    except Exception:  # whatever the user's loss raises of few pairs
        return False


def _check_is_strategy(strategy: object, config: Config) -> None:
    if not isinstance(strategy, Strategy):
        raise ValueError(
            f"strategy._target_={config.strategy['_target_']} makes no Flower Strategy but {type(strategy).__name__}; "
            "expected a subclass of flwr.serverapp.strategy.Strategy"
        )


def _mod(path: str) -> Any:
    mod = components.imported("client_mods", path)
    components.check_call(f"client_mods={path}", mod, 3, {})  # message, context, next
    return mod


def _set_up_torch(config: Config) -> str:
    """Threads and memory, in words; before anything large is allocated."""
    torch.use_deterministic_algorithms(config.deterministic)
    return set_up(config.num_threads, keep_freed=config.keep_freed_memory, processes=local_ranks())


def _quiet_libraries() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("flwr").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Flower's warnings, except that clients do not evaluate: that is how the strategies' YAML files are set."""
    return record.levelno >= logging.WARNING and "fraction_evaluate is set to 0.0" not in record.getMessage()


def _split(config: Config, given: frozenset[str]) -> tuple[Split, dict[str, int]]:
    partitioner = components.create("partition", config.partition, given)
    if not hasattr(partitioner, "load_partition"):
        raise ValueError(
            f"partition._target_={config.partition['_target_']} makes no partitioner but "
            f"{type(partitioner).__name__}; expected a class with dataset, num_partitions and load_partition"
        )
    load_split = functools.partial(
        load,
        config.datasets,
        data_dir=config.data_dir,
        seed=config.seed,
        cache_dir=config.cache_dir,
        test_fraction=config.test_fraction,
    )
    train, test = load_split("train"), load_split("test")
    settings = SplitSettings(**{name: getattr(config, name) for name in SplitSettings.__dataclass_fields__})
    split = split_rows(
        train.rows,
        test.rows,
        lambda rows: partition(rows, partitioner, config.client_num_in_total, config.seed),
        settings,
    )
    return split, {
        reason: train.skipped.get(reason, 0) + test.skipped.get(reason, 0)
        for reason in sorted(train.skipped.keys() | test.skipped.keys())
    }


def _policy(config: Config, device: torch.device, mesh: Mesh) -> Policy:
    seed_globals(config.seed, "model")
    return load_policy(
        replace(config.model, fsdp_policy_mp=config.precision or config.model.fsdp_policy_mp),
        device=device,
        activation_checkpointing=config.activation_checkpointing,
        lora=config.lora,
        layout=Layout(**{name: getattr(config, name) for name in Layout.__dataclass_fields__}),
        max_length=config.max_length,
        mesh=mesh,
        cpu_offload=config.cpu_offload,
    )


def _choose_library(policy: Policy, config: Config, world: Ranks) -> str:
    """What multiplies float32 matrices on a CPU, in words; empty where there are none."""
    if policy.device.type != "cpu" or policy.compute_dtype is not None or policy.model.dtype != torch.float32:
        if config.cpu_matmul != "auto":
            dtype = str(policy.compute_dtype or policy.model.dtype).removeprefix("torch.")
            raise ValueError(
                f"cpu_matmul={config.cpu_matmul} has no effect with {dtype} on {policy.device}; leave it out"
            )
        return ""

    def choose(wanted: str) -> Choice:
        return choose_library(policy.model, wanted, cache_dir=config.cache_dir, deterministic=config.deterministic)

    choice = world.from_first_or_raise(lambda: choose(config.cpu_matmul))
    if not world.is_first:  # the same in all processes: libraries differ in the last bits
        choose(choice.library or "auto")
    return f", {choice}"


def _check_scoring(plan: Plan, strategy: Strategy) -> None:
    config = plan.config
    if asks(strategy, "fraction_evaluate") or config.accuracy_on == "client":
        asked = "accuracy_on=client" if config.accuracy_on == "client" else "strategy.fraction_evaluate > 0"
        without = [k for k, client in enumerate(plan.clients) if not client.held_out]
        if without:
            raise ValueError(
                f"{asked} but client {without[0]} has no held-out pairs ({len(without)} such clients); "
                f"raise client_eval_fraction={config.client_eval_fraction} or lower client_num_in_total"
            )
    if config.accuracy_on == "server" and not plan.validation:
        raise ValueError(
            f"accuracy_on=server but server_fraction={config.server_fraction} leaves the server no pairs; raise "
            "it or use accuracy_on=client"
        )


def _check_decay(plan: Plan, strategy: Strategy) -> None:
    if asks(strategy, "needs_server_accuracy") and not plan.validation:
        raise ValueError(
            f"server_fraction={plan.config.server_fraction} leaves the server no pairs, but the strategy decays "
            "clients that do not beat its accuracy on them; raise it, or use strategy=fedpo decay_rate=1"
        )


def _check_lengths(plan: Plan) -> None:
    """Positions a model was not made for are an index error in some and nonsense in others."""
    positions = getattr(plan.policy.model.config, "max_position_embeddings", None)
    train = (example for client in plan.clients for example in (*client.train, *client.held_out))
    longest = max(example.length for example in (*train, *plan.validation, *plan.test))
    if positions is not None and longest > positions:
        raise ValueError(
            f"max_length={plan.config.max_length} allows pairs of {longest} tokens but the model has {positions} "
            f"positions; use max_length={positions} and a smaller max_prompt_length"
        )


def _with_references(plan: Plan, progress: Callable[[int, int], None]) -> Plan:
    """The plan with every example's reference column, from the initial weights; `progress` is told pairs and all pairs.

    One pass over all training pairs, in batches of like length; evaluated lists by themselves, in the batches that
    evaluation will use, so that untrained weights tie exactly.
    """
    config, done = plan.config, 0
    trains = 0 if plan.supervised else sum(len(client.train) for client in plan.clients)
    total = trains + len(plan.validation) + len(plan.test) + sum(len(client.held_out) for client in plan.clients)

    def on_pairs(pairs: int) -> None:
        nonlocal done
        done += pairs
        progress(done, total)

    fill = functools.partial(
        with_reference,
        plan.everyone,
        batch_size=config.eval_batch_size,
        cache=Path(config.cache_dir) / "reference",
        weights_hash=weights_hash(plan.policy),
        on_pairs=on_pairs,
    )
    train = [example for client in plan.clients for example in client.train]
    trained = iter(train if plan.supervised else fill(train))
    validation, test = fill(plan.validation), fill(plan.test)
    clients = []
    for client in plan.clients:
        held_out = fill(client.held_out)
        scoring = {"server": validation, "client": held_out, "test": test}[config.accuracy_on]
        clients.append(ClientPairs([next(trained) for _ in client.train], held_out, scoring))
    return replace(plan, validation=validation, test=test, clients=clients)


def _save(plan: Plan, arrays: ArrayRecord, directory: Path) -> None:
    load_arrays(plan.policy.model, arrays)
    if not plan.config.debug:
        save_policy(plan.policy, directory, write=plan.mesh.world.is_first)


def _memory(device: torch.device) -> dict[str, float]:
    """Peak memory of this process, 1e9 bytes."""
    memory = {"peak_memory_gb": peak_memory() / 1e9}
    if device.type == "cuda":
        memory["peak_device_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return memory


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
        text += f"{',' if mesh.groups.count > 1 else ':'} each model split over {mesh.own.count}"
    return text


def _describe(plan: Plan, console: Console) -> None:
    """Say in a few lines what is about to run."""
    config, split, model = plan.config, plan.split, plan.policy.model
    sizes = [len(client.train) for client in plan.clients]
    lines = [
        f"{config.exp_name}: {config.mode}, {len(sizes)} clients x {config.comm_round} rounds, "
        f"{config.strategy['_target_'].rsplit('.', 1)[-1]}",
        f"model: {config.model.gguf_file or config.model.name_or_path}, {model.num_parameters() / 1e6:.1f} M "
        "parameters, "
        f"{config.model.policy_dtype} on {plan.policy.device}, {_how(plan.policy, config)}",
        f"cpu: {plan.cpu}",
        f"data: {'+'.join(config.datasets)}; clients train on {sum(sizes)} pairs ({min(sizes)} to {max(sizes)} "
        "each), server "
        f"validates on {len(plan.validation)}, test {len(plan.test)}",
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
    lines += plan.policy.remarks
    if plan.mesh.world.count > 1:
        lines.append(_processes(plan))
    elif config.trainer == "FSDPTrainer":
        lines.append("trainer=FSDPTrainer: one process, so the model is not sharded")
    if config.accuracy_on == "test":
        lines.append(
            "warning: accuracy_on=test lets weights and decay read the test pairs, so the test curve is not untouched"
        )
    console.print("\n".join(lines), highlight=False, soft_wrap=True)
