"""Trained policies, found by the folder of their run, their own directory or their hub name, and their references."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from fed.config.explain import listed
from fed.config.groups import LoraSettings, ModelSettings
from fed.config.schema import Config
from fed.data.chat import read_template
from fed.data.collate import Layout
from fed.model import weight_files
from fed.model.loading import load_policy
from fed.model.lora import named_base
from fed.model.placement import Placement
from fed.model.policy import Policy
from fed.model.pretrained import quiet_libraries
from fed.seeding import seed_globals
from fed.tracking.recorded import recorded_settings
from fed.tracking.run_files import CHECKPOINTS, CONFIG, POLICY

LONGEST = 1024  # tokens of a prompt and response, of a policy whose run is not known


@dataclass(frozen=True)
class Loading:
    """The way a policy is loaded.

    Attributes:
        device: Where it computes.
        dtype: Type of the weights; None: that of the run, else float32.
        max_length: Tokens of the longest sequence it will read.
        trust_remote_code: Run Python code that lies beside the weights.
    """

    device: torch.device
    dtype: str | None = None
    max_length: int = 512
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Found:
    """A model and the way to load it.

    Attributes:
        name: What the user called it.
        model: The files of its weights, or of those below its adapter.
        adapter: A trained adapter on them, by directory or hub name; None: there is none.
        checkpoint: A folder of trained weights that replace those of the model; None: there is none.
        lora: The adapter whose weights the checkpoint holds.
        reference: What it was trained against, if that is known and another model; an adapter's is its base.
        run: The folder of the run that trained it; None: it is not known.
        config: The settings of that run.
    """

    name: str
    model: ModelSettings
    adapter: str | None = None
    checkpoint: Path | None = None
    lora: LoraSettings | None = None
    reference: "Found | None" = None
    run: Path | None = None
    config: Config | None = None

    @property
    def has_adapter(self) -> bool:
        """True if the policy with its adapter off is its own reference."""
        return self.adapter is not None or bool(self.lora and self.lora.r)

    def longest(self, wanted: int | None) -> int:
        """Return the tokens of the longest prompt and response together: as wanted, else as its run had it."""
        if wanted is not None:
            return wanted
        return LONGEST if self.config is None else self.config.max_length


def find(name: str, server_round: str | None = None) -> Found:
    """Find a policy.

    Args:
        name: The folder of a run, a directory of weights or of an adapter, or a name on the hub.
        server_round: A round of which the run has a checkpoint, or "best"; "0": what the run began with; None: the
            trained policy.

    Raises:
        ValueError: If there is none.
    """
    folder = Path(name).expanduser()
    if (folder / CONFIG).is_file():
        return _of_run(name, folder, server_round)
    if server_round is not None:
        raise ValueError(f"round={server_round} needs the folder of a run, which has a {CONFIG}; {name} has none")
    return _of_files(name)


def _of_files(name: str) -> Found:
    folder = Path(name).expanduser()
    if folder.is_dir() and not any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
        raise ValueError(
            f"{name} holds no policy: neither {CONFIG} of a run nor config.json or adapter_config.json of a model"
        )
    if not (folder / "adapter_config.json").is_file():
        return Found(name, ModelSettings(name_or_path=name))
    if (base := named_base(name)) is None:
        raise ValueError(f"the adapter {name} does not name the model that it was trained on (base_model_name_or_path)")
    return Found(name, ModelSettings(name_or_path=base, tokenizer_name_or_path=_tokenizer(folder)), adapter=name)


def _tokenizer(folder: Path) -> str | None:
    return str(folder) if (folder / "tokenizer_config.json").is_file() else None


def _of_run(name: str, folder: Path, server_round: str | None) -> Found:
    """Return the policy of a run, or the one of a round.

    Raises:
        ValueError: If the run has no such policy, or its settings cannot be read.
    """
    config = recorded_settings(folder)
    reference = Found(f"the reference of {name}", config.model, run=folder, config=config)
    if server_round in ("0", "round-0"):
        return replace(reference, name=name)
    if server_round is not None:
        return replace(reference, name=name, checkpoint=_checkpoint(folder, server_round), lora=config.lora)
    policy = folder / POLICY
    if not policy.is_dir():
        rounds = listed(_rounds(folder))
        more = f"; round= takes one of {rounds}" if rounds else ""
        raise ValueError(f"{name} has no trained policy: the run has not ended, or kept none{more}")
    found = _of_files(str(policy))
    model = replace(found.model, policy_dtype=config.model.policy_dtype)
    return replace(found, name=name, model=model, reference=reference, run=folder, config=config)


def _checkpoint(folder: Path, server_round: str) -> Path:
    for name in (server_round, f"round-{server_round}"):
        if name in _checkpoints(folder):
            return folder / CHECKPOINTS / name
    raise ValueError(
        f"{folder} has no checkpoint of round={server_round} but {listed(_rounds(folder)) or 'none'}; a run keeps the "
        "newest checkpoint_keep= and the best"
    )


def _checkpoints(folder: Path) -> list[str]:
    """Return the names of the folders of the run's checkpoints."""
    return sorted(path.name for path in (folder / CHECKPOINTS).glob("*") if weight_files.is_checkpoint(path))


def _rounds(folder: Path) -> list[str]:
    return [name.removeprefix("round-") for name in _checkpoints(folder)]


def merged(found: Found) -> Found:
    """Return the policy with its adapter as part of the weights; one without an adapter is returned as it is.

    Raises:
        ValueError: If the adapter is only in a checkpoint.
    """
    if found.adapter is None:
        if found.has_adapter:
            raise ValueError(
                f"the adapter of {found.checkpoint} cannot be merged; give merge=false, or leave round= out"
            )
        return found
    return replace(found, model=replace(found.model, adapter=found.adapter), adapter=None)


def load(found: Found, how: Loading, *, scores: bool = False) -> Policy:
    """Load a policy for reading, or with `scores` a reward model; no gradient is computed for its weights.

    Raises:
        ValueError: If it cannot be loaded.
    """
    quiet_libraries()
    if found.config is not None:  # weights that are drawn, of the demo model for one
        seed_globals(found.config.seed, "model")
    dtype = how.dtype or found.model.policy_dtype
    settings = replace(found.model, policy_dtype=dtype, trust_remote_code=how.trust_remote_code)
    policy = load_policy(
        settings,
        Placement(how.device),
        lora=found.adapter or found.lora,
        layout=Layout(),
        max_length=how.max_length,
        scores=scores,
    )
    if found.checkpoint is not None:
        _fill(policy, found.checkpoint)
    template = None if found.config is None or found.reference is not None else found.config.chat_template
    if template not in (None, "none"):  # a run saves it with its trained policy only
        cast(Any, policy.tokenizer).chat_template = read_template(template)
    if not found.has_adapter:
        policy.model.requires_grad_(False)
    return policy


def _fill(policy: Policy, checkpoint: Path) -> None:
    """Replace the weights that were trained by those of a checkpoint.

    Raises:
        ValueError: If it is damaged, or of another model.
    """
    state, own = weight_files.read(checkpoint), policy.model.state_dict()
    odd = [name for name in state if name not in own or own[name].shape != state[name].shape]
    if odd:
        raise ValueError(f"{checkpoint} is of another model than the run's settings name: {odd[0]} does not fit")
    policy.model.load_state_dict(state, strict=False)
    if policy.scores and "score.weight" in state:
        policy.model.head_is_drawn = False
