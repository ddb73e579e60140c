"""Loads and checks what a run needs, before anything is written."""

import functools
import logging
from collections.abc import Callable

import torch
from flwr.clientapp.typing import Mod
from flwr.serverapp.strategy import Strategy

from clients.privacy import privacy_mods
from fed.config import components
from fed.config.checks import Request
from fed.config.explain import counted
from fed.config.schema import Config
from fed.data.rows import Loaded
from fed.data.source import Reading
from fed.distributed.ranks import arrange
from fed.model.policy import Policy
from fed.model.pretrained import quiet_libraries
from fed.tracking import steps
from losses.trial import stands_alone
from run.data import OwnedRows, one_clients, reading_of, shared_out
from run.data_checks import check_lengths, check_reward, check_scoring
from run.folder import is_finished
from run.machine import choose_matmul, chosen_threads, make_policy, set_up_torch
from run.online import judge_for
from run.pairs import all_pairs, pairs_on_demand
from run.plan import Machine, Objective, Pairs, Plan
from run.processes import check_mesh
from server.privacy import protected
from server.traits import check_strategy


def prepare(request: Request, device: torch.device) -> Plan:
    """Load and check everything; nothing is written but to `cache_dir`.

    Args:
        request: What was typed.
        device: The device of this process, which has joined the others.

    Raises:
        ValueError: Naming the value, what was expected, and the way out.
    """
    config, given = request.config, request.given
    _quiet_libraries()
    if config.resume is not None and is_finished(config):
        has = f"this run has finished its {counted(config.comm_round, 'round')}"
        steps.remark(f"{has}: nothing is trained; comm_round=N gives it more")
    strategy = _make_strategy(config, given)

    def load_rows(objective: Objective) -> OwnedRows:
        steps.say(f"reading the data: {'+'.join(config.datasets) or 'none'}")
        rows = shared_out(config, given, reading_of(config, supervised=objective.supervised))
        steps.say(f"loading the model: {config.model.gguf_file or config.model.name_or_path}")
        return rows

    def make_pairs(rows: OwnedRows, policy: Policy, supervised: bool) -> Pairs:
        split = rows.split
        of_clients = sum(len(client.train) + len(client.held_out) for client in split.clients)
        steps.say(f"making tokens of {of_clients + len(split.validation) + len(split.test):,} pairs")
        pairs = all_pairs(rows, policy, config, supervised=supervised)
        check_scoring(config, pairs, strategy)
        own = (part for client in pairs.clients for part in (client.train, client.held_out))
        check_lengths(policy, config.max_length, (*own, pairs.validation, pairs.test))
        return pairs

    return _plan(request, device, load_rows, make_pairs)


def prepare_client(request: Request, device: torch.device, own: Callable[[Reading], Loaded] | None) -> Plan:
    """Load and check what a process needs to be one client, or several in turn.

    A client's pairs are tokenized when they are asked for; token ids stay in `cache_dir` for the next process.

    Args:
        request: The run's settings as the server has them, but for what this process overrides.
        device: The device of this process.
        own: Reads the rows of the only client here, which nobody else has; None: clients share the data sets.

    Raises:
        ValueError: As `prepare`.
    """
    config = request.config
    _quiet_libraries()

    def load_rows(objective: Objective) -> OwnedRows:
        reading = reading_of(config, supervised=objective.supervised)
        return shared_out(config, request.given, reading) if own is None else one_clients(own(reading), config)

    return _plan(request, device, load_rows, lambda rows, policy, _: pairs_on_demand(rows, policy, config))


def _plan(
    request: Request,
    device: torch.device,
    load_rows: Callable[[Objective], OwnedRows],
    make_pairs: Callable[[OwnedRows, Policy, bool], Pairs],
) -> Plan:
    config, given = request.config, request.given
    memory = set_up_torch(config)
    mesh = arrange(config.clients_in_parallel if config.engine == "local" else 1, device)
    check_mesh(mesh, config, given)
    objective = objective_of(config, given)
    if objective.scores:
        check_reward(config)
    mods = [*privacy_mods(config.privacy), *(_mod(path) for path in config.client_mods)]
    judge = judge_for(config, device, mesh.world.count, supervised=objective.supervised)
    rows = load_rows(objective)
    policy = make_policy(config, device, mesh, scores=objective.scores)
    library = choose_matmul(policy, config, mesh.world)
    cpu = [str(chosen_threads(policy, config, mesh.world)), memory, *([] if library is None else [str(library)])]
    return Plan(
        config=config,
        given=given,
        machine=Machine(mesh, ", ".join(cpu), None if library is None else library.library),
        policy=policy,
        objective=objective,
        pairs=make_pairs(rows, policy, objective.supervised),
        mods=mods,
        judge=judge,
        make_strategy=functools.partial(_make_strategy, config, given),
    )


def objective_of(config: Config, given: frozenset[str]) -> Objective:
    """Return the loss that the settings name, and what training and evaluation must know about it.

    Raises:
        ValueError: If it cannot be used.
    """
    loss = components.bind("loss", config.loss, given)
    return Objective(
        loss=loss,
        beta=float(config.loss.get("beta", 1.0)),
        supervised=getattr(loss.func, "supervised", False),
        by_pair=stands_alone(loss),
        scores=getattr(loss.func, "scores", False),
    )


def _make_strategy(config: Config, given: frozenset[str]) -> Strategy:
    """Return a federation's strategy, with the noise that `privacy=` asks for."""
    strategy = components.create("strategy", config.strategy, given)
    if not isinstance(strategy, Strategy):
        raise ValueError(
            f"strategy._target_={config.strategy['_target_']} makes something other than a Flower Strategy: "
            f"{type(strategy).__name__}; expected a subclass of flwr.serverapp.strategy.Strategy"
        )
    num_clients = config.num_clients if config.mode == "federated" else 1
    check_strategy(strategy, num_clients)
    return protected(strategy, config.privacy, num_clients)


def _mod(path: str) -> Mod:
    mod: Mod = components.imported("client_mods", path)
    components.check_call(f"client_mods={path}", mod, 3, {})  # message, context, next
    return mod


def _quiet_libraries() -> None:
    quiet_libraries()
    logging.getLogger("flwr").addFilter(_is_useful)


def _is_useful(record: logging.LogRecord) -> bool:
    """Keep Flower's warnings, but for those that the user of this program can do nothing about."""
    known = (
        "fraction_evaluate is set to 0.0",  # the strategies' YAML files set it so
        "`run_simulation` function is deprecated",  # by engine=ray; pyproject.toml names versions that have it
    )
    return record.levelno >= logging.WARNING and not any(text in record.getMessage() for text in known)
