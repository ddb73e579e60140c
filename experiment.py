"""One experiment: run a plan, leave the results in a folder."""

import functools
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from flwr.app import ArrayRecord
from omegaconf import OmegaConf
from rich.console import Console

from clients.app import ClientPairs, client_app
from clients.trainer import LocalSettings, LocalTrainer
from fed import resume, run_folder
from fed.arrays import load_arrays, model_tensors, snapshot
from fed.config import Config, flat
from fed.cpu import has_bfloat16, peak_memory
from fed.curves import curves
from fed.endings import writing
from fed.evaluation import Metrics, evaluate_pairs
from fed.faults import Faults
from fed.journal import Journal, Recorder
from fed.keeper import Keeper, Kept, rounds
from fed.leader import in_parts
from fed.partition import write_partition
from fed.policy import Policy, save_policy
from fed.privacy import described
from fed.ranks import Mesh, Ranks
from fed.references import weights_hash, with_reference
from fed.relay import Relay, replay
from fed.samples import Sampler
from fed.sharding import Parts, is_sharded
from fed.simulation import Memory, Processes, simulate
from fed.tracking import Tracker
from plan import Plan
from server.app import asks, joins_groups, layers, sampled, server_app, streams, takes_parts
from server.evaluate import ServerEvaluation, ServerLog
from server.privacy import ledger_of
from server.state import StrategyState
from server.strategies import StreamingFedAvg

PARTITION = "partition.json"
STATES = {"RMSprop": 1, "AdamW": 2, "Adam": 2, "SGD": 0}  # numbers that an optimizer keeps for each weight


def create_folder(plan: Plan) -> Path:
    """The run's folder with everything that is known before it starts; of several processes the first one makes it.

    Raises:
        ValueError: If it cannot be written, or the run that is to go on there is another one.
    """
    make = _create_folder if plan.config.resume is None else _reopen_folder
    return plan.mesh.world.from_first_or_raise(lambda: make(plan))


@contextmanager
def locked(plan: Plan, folder: Path) -> Iterator[None]:
    """Inside, no other run writes into the folder.

    Raises:
        ValueError: If one does.
    """
    with ExitStack() as stack:
        plan.mesh.world.from_first_or_raise(lambda: stack.enter_context(run_folder.locked(folder)))
        yield


def _create_folder(plan: Plan) -> Path:
    config = plan.config
    run_folder.check_cache_folder(config.cache_dir)
    _check_space(plan)
    folder = run_folder.create_run_folder(
        config.output_dir,
        config.exp_name,
        _yaml(config),  # with what `mode` implies
        plan.policy.device,
        plan.cpu,
        library=plan.library,
        given=sorted(plan.given),
    )
    _write_partition(plan, folder / PARTITION)
    return folder


def _write_partition(plan: Plan, path: Path) -> None:
    write_partition(path, plan.split.parts, plan.split.pool, plan.split.test)


def _reopen_folder(plan: Plan) -> Path:
    config = plan.config
    assert config.resume is not None
    folder = Path(config.resume)
    run_folder.check_cache_folder(config.cache_dir)
    with tempfile.TemporaryDirectory() as scratch:
        again = Path(scratch) / PARTITION
        _write_partition(plan, again)
        if (folder / PARTITION).is_file() and (folder / PARTITION).read_bytes() != again.read_bytes():
            raise ValueError(f"resume={folder}: the data are not those that its {PARTITION} tells of; start a new run")
        try:
            shutil.copyfile(again, folder / PARTITION)
            run_folder.write_whole(folder / run_folder.CONFIG, _yaml(replace(config, resume=None)).encode())
        except OSError as error:
            raise ValueError(f"resume={folder} cannot be written: {error}") from error
    behind = max((done for place in _places(plan, folder) for done in rounds(place.checkpoints)), default=0)
    if behind > config.comm_round:
        raise ValueError(f"comm_round={config.comm_round} is less than the {behind} rounds that are done; raise it")
    return folder


def _check_space(plan: Plan) -> None:
    """Whether the disk takes what the run keeps at a time, as far as that is known: a strategy may keep more."""
    config, model = plan.config, plan.policy.model
    if config.debug:
        return
    size = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)  # travels and is kept in float32
    kept = size  # the final model
    if config.checkpoint_every:
        slots = STATES[config.optimizer] * len(plan.clients) if config.client_optimizer == "persist" else 0
        kept += size * (config.checkpoint_keep + 2 + slots)  # the best one, and that which is being written
    within = size * plan.clients_per_round if config.checkpoint_every == 1 and config.checkpoint_within_round else 0
    free = run_folder.free_space(Path(config.output_dir))
    if kept + within > free:
        less = f" (with checkpoint_within_round=false {kept / 1e9:.2g} GB)" if within else ""
        raise ValueError(
            f"output_dir={config.output_dir} has {free / 1e9:.2g} GB free, the run keeps up to "
            f"{(kept + within) / 1e9:.2g} GB{less}; give another output_dir or make room"
        )


def _yaml(config: Config) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


@dataclass(frozen=True)
class Place:
    """Where one federation of a run keeps its results."""

    client_ids: Sequence[int]
    checkpoints: Path
    policy: Path


def _places(plan: Plan, folder: Path) -> list[Place]:
    """One for all clients, or in mode=local one for each, in turn."""
    everyone = range(len(plan.clients))
    if plan.config.mode != "local":
        return [Place(everyone, folder / "checkpoints", folder / "policy")]
    return [Place([k], folder / "checkpoints" / f"client-{k}", folder / "policy" / f"client-{k}") for k in everyone]


def run(plan: Plan, folder: Path) -> None:
    """Train, evaluate, and write metrics, curves and the final model into `folder`."""
    config, writes = plan.config, plan.mesh.world.is_first
    console = Console(quiet=not writes)
    with _tracker(plan, folder, console) if writes else nullcontext(_relay(plan.mesh)) as tracker:
        _describe(plan, console)
        initial = snapshot(model_tensors(plan.policy.model))
        model = weights_hash(plan.policy)
        with tracker.phase("reference"):
            plan = _with_references(plan, model, tracker.reference)
        places = _places(plan, folder)
        keepers = [_keeper(plan, place, model) for place in places]
        first, kept = 0, None
        if config.resume:
            for change in resume.differences(folder, run_folder.surroundings(plan.policy.device)):
                console.print(f"warning: was {change}: the last bits may differ", soft_wrap=True, highlight=False)
            first, kept = _go_on(keepers, tracker, console)
        if kept is None:
            tracker.settings(hyperparameters(config))
        for place, keeper in list(zip(places, keepers, strict=True))[first:]:
            final = _federation(plan, tracker, initial, place, keeper, kept, console)
            kept = None
            _save(plan, final, place.policy)
        if config.mode == "local":
            tracker.everyone()
        memory = plan.mesh.world.gather(_memory(plan.policy.device))
        with writing(folder / "summary.json"):
            summary = tracker.summary(**memory[0], **({"processes": memory} if len(memory) > 1 else {}))
    if not writes:
        return
    with writing(folder / "curves.png"):
        picture = curves(folder)
    console.print(f"{summary['pairs']} pairs in {summary['wall_seconds']:.0f} s; results in {folder}", soft_wrap=True)
    console.print(f"curves: {picture}  (or: tensorboard --logdir {folder / 'tensorboard'})", soft_wrap=True)


def _keeper(plan: Plan, place: Place, model: str) -> Keeper:
    config, mesh = plan.config, plan.mesh
    return Keeper(
        place.checkpoints,
        mesh,
        Parts(plan.policy.model),
        {
            "number of processes": mesh.world.count,
            "clients_in_parallel": mesh.groups.count,
            "model before training (SHA-256)": model,
        },
        every=0 if config.debug else config.checkpoint_every,
        last=config.checkpoint_keep,
        num_rounds=config.comm_round,
    )


def _go_on(keepers: Sequence[Keeper], tracker: Tracker | Relay, console: Console) -> tuple[int, Kept | None]:
    """The federation of a resumed run that was cut off, those before it being done, and its newest checkpoint."""

    def on_damage(message: str) -> None:
        console.print(f"{message}; the one before is used", soft_wrap=True, highlight=False)

    for number, keeper in reversed(list(enumerate(keepers))):
        kept = keeper.newest(on_damage)
        if kept is not None:
            console.print(f"going on after round {kept.server_round}, from {kept.folder}", soft_wrap=True)
            return number, kept
    tracker.start_over()
    console.print("no round is complete yet; of the first one, clients that are done are kept", soft_wrap=True)
    return 0, None


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

    def evaluated(
        self, server_round: int, margins: Sequence[float] = (), samples: Sequence[Mapping[str, str]] = ()
    ) -> None:
        self.tracker.evaluated(server_round, margins, samples, who=f"client-{self.client_id}")

    def clients_done(self, server_round: int) -> None:
        """There is no mean over clients while one of them runs alone."""

    def privacy(self, server_round: int, spent: Metrics, remarks: Sequence[str] = ()) -> None:
        """There is no federation to account for."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        return self.tracker.phase(name)


def _federation(
    plan: Plan,
    tracker: Tracker | Relay,
    initial: ArrayRecord,
    place: Place,
    keeper: Keeper,
    kept: Kept | None,
    console: Console,
) -> ArrayRecord:
    """Run all rounds, or those after a checkpoint, over the clients of a place; the final global weights."""
    config, strategy = plan.config, plan.make_strategy()
    ledger = ledger_of(strategy)
    score = functools.partial(evaluate_pairs, loss=plan.loss, beta=plan.beta, batch_size=config.eval_batch_size)
    log: ServerLog = tracker if isinstance(tracker, Tracker) else Relay()
    if config.mode == "local":
        log = _ClientLog(tracker, place.client_ids[0])
    evaluation = ServerEvaluation(
        policy=plan.everyone,
        splits={"test": plan.test} if config.mode == "local" else {"validation": plan.validation, "test": plan.test},
        score=score,
        log=log,
        num_rounds=config.comm_round,
        frequency_of_test=config.frequency_of_test,
        sampler=_sampler(plan) if config.sample_during_eval else None,
        always_accuracy=asks(strategy, "needs_server_accuracy"),
        seed=config.seed,
        ledger=ledger,
        # All evaluate or none: of several processes that share a model only the first one may run the strategy.
        is_over=lambda: ledger is not None and plan.mesh.world.from_first(ledger.is_exhausted()),
        client_weights=lambda: next(
            (layer.client_weights for layer in layers(strategy) if hasattr(layer, "client_weights")), {}
        ),
    )
    trainer = LocalTrainer(plan.policy, _local_settings(plan))
    parts = None
    if is_sharded(plan.policy.model) and (plan.mods or not takes_parts(strategy)):
        parts = Parts(plan.policy.model)
    joins = parts is None and joins_groups(strategy)  # else the strategy runs in the first process only
    if isinstance(strategy, StreamingFedAvg) and joins:
        strategy.groups = plan.mesh.groups
    mods = plan.mods if parts is None else [*plan.mods, in_parts(parts)]
    clients, mesh = Recorder(tracker), plan.mesh
    within = place.checkpoints if config.checkpoint_within_round and keeper.every == 1 else None
    journal = Journal(
        within, mesh.world.index, mesh.own, keeper.files, clients, keeper.run, client_timeout=config.client_timeout
    )
    state = StrategyState(strategy)
    books = {} if ledger is None else {"privacy": ledger}
    if keeper.every and (left_out := state.left_out()):
        console.print(
            f"not in checkpoints, for no file can hold it: {', '.join(left_out)}; a strategy with "
            "state_dict() and load_state_dict(state) says itself what to keep",
            soft_wrap=True,
            highlight=False,
        )
    return simulate(
        functools.partial(
            server_app,
            strategy=strategy,
            train_config=evaluation.train_config,
            num_rounds=config.comm_round,
            is_over=lambda: ledger is not None and ledger.is_exhausted(),
        ),
        initial,
        evaluation,
        client_app(trainer, plan.clients, clients, mods=mods, pauses=journal, budget=budget(plan, trainer)),
        place.client_ids,
        streams=streams(strategy) and (joins or mesh.groups.count == 1),
        processes=Processes(
            mesh,
            [trainer.num_pairs(plan.clients[client].train, client)[0] for client in place.client_ids],
            lambda: _exchange(mesh.groups, tracker),
            parts,
        ),
        memory=Memory(
            keeper,
            {**books, "strategy": state, "server": evaluation, "log": tracker},
            kept,
            lambda: tracker.phase("checkpoint"),
        ),
        journal=journal,
        own=mesh.own,
        seed=config.seed,
        faults=Faults(config.faults, config.client_timeout, config.seed),
        min_fit_clients=min(config.min_fit_clients, len(place.client_ids)),
        on_failure=tracker.failed,
        on_traffic=tracker.communication if config.mode == "federated" else lambda *_: None,
        numel=Parts(plan.policy.model).numel,
    )


def budget(plan: Plan, trainer: LocalTrainer) -> list[int]:
    """In mode=centralized the pairs of each round: as many as a federation over the same pairs trains in it."""
    config, count = plan.config, len(plan.holders)
    if config.mode != "centralized":
        return []
    visits = [iter(trainer.num_pairs(client.train, k, config.comm_round)) for k, client in enumerate(plan.holders)]
    rounds: list[Iterable[int]] = [range(count)] * config.comm_round
    if config.clients_per_round is not None and config.clients_per_round < count:
        rounds = [sampled(count, config.clients_per_round, r + 1, config.seed) for r in range(config.comm_round)]
    return [sum(next(visits[client]) for client in clients) for clients in rounds]


def _sampler(plan: Plan) -> Sampler:
    config = plan.config
    return Sampler(
        plan.test[: config.n_eval_model_samples],
        max_length=config.max_length,
        max_prompt_length=config.max_prompt_length,
        batch_size=config.eval_batch_size,
        seed=config.seed,
    )


def hyperparameters(config: Config) -> dict[str, object]:
    """All settings that are set, by dotted name; lists as text."""
    return {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in flat(asdict(config))
        if value is not None
    }


def _exchange(groups: Ranks, tracker: Tracker | Relay) -> None:
    """Tell the tracker what the other groups' clients reported."""
    told = groups.gather(tracker.fetch() if isinstance(tracker, Relay) else [])
    if isinstance(tracker, Tracker):
        for events in told:
            replay(events, tracker)


def _local_settings(plan: Plan) -> LocalSettings:
    """The keys of the configuration that local training knows under the same name."""
    names = LocalSettings.__dataclass_fields__.keys() & Config.__dataclass_fields__.keys() - {"loss"}
    same = {name: getattr(plan.config, name) for name in names}
    return LocalSettings(loss=plan.loss, beta=plan.beta, supervised=plan.supervised, by_pair=plan.by_pair, **same)


def _with_references(plan: Plan, model: str, progress: Callable[[int, int], None]) -> Plan:
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
        weights_hash=model,
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
    if plan.config.debug:
        return
    writes = plan.mesh.world.is_first
    with writing(directory):
        if writes:
            shutil.rmtree(directory, ignore_errors=True)  # of a run that was cut off here
        save_policy(plan.policy, directory, write=writes)


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
        split = "each model" if plan.policy.root is not None else "each layer"
        text += f"{',' if mesh.groups.count > 1 else ':'} {split} split over {mesh.own.count}"
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
