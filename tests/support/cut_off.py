"""Runs that get a signal at a random instant and are resumed."""

import os
import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.separate_runs import SMALL, Ended, after, call, launch, only_run, outcome, some_rank

KILLS = int(os.environ.get("FAULTS_KILLS", "3"))  # of each case
ROUNDS = int(os.environ.get("FAULTS_ROUNDS", "200"))  # of the run whose memory is watched
SEED = int(os.environ.get("FAULTS_SEED", "0"))  # of the random instants and bits
ATTEMPTS = 50  # to hit a run after it began and before it ended

CASES = {
    "FeDPO": [],
    "FedAvg, clients evaluate too": ["strategy=fedavg", "strategy.fraction_evaluate=1"],
    "FedAdam": ["strategy=fedadam"],
    "FedMedian": ["strategy=fedmedian"],
    "noise by the server": ["strategy=dp_server_adaptive"],
    "clipping by the clients": ["strategy=dp_client_adaptive"],
    "noise that is accounted for": ["privacy=central_dp", "strategy=fedavg"],
    "noise by every client": ["privacy=local_dp", "strategy=fedmedian"],
    "two of three clients a round": ["clients_per_round=2"],
    "optimizers that persist": ["client_optimizer=persist", "optimizer=AdamW", "lr=1e-4"],
    "an adapter with dropout": ["lora.r=2", "lora.dropout=0.2", "lr=1e-3"],
    "every client alone": ["mode=local"],
    "responses drawn": ["sample_during_eval=true", "n_eval_model_samples=2"],
    "fresh pairs": ["online.judge=lexicon", 'online.rule="{per_word: 1}"', "online.every=2", "max_length=112"],
    "clients that count wins": [
        *("online.judge=lexicon", 'online.rule="{per_word: 1}"', "online.client_eval_prompts=2", "max_length=112"),
        *("strategy=fedavg", "strategy.fraction_evaluate=1"),
    ],
    "a reward model": ["loss=reward", "lr=1e-3"],
    "clients that fail": ["faults.dropout_rate=0.2", "faults.nan_rate=0.2"],
    "two processes that share a model": ["trainer=FSDPTrainer", "trainer_processes=2"],
    "two clients at once": ["clients_in_parallel=2", "client_optimizer=persist"],
}


def random_of(*place: object) -> random.Random:
    """Return a generator for one test; it depends on the seed and the test only, not on what ran before."""
    return random.Random(" ".join(map(str, (SEED, *place))))


@dataclass(frozen=True)
class Whole:
    """A run that nothing happened to."""

    seconds: float
    outcome: dict[str, Any]


class WholeRuns:
    """The whole run of each case; a case runs when its first test asks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: dict[str, Whole] = {}

    def __getitem__(self, name: str) -> Whole:
        if name not in self._found:
            folder = self._folder / str(len(self._found))
            folder.mkdir()
            began = time.monotonic()
            ended = _start(name, folder)
            seconds = time.monotonic() - began
            run = only_run(folder)
            assert ended.code == 0 and run is not None, ended.text[-2000:]
            self._found[name] = Whole(seconds, outcome(run))
            shutil.rmtree(folder)
        return self._found[name]


def check_resumes(name: str, number: int, whole: Whole, folder: Path, rng: random.Random) -> None:
    """Send a run of this case the signal at a random instant, resume it, and compare what it leaves."""
    instant, first = _cut_off(name, number, whole.seconds, folder, rng)
    second = (launch if _several(name) else call)(folder, "resume=latest", "output_dir=runs")
    told = f"{name}, after {instant:.2f} s: exit codes {first.code}, {second.code}: {second.text[-2000:]}"
    assert number == signal.SIGKILL or first.code == 128 + number, told
    assert second.code == 0, told
    run = only_run(folder)
    assert run is not None and outcome(run) == whole.outcome, told


def _cut_off(name: str, number: int, seconds: float, folder: Path, rng: random.Random) -> tuple[float, Ended]:
    """Start the run until one began and did not end before the signal; return the instant and its end."""
    begun, done = 0.1 * seconds, 0.95 * seconds  # what lies between has begun and not ended, if the load is the same
    for _ in range(ATTEMPTS):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        instant = rng.uniform(begun, done)
        choose = some_rank(rng) if _several(name) and number == signal.SIGKILL else lambda pid: pid
        ended = _start(name, folder, during=after(instant, number, choose))
        run = only_run(folder)
        if run is not None and not (run / "summary.json").exists():
            return instant, ended
        if run is None:
            begun = max(begun, instant)
        else:
            done = min(done, instant)
        if done - begun < 0.05 * seconds:
            begun, done = 0.1 * seconds, 1.5 * seconds
    raise AssertionError(f"{name}: no run was hit in {ATTEMPTS} attempts")


def _several(name: str) -> bool:
    """Return True if the case runs in several processes."""
    return any(word.startswith(("trainer=", "clients_in_parallel=")) for word in CASES[name])


def _start(name: str, folder: Path, **how: Any) -> Ended:
    return (launch if _several(name) else call)(folder, *SMALL, *CASES[name], **how)
