"""What a run needs, loaded and checked before anything is written."""

import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from flwr.serverapp.strategy import Strategy

from clients.app import ClientPairs
from clients.privacy import privacy_mods
from fed.config import components
from fed.config.checks import Request
from fed.config.schema import Config
from fed.cpu.matmul import Choice, choose_library
from fed.cpu.runtime import set_up
from fed.data.collate import Layout
from fed.data.rows import Loaded
from fed.data.splits import Split
from fed.data.token_cache import tokenize_once
from fed.data.tokens import Example, tokenize
from fed.distributed.launch import is_rank, local_ranks
from fed.distributed.ranks import Mesh, Ranks, arrange
from fed.model.loading import load_policy
from fed.model.placement import Placement
from fed.model.policy import Policy
from fed.seeding import seed_globals
from losses.trial import stands_alone
from run.data import one_clients, shared_out
from run.plan import Plan, check_decay, check_lengths, check_scoring
from run.processes import check_mesh
from server.privacy import protected
from server.traits import check_strategy


def prepare(settings: Request, device: torch.device) -> Plan:
    """Load and check everything; nothing is written but to `cache_dir`.

    Args:
        settings: The command line.
        device: Of this process, which has joined the others.

    Raises:
        ValueError: Naming the value, what was expected, and the way out.
    """
    config, given = settings.config, settings.given
    _quiet_libraries()
    strategy = _make_strategy(config, given)
    plan = _base(settings, device, lambda: shared_out(config, given), tokenize)
    clients = holders = [plan.pairs(k) for k in range(len(plan.split.clients))]
    if config.mode == "centralized":
        clients = [ClientPairs([e for c in clients for e in c.train], [e for c in clients for e in c.held_out])]
    plan = replace(plan, clients=clients, holders=holders)
    check_scoring(plan, strategy)
    check_decay(plan, strategy)
    own = (example for client in clients for example in (*client.train, *client.held_out))
    check_lengths(plan, (*own, *plan.validation, *plan.test))
    return plan


def prepare_client(settings: Request, device: torch.device, own: Loaded | None = None) -> Plan:
    """What the process of a client needs, which trains one or several of them; `pairs` gives a client's.

    Token ids are kept in `cache_dir`, for the process of the next message.

    Args:
        settings: Of the run, as the server has them, but for what this process overrides.
        device: Of this process.
        own: The rows of the only client here, which are nobody else's; None: clients share out the data sets.

    Raises:
        ValueError: As `prepare`.
    """
    _quiet_libraries()

    config = settings.config

    def split() -> tuple[Split, dict[str, int]]:
        return shared_out(config, settings.given) if own is None else one_clients(own, config)

    tokens = functools.partial(tokenize_once, cache=Path(config.cache_dir) / "tokens")
    return _base(settings, device, split, tokens)


def _base(
    settings: Request,
    device: torch.device,
    split_all: Callable[[], tuple[Split, dict[str, int]]],
    tokenize: Callable[..., list[Example]],
) -> Plan:
    """The plan, but for the clients' pairs."""
    config, given = settings.config, settings.given
    cpu = _set_up_torch(config)
    mesh = arrange(config.clients_in_parallel if config.engine == "local" else 1, device)
    check_mesh(mesh, config, given)
    loss = components.bind("loss", config.loss, given)
    by_pair = stands_alone(loss)
    mods = [*privacy_mods(config.privacy), *(_mod(path) for path in config.client_mods)]
    split, skipped = split_all()
    policy = make_policy(config, device, mesh)
    choice = _choose_library(policy, config, mesh.world)
    tokens = functools.partial(
        tokenize,
        tokenizer=policy.tokenizer,
        max_length=config.max_length,
        max_prompt_length=config.max_prompt_length,
    )
    return Plan(
        config=config,
        split=split,
        skipped=skipped,
        policy=policy,
        loss=loss,
        supervised=getattr(loss.func, "supervised", False),
        by_pair=by_pair,
        make_strategy=functools.partial(_make_strategy, config, given),
        mods=mods,
        tokens=tokens,
        validation=tokens(split.validation),
        test=tokens(split.test),
        clients=[],
        holders=[],
        cpu=cpu if choice is None else f"{cpu}, {choice}",
        library=None if choice is None else choice.library,
        given=given,
        mesh=mesh,
    )


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
    """Flower's warnings, but for those that the user of this program can do nothing about."""
    known = (
        "fraction_evaluate is set to 0.0",  # that is how the strategies' YAML files are set
        "`run_simulation` function is deprecated",  # by engine=ray; pyproject.toml names versions that have it
    )
    return record.levelno >= logging.WARNING and not any(text in record.getMessage() for text in known)


def make_policy(config: Config, device: torch.device, mesh: Mesh) -> Policy:
    """Load the model that the settings name, its weights drawn from the seed where they are random."""
    seed_globals(config.seed, "model")
    return load_policy(
        replace(config.model, fsdp_policy_mp=config.precision or config.model.fsdp_policy_mp),
        Placement(device, mesh, config.trainer == "TensorParallelTrainer", config.cpu_offload),
        lora=config.lora,
        layout=Layout(**{name: getattr(config, name) for name in Layout.__dataclass_fields__}),
        max_length=config.max_length,
        activation_checkpointing=config.activation_checkpointing,
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
