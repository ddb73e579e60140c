"""What a run needs, loaded and checked before anything is written."""

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from flwr.serverapp.strategy import Strategy

from clients.app import ClientPairs
from clients.privacy import privacy_mods
from clients.trainer import LocalSettings
from fed.config import components
from fed.data.tokens import Example, tokenize
from fed.config.checks import Settings
from fed.data.collate import Layout
from fed.config.schema import Config
from fed.cpu.runtime import set_up
from fed.model.evaluation import Loss
from fed.distributed.launch import is_rank, local_ranks
from fed.model.loading import load_policy
from losses.trial import stands_alone
from fed.cpu.matmul import Choice, choose_library
from fed.model.policy import Policy
from fed.distributed.ranks import Mesh, Ranks, arrange
from fed.model.references import with_reference
from run.data import one_clients, shared_out
from fed.seeding import seed_globals
from fed.data.splits import Split
from fed.distributed.stop import Stop
from fed.data.token_cache import tokenize_once
from load_data import Loaded, Preference
from server.app import asks, check_strategy
from server.privacy import protected


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
    tokens: Callable[[Sequence[Preference]], list[Example]]
    validation: list[Example]
    test: list[Example]
    clients: list[ClientPairs]  # none where they have data of their own that this process does not see
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
    def meets_all(self) -> bool:
        """Whether every client here trains in every round, as far as the settings tell."""
        return self.clients_per_round == self.num_clients

    @property
    def beta(self) -> float:
        """What rewards are scaled by."""
        return float(self.config.loss.get("beta", 1.0))

    @property
    def num_clients(self) -> int:
        """Clients of the federation, which may be elsewhere."""
        return len(self.clients) or self.config.client_num_in_total

    @property
    def clients_per_round(self) -> int:
        """Clients that train in a round."""
        return min(self.config.clients_per_round or self.num_clients, self.num_clients)

    def pairs(self, client_id: int) -> ClientPairs:
        """The pairs of a client whose rows are here, tokenized now."""
        rows = self.split.clients[client_id]
        return ClientPairs(self.tokens(rows.train), self.tokens(rows.held_out))


def processes(config: Config) -> int:
    """Processes that a run on this machine takes.

    Raises:
        ValueError: If the configuration asks for numbers that do not go together.
    """
    on_gpus = (config.device or "cuda").startswith("cuda") and torch.cuda.is_available()
    usual = max(torch.cuda.device_count(), 1) if on_gpus and config.trainer != "BasicTrainer" else 1
    if config.engine == "ray":
        return 1  # Ray starts the others
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
    strategy = _make_strategy(config, given)
    plan = _base(settings, device, lambda: shared_out(config, given), tokenize)
    clients = holders = [plan.pairs(k) for k in range(len(plan.split.clients))]
    if config.mode == "centralized":
        clients = [ClientPairs([e for c in clients for e in c.train], [e for c in clients for e in c.held_out])]
    plan = replace(plan, clients=clients, holders=holders)
    _check_scoring(plan, strategy)
    _check_decay(plan, strategy)
    own = (example for client in clients for example in (*client.train, *client.held_out))
    check_lengths(plan, (*own, *plan.validation, *plan.test))
    return plan


def prepare_client(settings: Settings, device: torch.device, own: Loaded | None = None) -> Plan:
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
    settings: Settings,
    device: torch.device,
    split_all: Callable[[], tuple[Split, dict[str, int]]],
    tokenize: Callable[..., list[Example]],
) -> Plan:
    """The plan, but for the clients' pairs."""
    config, given = settings.config, settings.given
    cpu = _set_up_torch(config)
    mesh = arrange(config.clients_in_parallel if config.engine == "local" else 1, device)
    _check_mesh(mesh, config, given)
    loss = components.bind("loss", config.loss, given)
    by_pair = stands_alone(loss)
    mods = [*privacy_mods(config.privacy), *(_mod(path) for path in config.client_mods)]
    split, skipped = split_all()
    policy = _policy(config, device, mesh)
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


def local_settings(plan: Plan) -> LocalSettings:
    """The keys of the configuration that local training knows under the same name."""
    names = LocalSettings.__dataclass_fields__.keys() & Config.__dataclass_fields__.keys() - {"loss"}
    same = {name: getattr(plan.config, name) for name in names}
    return LocalSettings(loss=plan.loss, beta=plan.beta, supervised=plan.supervised, by_pair=plan.by_pair, **same)


def references(plan: Plan, model: str, policy: Policy | None = None) -> Callable[..., list[Example]]:
    """`fed.model.references.with_reference` as this run uses it, for a model of that hash; `policy`: not for everyone."""
    return functools.partial(
        with_reference,
        policy or plan.everyone,
        batch_size=plan.config.eval_batch_size,
        cache=Path(plan.config.cache_dir) / "reference",
        weights_hash=model,
    )


def _check_mesh(mesh: Mesh, config: Config, given: frozenset[str]) -> None:
    """What would do nothing with these processes, or leave some of them nothing to do."""
    _check_trainer(config, mesh.world.count)
    for key, alone in (
        ("process_timeout", mesh.world.count == 1 and config.engine == "local"),
        ("cpu_offload", mesh.own.count == 1),
    ):
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
    if config.accuracy_on == "test" and not plan.test:
        raise ValueError("accuracy_on=test but there are no test pairs; give datasets, or use accuracy_on=client")
    if config.accuracy_on == "server" and not plan.validation:
        raise ValueError(f"accuracy_on=server but {_no_pairs(config)}, or use accuracy_on=client")


def _check_decay(plan: Plan, strategy: Strategy) -> None:
    if asks(strategy, "needs_server_accuracy") and not plan.validation:
        raise ValueError(
            "the strategy decays clients that do not beat the server's accuracy on its own pairs, but "
            f"{_no_pairs(plan.config)}, or use strategy=fedpo decay_rate=1"
        )


def _no_pairs(config: Config) -> str:
    """Why the server has nothing to validate on, and what gives it something."""
    if not config.datasets:
        return "datasets=[] leaves the server no pairs; give it a data set"
    return f"server_fraction={config.server_fraction} leaves the server no pairs; raise it"


def check_lengths(plan: Plan, examples: Iterable[Example]) -> None:
    """Positions a model was not made for are an index error in some and nonsense in others.

    Raises:
        ValueError: If an example has more tokens.
    """
    positions = getattr(plan.policy.model.config, "max_position_embeddings", None)
    longest = max((example.length for example in examples), default=0)
    if positions is not None and longest > positions:
        raise ValueError(
            f"max_length={plan.config.max_length} allows pairs of {longest} tokens but the model has {positions} "
            f"positions; use max_length={positions} and a smaller max_prompt_length"
        )
