"""Settings composed by Hydra outside of `hydra.main`: for Flower's command and for comparisons."""

from collections.abc import Mapping, Sequence

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import open_dict

from fed.config import schema
from fed.config.arguments import check_arguments
from fed.config.checks import Request, checked


def request(arguments: Sequence[str], forced: Mapping[str, object] | None = None) -> Request:
    """Return what `main.py *arguments` would run; `forced` settings win over presets and count as not typed.

    Raises:
        ValueError, HydraException, OmegaConfBaseException: If the settings are refused.
    """
    check_arguments(arguments)
    schema.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(schema.CONFIG_DIR), version_base=None):
        composed = compose("config", list(arguments), return_hydra_config=True)
    if composed.hydra.mode == RunMode.MULTIRUN:
        raise ValueError("experiment= names a sweep, each of whose runs has other settings; run it with main.py")
    choices = dict(composed.hydra.runtime.choices)
    with open_dict(composed):
        del composed["hydra"]
        for key, value in (forced or {}).items():
            composed[key] = value
    return checked(composed, arguments, choices)
