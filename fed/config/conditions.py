"""Limits that several keys have, and conditions under which several keys have no effect."""

from fed.config.meaning import Idle, Limits, at, unless

AT_LEAST_0, AT_LEAST_1, ABOVE_0 = Limits(at_least=0), Limits(at_least=1), Limits(above=0)
PROBABILITY = Limits(at_least=0, at_most=1)
OWN_DATA = "fed.data.partition.OwnData"  # partition._target_ of clients with data of their own

NO_FEDERATION = (
    at("mode", "centralized", "which aggregates nothing"),
    at("mode", "local", "which aggregates nothing"),
)
NOT_LOCAL = unless("engine", "local", "an engine other than local")
ALL_HERE = at("engine", "local", "where all replies come from this program")
NOT_ONLINE = at("online.judge", None)
NO_LORA = at("lora.r", 0)
NOT_PRIVATE = Idle("privacy.kind", lambda kind: kind == "none", "privacy=none")
PRIVATE = Idle("privacy.kind", lambda kind: kind != "none", "privacy=, where replies hold no accuracy")

DEBUG = at("debug", True, "which saves no model")
NO_HELD_OUT = at("client_eval_fraction", 0)
NO_DATASETS = at("datasets", [])


def own_data(why: str) -> Idle:
    """Return the condition that clients have data of their own."""
    return Idle("partition._target_", lambda path: path == OWN_DATA, f"partition=own, where {why}")


def only_demo(why: str) -> Idle:
    """Return the condition that the demo's data set is the only one."""
    return Idle(
        "datasets", lambda names: isinstance(names, list) and set(names) == {"demo"}, f"datasets=[demo], which {why}"
    )


def on_a_device() -> Idle:
    """Return the condition that the run computes on a device other than the CPU."""
    return Idle(
        "device",
        lambda device: device is not None and str(device).partition(":")[0] != "cpu",
        "a device that is not the CPU",
    )
