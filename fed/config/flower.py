"""Settings that Flower carries: from `flwr run -c`, from the server to clients, and from `--node-config`."""

import functools
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fed.config import composing
from fed.config.checks import Request
from fed.config.explain import explain, listed, nearest, refusal
from fed.config.plain import as_nodes, from_plain
from fed.config.schema import Config
from fed.config.scopes import decided_by
from fed.errors import Refused

SETTINGS = "settings"  # the one key of `[tool.flwr.app.config]`
PARTITION_ID = "partition-id"  # Flower's own number of a node
DATA, FORMAT = "data", "dataset"  # a node's file of pairs, and the data set whose format it has
POLICY = "policy"  # a node's file that says what a run may do there
INSISTED = KIND, LEAST = "privacy.kind", "privacy.noise_multiplier"  # what a node's owner demands of a run
NO_SETTINGS = (DATA, FORMAT, POLICY, *INSISTED)
FLOWERS_OWN = (PARTITION_ID, "num-partitions")
FORCED = {"engine": "flower", "trainer": "BasicTrainer"}


def run_settings(run_config: Mapping[str, Any]) -> Request:
    """Return the settings that `flwr run . NAME -c 'settings="KEY=VALUE ..."'` gave; a shell's quotes work.

    Raises:
        ValueError: As the command line's checks do.
    """
    text = str(run_config.get(SETTINGS, ""))
    try:
        arguments = shlex.split(text)
    except ValueError as error:
        raise ValueError(
            f"{SETTINGS}={text!r} cannot be read: {str(error).lower()}; expected KEY=VALUE KEY=VALUE ..., with spaces "
            "in a value quoted"
        ) from error
    try:
        return composing.request(arguments, FORCED)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(refusal(error)) from error


def to_text(request: Request) -> str:
    """Return the settings as the server sends them to clients."""
    return json.dumps({"config": asdict(request.config), "given": sorted(request.given)})


@functools.lru_cache(1)  # a worker of Ray gets the same with every message
def from_text(text: str) -> Request:
    """Return the settings that `to_text` was given.

    Raises:
        Refused: If they are no settings of this program.
    """
    try:
        sent = json.loads(text)
        return Request(from_plain(sent["config"]), frozenset(sent["given"]))
    except Exception as error:  # whatever a server may send
        raise Refused(
            f"the server's settings cannot be read here: {type(error).__name__}: {error}; both need the same version"
        ) from error


def node_settings(request: Request, node_config: Mapping[str, Any]) -> Request:
    """Return the run's settings with those that the node decides; a node with data takes no path or device over.

    Raises:
        ValueError: If the node names a key that it cannot decide, or a value of the wrong type.
    """
    own = {key: value for key, value in node_config.items() if key not in (*NO_SETTINGS, *FLOWERS_OWN)}
    of_the_node = (*decided_by("machine"), *decided_by("node"))
    for key in own:
        if key not in of_the_node:
            known = (*NO_SETTINGS, *of_the_node)
            raise ValueError(f"--node-config has {key}; a node may set only {listed(known)}{nearest(key, known)}")
    if POLICY in node_config and DATA not in node_config:
        raise ValueError(f"--node-config has {POLICY} but no {DATA}: a node without pairs of its own has no owner")
    if not own and DATA not in node_config:
        return request
    config = request.config
    if DATA in node_config:
        usual = Config()
        config = replace(config, **{key: getattr(usual, key) for key in decided_by("machine")})
    merged = as_nodes(asdict(config))
    try:
        for key, value in own.items():
            OmegaConf.update(merged, key, None if value == "null" else value)
    except OmegaConfBaseException as error:
        raise ValueError(f"--node-config: {explain(str(error))}") from error
    return replace(request, config=OmegaConf.to_object(merged))  # type: ignore[arg-type]
