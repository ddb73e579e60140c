"""The part `federation`: a run of ten clients, and the share of its time in which no model computed."""

import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from fed.data.examples import Example
from scripts.benchmark.federation_bench import measure
from scripts.benchmark.workload import SHAPES, random_model
from scripts.gpu.pairs import made_pairs, word_tokenizer, write_jsonl
from scripts.gpu.parts import SHORTER, Options, Part, Report

CLIENTS, ROUNDS = 10, 2
STEPS = 10  # of each client in a round
EPOCH = 4  # steps after which a client begins anew with its pairs
SERVER = 64  # pairs on which the server scores every client's result, and as many test pairs


def run(part: Part, options: Options, report: Report) -> None:
    """Run main.py on a model of random weights, saved for it, without checkpoints; dry, the demo's model."""
    shape, batch, steps = ("tiny", 2, 2) if options.dry else (part.shape, options.batch, STEPS)
    clients, rounds, server = (2, 1, 4) if options.dry else (CLIENTS, ROUNDS, SERVER)
    shorter = SHORTER if options.dry else 1
    device = torch.device("cpu" if options.dry else "cuda")
    with tempfile.TemporaryDirectory() as name:
        model, data = Path(name, "model"), Path(name, "data")
        save(shape, model, device)
        trained = clients * batch * min(steps, EPOCH)
        write(made_pairs(trained + 2 * server, SHAPES[shape].vocabulary, shorter), data, test=server)
        settings = [
            *["model=blank_model", f"model.name_or_path={model}", "datasets=[files]", f"data_dir={data}"],
            *[f"server_fraction={server / (trained + server):.6f}", "client_eval_fraction=0", f"batch_size={batch}"],
            *[f"n_test_examples={server}", f"local_steps={steps}", "gradient_accumulation_steps=1"],
            *[f"eval_batch_size={batch}", "optimizer=AdamW", "lr=1e-6", "warmup_steps=0", "alpha=0"],
            *["precision=bfloat16", "debug=true", f"device={device.type}"],
        ]
        found = measure(clients, rounds, settings)
    report.add(shape=shape, rounds=rounds, steps=steps, batch=batch, **asdict(found))


def save(shape: str, folder: Path, device: torch.device) -> None:
    """Write a model of the shape, with random weights, and its tokenizer."""
    tokenizer = word_tokenizer(SHAPES[shape].vocabulary)
    random_model(SHAPES[shape], tokenizer, "policy", device).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write(pairs: list[Example], folder: Path, *, test: int) -> None:
    """Write so many pairs to test on, and the others to train on."""
    folder.mkdir()
    write_jsonl(pairs[:test], folder / "test.jsonl")
    write_jsonl(pairs[test:], folder / "train.jsonl")
