"""The options by which commands say how a policy is loaded."""

from dataclasses import dataclass

from scripts.options import option


@dataclass(frozen=True)
class PolicyOptions:
    """The options of a policy: which of its rounds, and in which type and place its weights compute."""

    round: str | None = option(
        None,
        "A round of which the run has a checkpoint, best, or 0: what the run began with; null: the trained policy.",
    )
    dtype: str | None = option(None, "Type of the weights; null: the run's, else float32.")
    device: str | None = option(None, "cpu, cuda, cuda:1, ...; null: cuda if there is one.")
    trust_remote_code: bool = option(False, "Run Python code that lies beside the weights.")
