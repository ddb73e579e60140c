"""Folders of finished runs, made in milliseconds of invented numbers that agree with each other.

Shapes: C evaluated models (1; the clients in mode=local), R rounds with round 0, P test pairs.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from fed.intervals import wilson
from fed.reports.runs import Run
from fed.seeding import generator

BETA = 0.1
DECAYS = {"decay": 0.995, "decay_next": 0.995}
BYTES_PER_VISIT = 4_000_000  # to a client, and again from it
SECONDS_PER_PAIR = {"federated": 0.05, "centralized": 0.04, "local": 0.045}
SECONDS_BEFORE_TRAINING = 12.0

Row = dict[str, object]


@dataclass(frozen=True)
class Made:
    """The numbers that a fabricated run is made from."""

    mode: str  # federated, centralized or local
    seed: int  # of all numbers; runs of one seed share their test pairs, runs of different seeds share some
    rounds: int = 6  # after round 0, each with an evaluation
    pairs_per_round: int = 320  # trained by all clients together
    num_clients: int = 4  # that hold data; in mode=local each is evaluated
    num_pairs: int = 128  # to be ranked; about every fourth shares its conversation with another
    samples: int = 2  # prompts with responses, in each round and from each model
    skill: float = 0.4  # 0 learns nothing, 0.4 ranks about two of three pairs correctly in the end

    @property
    def models(self) -> list[str]:
        """The names of the models that are evaluated on the test pairs, (C,)."""
        return [f"client-{k}" for k in range(self.num_clients)] if self.mode == "local" else ["server"]

    def trained(self, server_round: int, model: int) -> int:
        """Return the pairs until a round of a model; in mode=local the models before it have had all their rounds."""
        return (model * self.rounds + server_round) * (self.pairs_per_round // len(self.models))


def fabricate(folder: Path, *, mode: str, seed: int, **sizes: Any) -> Run:
    """Write the folder of a finished run; the same arguments give the same numbers. `Made` has the sizes."""
    made = Made(mode, seed, **sizes)
    margins = _margins(made)
    folder.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(_config(made, folder.name)), folder / "config.yaml")
    _write(folder / "environment.json", [_environment(made)])
    _write(folder / "partition.json", [_partition(made)])
    _write(folder / "metrics.jsonl", _metrics(made, margins))
    rows = [(r, k, who) for k, who in enumerate(made.models) for r in range(made.rounds + 1)]
    split = {"split": "test"}
    _write(
        folder / "margins.jsonl",
        ({"round": r, "who": who, **split, "margins": margins[k, r].tolist()} for r, k, who in rows),
    )
    _write(folder / "timing.jsonl", _timing(made))
    _write(folder / "samples.jsonl", (row for r, _, who in rows for row in _samples(made, r, who)))
    _write(folder / "summary.json", [_summary(made, folder)])
    return Run(folder)


def with_metrics(run: Run, **columns: Sequence[float | None]) -> Run:
    """Give the run these metrics on the test pairs, by round from 0 on; None removes a metric."""
    path, lines = run.folder / "metrics.jsonl", []
    for line in map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines()):
        if line["split"] == "test" and line["who"] in ("server", "clients"):
            line |= {name: values[line["round"]] for name, values in columns.items()}
        lines.append(line)
    _write(path, lines)
    return Run(run.folder)


def with_validation(run: Run, accuracies: Mapping[str, Sequence[float]]) -> Run:
    """Give the server or clients these accuracies on validation pairs, by round from 0 on, and nobody else any."""
    path = run.folder / "metrics.jsonl"
    lines = [line for line in map(json.loads, path.read_text().splitlines()) if line["split"] != "validation"]
    for who, by_round in accuracies.items():
        for server_round, accuracy in enumerate(by_round):
            place = {"round": server_round, "who": who, "split": "validation", "pairs": 0}
            lines.append({**place, "accuracy": accuracy})
    _write(path, lines)
    return Run(run.folder)


def with_margins(run: Run, by_round: Mapping[int, Sequence[Sequence[float]]]) -> Run:
    """Give the run these margins only, (C, P) by round."""
    made = [f"client-{k}" for k in range(100)] if run.mode == "local" else ["server"]
    rows = [(r, who, own) for r, every in by_round.items() for who, own in zip(made, every, strict=False)]
    _write(
        run.folder / "margins.jsonl",
        ({"round": r, "who": who, "split": "test", "margins": own} for r, who, own in rows),
    )
    return Run(run.folder)


def _margins(made: Made) -> NDArray[np.float64]:
    """Return reward margins, (C, R, P): a part of the pair, a part of the model, and progress that slows down."""
    ease_P = generator(made.seed, "fabricated pairs").normal(size=made.num_pairs)
    ease_P -= ease_P.mean()
    rng = generator(made.seed, f"fabricated {made.mode}", round(1000 * made.skill))
    shape = (len(made.models), made.rounds + 1, made.num_pairs)
    own = 0.1 * rng.normal(size=shape[:1])[:, None, None] + 0.3 * rng.normal(size=shape)
    progress_R = 1 - 0.6 ** np.arange(made.rounds + 1)
    margins: NDArray[np.float64] = progress_R[:, None] * (ease_P + own) + made.skill * progress_R[:, None] ** 2
    margins[:, 0] = 0.0  # before training all pairs tie
    return margins


def _metrics(made: Made, margins: NDArray[np.float64]) -> Iterator[Row]:
    if made.mode == "local":  # one client after the other, then all together
        for k, who in enumerate(made.models):
            for r in range(made.rounds + 1):
                yield _line(made, r, who, "test", _evaluated(made, margins[k, r], r, k))
    for r in range(made.rounds + 1):
        if made.mode == "federated":
            yield from _of_clients(made, r)
        if made.mode == "local":
            each = [_evaluated(made, own, r, k) for k, own in enumerate(margins[:, r])]
            yield _line(made, r, "clients", "test", _over_clients(each))
        else:
            yield _line(made, r, "server", "test", _evaluated(made, margins[0, r], r))


def _of_clients(made: Made, server_round: int) -> Iterator[Row]:
    """Yield the reports of clients and server on a round of training."""
    if server_round == 0:
        return
    rng = generator(made.seed, "fabricated clients", server_round)
    accuracies = np.clip(rng.normal(0.55 + 0.02 * server_round, 0.03, made.num_clients), 0, 1)
    weights = np.exp(accuracies) / np.exp(accuracies).sum()
    for k in range(made.num_clients):
        who = f"client-{k}"
        yield _line(made, server_round, who, "train", {"loss": 0.6, "accuracy": accuracies[k]} | DECAYS)
        yield _line(made, server_round, who, "validation", {"accuracy": accuracies[k], "loss": 0.65, "examples": 64})
        yield _line(made, server_round, who, "aggregate", {"weight": weights[k]})
    sent = made.num_clients * BYTES_PER_VISIT
    yield _line(made, server_round, "server", "communication", {"bytes_sent": sent, "bytes_received": sent})


def _line(made: Made, server_round: int, who: str, split: str, metrics: dict[str, float]) -> Row:
    alone = made.mode == "local" and who in made.models
    pairs = made.trained(server_round, made.models.index(who)) if alone else made.pairs_per_round * server_round
    return {
        "round": server_round,
        "who": who,
        "split": split,
        "pairs": pairs,
        **{k: float(metrics[k]) for k in metrics},
    }


def _evaluated(made: Made, margins_P: NDArray[np.float64], server_round: int, model: int = 0) -> dict[str, float]:
    """Return the metrics that `fed.model.evaluation` would; the loss is DPO's, and the log-ratio is invented."""
    accuracy = float((margins_P > 0).mean())
    distance = generator(made.seed, f"fabricated kl {made.mode}", round(1000 * made.skill), model).uniform(0.3, 0.5)
    return {
        "accuracy": accuracy,
        "accuracy_low": wilson(accuracy, len(margins_P))[0],
        "accuracy_high": wilson(accuracy, len(margins_P))[1],
        "ties": float((margins_P == 0).mean()),
        "margin": float(margins_P.mean()),
        "log_ratio": distance * server_round**1.5,
        "examples": len(margins_P),
        "loss": float(np.logaddexp(0, -margins_P).mean()),
    }


def _over_clients(metrics: list[dict[str, float]]) -> dict[str, float]:
    names = [name for name in metrics[0] if not name.startswith("accuracy_")]
    columns = {name: np.array([of_client[name] for of_client in metrics]) for name in names}
    means = {name: float(column.mean()) for name, column in columns.items()}
    return means | {f"{name}_sd": float(column.std(ddof=1)) for name, column in columns.items() if len(column) > 1}


def _timing(made: Made) -> Iterator[Row]:
    """Yield the wall time since the run began; in mode=local clients train one after the other."""
    for k, who in enumerate(made.models):
        for r in range(made.rounds + 1):
            pairs = made.trained(r, k)
            seconds = SECONDS_BEFORE_TRAINING + SECONDS_PER_PAIR[made.mode] * pairs
            yield {"round": r, "who": who, "pairs": pairs, "wall_seconds": seconds}


def _samples(made: Made, server_round: int, who: str) -> Iterator[Row]:
    for number in range(made.samples):
        prompt = f"\n\nHuman: What is {number} + {number}?\n\nAssistant:"
        reference = f" It is {2 * number + 1}, I <think>."
        policy = reference if server_round == 0 else f" {who} says {2 * number} & means it, round {server_round}."
        texts = {"prompt": prompt, "chosen": f" {2 * number}.", "reference": reference, "policy": policy}
        yield {"round": server_round, "who": who, **texts}


def _partition(made: Made) -> Row:
    rows = np.array_split(np.arange(made.pairs_per_round), made.num_clients)
    drawn = generator(made.seed, "fabricated names").choice(2 * made.num_pairs, made.num_pairs, replace=False).tolist()
    return {
        "num_clients": made.num_clients,
        "num_rows": made.pairs_per_round,
        "cover": True,
        "disjoint": True,
        "unused": [],
        "clients": [{"num_rows": len(part), "groups": {"demo": len(part)}, "rows": part.tolist()} for part in rows],
        "test": {
            "pairs": [f"pair-{i:04}" for i in drawn],
            "conversations": [f"conversation-{i - (i % 8 == 7):04}" for i in drawn],
        },
    }


def _summary(made: Made, folder: Path) -> Row:
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    tests = [line for line in lines if line["split"] == "test" and line["who"] in ("server", "clients")]
    last = [json.loads(text) for text in (folder / "timing.jsonl").read_text().splitlines()][-1]
    traffic = made.rounds * made.num_clients * BYTES_PER_VISIT
    return {
        "final": {"test": tests[-1]},
        "best": {"test": max(tests, key=lambda line: float(line["accuracy"]))},
        "pairs": made.rounds * made.pairs_per_round,
        "wall_seconds": last["wall_seconds"] + 3.0,
        "seconds": {"train": last["wall_seconds"] - SECONDS_BEFORE_TRAINING},
        **({"bytes": {"sent": traffic, "received": traffic}} if made.mode == "federated" else {}),
    }


def _config(made: Made, exp_name: str) -> Row:
    return {
        "model": {"name_or_path": "demo"},
        "loss": {"_target_": "losses.preference.dpo", "beta": BETA},
        "partition": {"_target_": "fed.data.partition.iid", "num_partitions": made.num_clients},
        "strategy": {"_target_": "server.strategies.FeDPO", "temp": 0.1},
        "exp_name": exp_name,
        "mode": made.mode,
        "seed": made.seed,
        "datasets": ["demo"],
        "client_num_in_total": made.num_clients,
        "comm_round": made.rounds,
        "frequency_of_test": 1,
        "n_test_examples": made.num_pairs,
        "batch_size": 16,
        "lr": 1e-4,
    }


def _environment(made: Made) -> Row:
    return {
        "python": "3.11.7",
        "platform": "Linux",
        "device": "cpu",
        "processor": "a processor",
        "threads": 1,
        "packages": {"torch": "2.13.0", "flwr": "1.41.0"},
        "argv": ["main.py", "datasets=[demo]", f"mode={made.mode}", f"seed={made.seed}"],
        "started": "2026-01-02T03:04:05",
        "commit": "0" * 40,
    }


def _write(path: Path, rows: Iterable[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
