"""What a run needs, loaded and checked before anything is written."""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from flwr.serverapp.strategy import Strategy

from clients.app import ClientPairs
from clients.privacy import privacy_mods
from fed import components
from fed.batches import Example, tokenize
from fed.checks import Settings
from fed.collate import Layout
from fed.config import Config
from fed.cpu import set_up
from fed.evaluation import Loss
from fed.launch import is_rank, local_ranks
from fed.loading import load_policy
from fed.matmul import Choice, choose_library
from fed.partition import partition
from fed.policy import Policy
from fed.ranks import Mesh, Ranks, arrange
from fed.seeding import seed_globals
from fed.splits import Split, SplitSettings, split_rows
from fed.stop import Stop
from load_data import load
from losses.logps import Logps
from server.app import asks, check_strategy
from server.privacy import protected

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
    holders: list[ClientPairs]  # who would be the clients of a federation over these pairs
    cpu: str  # threads, memory and library, in words
    library: str | None  # what multiplies float32 matrices on a CPU
    given: frozenset[str]  # keys that were typed
    mesh: Mesh  # the processes of the run

    @property
    def everyone(self) -> Policy:
        """The policy where not only the processes of a group share the pairs: all do that hold other weights.

        A run that is asked to stop does so between two of its batches.
        """
        ranks = self.mesh.groups if self.policy.root is None else self.mesh.world
        return replace(self.policy, ranks=ranks, between=Stop(self.mesh.world).check)

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
    usual = max(torch.cuda.device_count(), 1) if on_gpus and config.trainer != "BasicTrainer" else 1
    count = config.trainer_processes or max(usual, config.clients_in_parallel)
    if count % config.clients_in_parallel:
        raise ValueError(
            f"clients_in_parallel={config.clients_in_parallel} does not divide trainer_processes={count}; every group "
            "of processes that trains a client needs as many"
        )
    _check_trainer(config, count)
    return count


def _check_trainer(config: Config, count: int) -> None:
    if config.trainer == "BasicTrainer" and count > config.clients_in_parallel:
        raise ValueError(
            f"{count} processes for clients_in_parallel={config.clients_in_parallel}, but trainer=BasicTrainer gives "
            f"each client one; use trainer=FSDPTrainer, or clients_in_parallel={count}"
        )


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
    make_strategy = functools.partial(_make_strategy, config, given)
    strategy = make_strategy()
    mods = [*privacy_mods(config.privacy), *(_mod(path) for path in config.client_mods)]
    split, skipped = _split(config, given)
    policy = _policy(config, device, mesh)
    choice = _choose_library(policy, config, mesh.world)
    tokens = functools.partial(
        tokenize,
        tokenizer=policy.tokenizer,
        max_length=config.max_length,
        max_prompt_length=config.max_prompt_length,
    )
    clients = holders = [ClientPairs(tokens(rows.train), tokens(rows.held_out)) for rows in split.clients]
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
        holders=holders,
        cpu=cpu if choice is None else f"{cpu}, {choice}",
        library=None if choice is None else choice.library,
        given=given,
        mesh=mesh,
    )
    _check_scoring(plan, strategy)
    _check_decay(plan, strategy)
    _check_lengths(plan)
    return plan


def _check_mesh(mesh: Mesh, config: Config, given: frozenset[str]) -> None:
    """What would do nothing with these processes, or leave some of them nothing to do."""
    _check_trainer(config, mesh.world.count)
    for key, alone in (("process_timeout", mesh.world.count == 1), ("cpu_offload", mesh.own.count == 1)):
        if key in given and alone:
            raise ValueError(f"{key} has no effect in a run of one process; leave it out")
    pairs = config.batch_size // config.gradient_accumulation_steps
    if config.trainer == "FSDPTrainer" and config.max_tokens_per_step is None and pairs < mesh.own.count:
        raise ValueError(
            f"batch_size={config.batch_size} in gradient_accumulation_steps={config.gradient_accumulation_steps} parts "
            f"leaves {pairs} pairs for {mesh.own.count} processes that share a model; raise batch_size, or lower "
            "gradient_accumulation_steps or the number of processes"
        )
    if not config.privacy.seeded_noise and mesh.world.count > 1:
        raise ValueError(
            f"privacy.seeded_noise=false in {mesh.world.count} processes, each of which would draw noise of its own; "
            "use one process"
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


def _make_strategy(config: Config, given: frozenset[str]) -> Strategy:
    """The strategy of a federation, as `privacy=` makes it."""
    strategy = components.create("strategy", config.strategy, given)
    _check_is_strategy(strategy, config)
    num_clients = config.client_num_in_total if config.mode == "federated" else 1
    check_strategy(strategy, num_clients)
    return protected(strategy, config.privacy, num_clients)


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
    processes, sharded = local_ranks(), config.trainer == "FSDPTrainer" and is_rank()
    return set_up(config.num_threads, keep_freed=config.keep_freed_memory, processes=processes, sharded=sharded)


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
        tensor_parallel=config.trainer == "TensorParallelTrainer",
        cpu_offload=config.cpu_offload,
    )


def _choose_library(policy: Policy, config: Config, world: Ranks) -> Choice | None:
    """What multiplies float32 matrices on a CPU; None where there are none."""
    if policy.device.type != "cpu" or policy.compute_dtype is not None or policy.model.dtype != torch.float32:
        if config.cpu_matmul != "auto":
            dtype = str(policy.compute_dtype or policy.model.dtype).removeprefix("torch.")
            raise ValueError(
                f"cpu_matmul={config.cpu_matmul} has no effect with {dtype} on {policy.device}; leave it out"
            )
        return None

    wanted = config.cpu_matmul
    if policy.holders.count > 1 and policy.root is None:
        if wanted == "onednn":
            raise ValueError("cpu_matmul=onednn has no effect on layers that processes share; leave it out")
        wanted = "mkl"

    def choose(wanted: str) -> Choice:
        return choose_library(policy.model, wanted, cache_dir=config.cache_dir, deterministic=config.deterministic)

    choice = world.from_first_or_raise(lambda: choose(wanted))
    if not world.is_first:  # the same in all processes: libraries differ in the last bits
        choose(choice.library or "auto")
    return choice


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
