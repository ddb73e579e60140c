"""Keys of the run as a whole."""

from dataclasses import dataclass, field

from fed.config.conditions import AT_LEAST_0, AT_LEAST_1, DEBUG, NOT_LOCAL
from fed.config.groups import TensorBoardSettings
from fed.config.meaning import Limits, Scope, at, key, unless

# Asked for many more, the library that starts the threads ends the process without a word.
THREADS = Limits(at_least=1, at_most=1024)


@dataclass
class RunKeys:
    """The run."""

    exp_name: str = key(
        "fedpo", "Name of the experiment, and of the folder of its runs.", scope=Scope("place", resume="finds")
    )
    engine: str = key(
        "local",
        "What carries the run out: `local`: this program; `ray`: Flower's simulation. `flwr run` sets `flower`.",
        choices=("local", "ray", "flower"),
    )
    mode: str = key(
        "federated",
        "`federated`: clients train and the server combines; `centralized`: one client holds all pairs; `local`: every "
        "client trains alone.",
        choices=("federated", "centralized", "local"),
    )
    seed: int = key(0, "Seed of everything drawn.", AT_LEAST_0, scope=Scope("repetition"))
    deterministic: bool = key(False, "Refuse operations whose result may vary from run to run.")
    debug: bool = key(False, "Keep the metrics and save no model.")
    resume: str | None = key(
        None,
        "Folder of a run to resume; `latest`: the newest one of `exp_name` that is not in use. "
        "[reliability.md](reliability.md) says how.",
        scope=Scope("place", resume="finds"),
    )
    resume_trusts: bool = key(
        False,
        "Let the folder of `resume=` name code of others (strategies, losses, mods), which then runs.",
        idle=(at("resume", None),),
        scope=Scope("place", resume="finds"),
    )
    checkpoint_every: int = key(
        1,
        "Rounds between checkpoints; 0: none, so that a run that is cut off begins again.",
        AT_LEAST_0,
        idle=(DEBUG,),
        scope=Scope("upkeep", resume="free"),
    )
    checkpoint_keep: int = key(
        2,
        "So many checkpoints are kept, the newest ones. The best one is kept besides.",
        AT_LEAST_1,
        idle=(DEBUG, at("checkpoint_every", 0)),
        scope=Scope("upkeep", resume="free"),
    )
    checkpoint_within_round: bool = key(
        True,
        "Keep each client's result within a round, so that resuming does not train it again.",
        idle=(
            DEBUG,
            unless("checkpoint_every", 1, "checkpoint_every other than 1"),
            NOT_LOCAL,
        ),
        scope=Scope("upkeep", resume="free"),
    )
    output_dir: str = key("data", "Runs go to `output_dir/exp_name/date_time`.", scope=Scope("place", resume="finds"))
    cache_dir: str = key(
        ".cache",
        "Folder of what can be made again: reference log-probs, token ids of remote clients, downloads.",
        scope=Scope("place", "machine", resume="free"),
    )
    num_threads: int | None = key(
        None,
        "CPU threads; null: measured once for a small model, else as many as the process may use.",
        THREADS,
        scope=Scope("upkeep", "node"),
    )
    device: str | None = key(
        None, "`cpu`, `cuda`, `cuda:1`, ...; null: `cuda` if there is one.", scope=Scope(decider="machine")
    )
    tensorboard: TensorBoardSettings = field(default_factory=TensorBoardSettings)
