"""Checks of values against each other."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fed.config.schema import Config, has_own_data

# Flower's wrappers that leave the clipping, and so the privacy, to a mod of the clients.
CLIPPING_MODS = {
    "DifferentialPrivacyClientSideFixedClipping": "flwr.clientapp.mod.fixedclipping_mod",
    "DifferentialPrivacyClientSideAdaptiveClipping": "flwr.clientapp.mod.adaptiveclipping_mod",
}

COLUMNS = ("group", "rows", "first_row")  # of the table that partitioners divide, as fed/data/divide.py makes it


def check_combinations(config: Config) -> None:
    """Refuse values that cannot work together.

    Raises:
        ValueError: Naming the values, and the way out.
    """
    _check_clients(config)
    _check_engine(config)
    _check_own_data(config)
    _check_forms(config)
    _check_sizes(config)
    _check_adapter(config)
    _check_strategy(config)
    _check_privacy(config)
    _check_online(config)


def _check_online(config: Config) -> None:
    if config.online.judge is None:
        return
    if config.engine != "local":
        raise ValueError(f"online.judge={config.online.judge} needs engine=local: clients elsewhere do not judge yet")
    if (longest := config.online.max_new_tokens or 0) > (room := config.max_length - config.max_prompt_length):
        raise ValueError(
            f"online.max_new_tokens={longest} is more than the {room} tokens that max_length={config.max_length} "
            f"leaves beside max_prompt_length={config.max_prompt_length}; lower it, or raise max_length"
        )
    if config.mode == "local" and config.online.client_eval_prompts:
        raise ValueError("online.client_eval_prompts has no effect with mode=local, where no server asks; leave it out")
    if config.mode == "centralized":
        raise ValueError(
            "mode=centralized has no clients that make pairs of their own; use mode=federated or mode=local"
        )


def _check_clients(config: Config) -> None:
    total = config.num_clients
    if config.clients_per_round is not None and config.clients_per_round > total:
        raise ValueError(f"clients_per_round={config.clients_per_round} is more than client_num_in_total={total}")
    if config.faults.byzantine_clients > total:
        raise ValueError(
            f"faults.byzantine_clients={config.faults.byzantine_clients} is more than client_num_in_total={total}"
        )
    trained = config.clients_per_round or total
    if config.mode != "federated":
        return
    if config.min_fit_clients > trained:
        raise ValueError(f"min_fit_clients={config.min_fit_clients} is more than the {trained} clients of a round")
    if config.clients_in_parallel > trained:
        raise ValueError(
            f"clients_in_parallel={config.clients_in_parallel} is more than the {trained} clients of a round; lower it"
        )


def _check_engine(config: Config) -> None:
    if config.engine == "local":
        return
    if config.mode != "federated":
        raise ValueError(f"mode={config.mode} needs engine=local: a run of one client has nothing to send")
    if config.trainer != "BasicTrainer" or config.trainer_processes is not None:
        raise ValueError(
            f"engine={config.engine} trains each client in one process; use trainer=BasicTrainer without "
            "trainer_processes, or engine=local"
        )


def _check_own_data(config: Config) -> None:
    if not has_own_data(config):
        if not config.datasets:
            raise ValueError("datasets is empty; give at least one, e.g. datasets=[hh]")
        return
    if config.mode == "centralized":
        raise ValueError("mode=centralized pools all pairs, which partition=own leaves with the clients")
    files = config.partition.get("client_data")
    if config.engine != "flower" and not files:
        raise ValueError("partition=own needs client_data=[a.jsonl,b.jsonl,...], a file for each client")
    if config.engine == "flower" and files:
        raise ValueError("partition.client_data is refused: with `flwr run` each SuperNode names its own file")
    if config.engine == "flower" and config.accuracy_on != "client":
        raise ValueError(
            f"accuracy_on={config.accuracy_on} with partition=own: SuperNodes do not have the server's pairs; use "
            "accuracy_on=client"
        )
    if config.accuracy_on == "client" and not config.client_eval_fraction:
        raise ValueError("accuracy_on=client but client_eval_fraction=0 leaves clients nothing to score on; raise it")


def _check_forms(config: Config) -> None:
    """Refuse keys about the form of records where every data set has a form of its own, and values of a wrong kind."""
    columns = [name for name, value in asdict(config.columns).items() if value is not None]
    named = [f"columns.{name}" for name in columns] + ["pairs_per_prompt"] * (config.pairs_per_prompt != "all")
    reads_forms = has_own_data(config) or any(name in ("files", "jsonl") or "/" in name for name in config.datasets)
    if named and not reads_forms:
        raise ValueError(
            f"{named[0]} has no effect with datasets=[{','.join(config.datasets)}], whose form is known; it is for "
            "datasets=[files] and data sets of the hub"
        )
    if not isinstance(config.chat_template_kwargs, Mapping | None):
        raise ValueError(
            f"chat_template_kwargs={config.chat_template_kwargs} is no set of values; expected one such as "
            "{enable_thinking:false}"
        )


def _check_sizes(config: Config) -> None:
    if config.max_tokens_per_step is None and config.batch_size % config.gradient_accumulation_steps:
        raise ValueError(
            f"batch_size={config.batch_size} is not divisible by "
            f"gradient_accumulation_steps={config.gradient_accumulation_steps}; batch_size counts the pairs of a "
            "whole step"
        )
    if config.max_length - config.max_prompt_length < 2:
        raise ValueError(
            f"max_length={config.max_length} leaves fewer than 2 response tokens beside "
            f"max_prompt_length={config.max_prompt_length}; raise max_length or lower max_prompt_length"
        )
    if config.precision and config.model.fsdp_policy_mp not in (None, config.precision):
        raise ValueError(
            f"precision={config.precision} and model.fsdp_policy_mp={config.model.fsdp_policy_mp} name two precisions; "
            "leave model.fsdp_policy_mp out or make it null"
        )


def _check_adapter(config: Config) -> None:
    lora, kind = config.lora, config.model.quantization
    if kind is not None and not lora.r:
        raise ValueError(f"model.quantization={kind} freezes the weights, so an adapter must be trained; give lora.r=8")
    beside = [f"lora.bias={lora.bias}"] if lora.bias != "none" else []
    if lora.modules_to_save:
        beside.append(f"lora.modules_to_save=[{','.join(lora.modules_to_save)}]")
    unsplit = [*([f"model.quantization={kind}"] if kind else []), *(["lora.use_dora=true"] * lora.use_dora), *beside]
    if unsplit and config.trainer != "BasicTrainer":
        raise ValueError(
            f"{unsplit[0]} works with trainer=BasicTrainer only: trainer={config.trainer} splits the weights"
        )
    if beside and config.model.policy_dtype != "float32":
        raise ValueError(
            f"{beside[0]} trains float32 weights inside layers of model.policy_dtype={config.model.policy_dtype}, and "
            "torch cannot multiply the two; use model.policy_dtype=float32 precision=bfloat16"
        )


def _check_strategy(config: Config) -> None:
    """Refuse parameters with which Flower would wait for ever or silently skip a step; strategies may be nested."""
    node: Any = config.strategy
    prefix = "strategy"
    while isinstance(node, Mapping):
        for key in ("fraction_train", "fraction_evaluate"):
            value = node.get(key, 0.0)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"{prefix}.{key}={value} is out of range; expected a number from 0 to 1")
        if str(node.get("_target_")).startswith("flwr."):
            _check_flowers_numbers(node, prefix)
        mod = CLIPPING_MODS.get(str(node.get("_target_")).rpartition(".")[2])
        if mod and mod not in config.client_mods:
            raise ValueError(
                f"client_mods={config.client_mods} lacks {mod}: {node['_target_']} adds its noise but clients would "
                "not clip; add the mod"
            )
        node, prefix = node.get("strategy"), f"{prefix}.strategy"


def _check_flowers_numbers(node: Mapping[str, Any], prefix: str) -> None:
    """Refuse numbers that Flower's strategies take without complaint and compute nonsense with."""
    malicious, tau = node.get("num_malicious_nodes", 0), node.get("tau", 1.0)
    if isinstance(malicious, int) and malicious < 0:
        raise ValueError(f"{prefix}.num_malicious_nodes={malicious} is out of range; expected at least 0")
    if isinstance(tau, int | float) and not tau > 0:  # Flower divides by it
        raise ValueError(f"{prefix}.tau={tau} is out of range; expected more than 0")


def _check_privacy(config: Config) -> None:
    privacy = config.privacy
    if privacy.kind == "none":
        return
    if privacy.seeded_noise and has_own_data(config) and config.engine == "flower":
        raise ValueError(
            "privacy.seeded_noise=true with SuperNodes of their own data: whoever knows the seed subtracts the noise; "
            "leave it out"
        )
    if not privacy.seeded_noise and config.checkpoint_every != 1 and not config.debug:
        raise ValueError(
            f"checkpoint_every={config.checkpoint_every} with privacy.seeded_noise=false: a resumed run would draw new "
            "noise in rounds whose cost it has forgotten; use checkpoint_every=1"
        )
    if privacy.kind == "central_dp" and privacy.clipping == "client" and config.wire_dtype != "float32":
        raise ValueError(
            f"wire_dtype={config.wire_dtype} rounds what clients have clipped, so updates may be longer than "
            "privacy.clipping_norm; use privacy.clipping=server or wire_dtype=float32"
        )
    # To publish all that one client has, drawn at random, would be (0, 1/N)-private.
    if not privacy.delta * config.num_clients < 1:
        raise ValueError(
            f"privacy.delta={privacy.delta} is out of range; expected more than 0 and less than 1/client_num_in_total"
        )
