"""Rows to token ids (`Example`), examples to padded tensors (`Batch`), and the order in which batches come.

Shapes: B pairs, N sequences (2B when paired: chosen 0..B-1, then rejected), T tokens of the longest sequence, R
    response tokens of all sequences.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fed.seeding import generator
from losses.logps import Logps


class Preference(Protocol):
    """What tokenising reads of a row; `load_data.Preference` is one."""

    @property
    def prompt(self) -> str:
        """Text up to and including the last turn marker."""

    @property
    def chosen(self) -> str:
        """Preferred response."""

    @property
    def rejected(self) -> str:
        """Other response."""

    @property
    def truncation(self) -> str:
        """End of a too long prompt that survives: keep_end or keep_start."""


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    eos_token_id: int

    def __call__(self, text: list[str], **kwargs: object) -> dict[str, list[list[int]]]:
        """Token ids under the key "input_ids"."""


class PairLogps(NamedTuple):
    """Summed log-probs of one pair, a constant column of the data."""

    chosen: float
    rejected: float


@dataclass(frozen=True, slots=True)
class Example:
    """One pair as token ids, responses ending in end-of-text, with the columns that were computed for it."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    reference: PairLogps | None = None  # log-probs under the frozen reference model
    anchor: PairLogps | None = None  # log-probs under the global model this round started from

    @property
    def length(self) -> int:
        """Tokens of the longer sequence."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences. Causal attention never lets a real token see padding, so no mask is needed."""

    input_ids: Tensor  # (N, T)
    rows: Tensor  # (R,) index into N*T of the position that predicts each response token
    targets: Tensor  # (R,)
    sequence: Tensor  # (R,) in [0, N)
    lengths: Tensor  # (N,) response tokens, float32
    paired: bool
    reference: Logps | None = None
    anchor: Logps | None = None

    @property
    def num_pairs(self) -> int:
        """B."""
        return self.input_ids.shape[0] // (2 if self.paired else 1)


def tokenize(
    rows: Sequence[Preference], tokenizer: Tokenizer, *, max_length: int, max_prompt_length: int
) -> list[Example]:
    """Token ids of each row, truncated as the original DPO code does, except that end-of-text is kept.

    No special token is added or recognised in the text. When prompt plus longer response exceed `max_length`, the
    prompt is cut to `max_prompt_length` at the end its row names; if that is not enough, responses are cut to
    `max_length - max_prompt_length` tokens, the last of which stays end-of-text.

    Raises:
        ValueError: If a prompt has no token, or the lengths leave no room for a response.
    """
    if not 1 <= max_prompt_length < max_length:
        raise ValueError(
            f"max_prompt_length={max_prompt_length} must be at least 1 and below max_length={max_length}: what it "
            "leaves is for the response"
        )

    def ids(texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        return tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    end = tokenizer.eos_token_id
    prompts = ids([row.prompt for row in rows])
    for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        if not prompt:
            raise ValueError(
                f"row {number} has the prompt {row.prompt!r}, which is no token, so nothing predicts its responses' "
                f"first token (chosen: {row.chosen[:40]!r}); drop the row or give it a prompt"
            )
    columns = zip(rows, prompts, ids([row.chosen for row in rows]), ids([row.rejected for row in rows]), strict=True)
    return [
        truncate(prompt, [*chosen, end], [*rejected, end], row.truncation, max_length, max_prompt_length)
        for row, prompt, chosen, rejected in columns
    ]


def truncate(
    prompt: list[int], chosen: list[int], rejected: list[int], keep: str, max_length: int, max_prompt_length: int
) -> Example:
    """The example within `max_length` tokens a side; responses come in with end-of-text as last token."""
    longest = max(len(chosen), len(rejected))
    if len(prompt) + longest > max_length:
        prompt = prompt[-max_prompt_length:] if keep == "keep_end" else prompt[:max_prompt_length]
    if len(prompt) + longest > max_length:
        limit = max_length - max_prompt_length
        chosen, rejected = (ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]] for ids in (chosen, rejected))
    return Example(tuple(prompt), tuple(chosen), tuple(rejected))


def collate(examples: Sequence[Example], *, paired: bool = True, device: torch.device | str = "cpu") -> Batch:
    """One padded batch; `paired=False` leaves the rejected responses out. No prompt may be empty."""
    sides = [[(e.prompt, e.chosen) for e in examples]]
    if paired:
        sides.append([(e.prompt, e.rejected) for e in examples])
    sequences = [pair for side in sides for pair in side]
    width = max(len(prompt) + len(response) for prompt, response in sequences)
    input_ids = np.zeros((len(sequences), width), dtype=np.int64)
    rows, targets, owner = [], [], []
    for n, (prompt, response) in enumerate(sequences):
        end = len(prompt) + len(response)
        input_ids[n, :end] = prompt + response
        first = n * width + len(prompt) - 1  # the last prompt token predicts the first response token
        rows.append(np.arange(first, first + len(response)))
        targets.append(response)
        owner.append(np.full(len(response), n))
    lengths = [float(len(response)) for _, response in sequences]

    def tensor(values: Sequence[Sequence[int] | np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate([np.asarray(v, dtype=np.int64) for v in values])).to(device)

    return Batch(
        input_ids=torch.from_numpy(input_ids).to(device),
        rows=tensor(rows),
        targets=tensor(targets),
        sequence=tensor(owner),
        lengths=torch.tensor(lengths, device=device),
        paired=paired,
        reference=_column([e.reference for e in examples], lengths, paired, device),
        anchor=_column([e.anchor for e in examples], lengths, paired, device),
    )


def _column(
    column: Sequence[PairLogps | None], lengths: list[float], paired: bool, device: torch.device | str
) -> Logps | None:
    known = [pair for pair in column if pair is not None]
    if len(known) < len(column):
        return None
    logps = [pair.chosen for pair in known] + ([pair.rejected for pair in known] if paired else [])
    return as_logps(torch.tensor(logps, device=device), torch.tensor(lengths, device=device), paired)


def as_logps(logps_N: Tensor, lengths_N: Tensor, paired: bool) -> Logps:
    """Log-probs and lengths of N sequences, split into chosen and rejected."""
    if not paired:
        return Logps(logps_N, None, lengths_N, None)
    half = len(logps_N) // 2
    return Logps(logps_N[:half], logps_N[half:], lengths_N[:half], lengths_N[half:])


@dataclass(frozen=True)
class BatchOrder:
    """An endless, seeded order of one client's batches; any position can be asked for at any time.

    Each epoch is a new permutation and ends in a smaller batch when `batch_size` does not divide `num_examples`.
    """

    num_examples: int
    batch_size: int
    seed: int
    client_id: int

    @property
    def per_epoch(self) -> int:
        """Batches in one pass over the data."""
        return -(-self.num_examples // self.batch_size)

    def batches(self, first: int, count: int) -> Iterator[np.ndarray]:
        """Example indices of batches `first` to `first + count - 1`."""
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for position in range(first, first + count):
            if position // self.per_epoch != epoch:
                epoch = position // self.per_epoch
                order = generator(self.seed, "batches", self.client_id, epoch).permutation(self.num_examples)
            start = position % self.per_epoch * self.batch_size
            yield order[start : start + self.batch_size]


def by_length(examples: Sequence[Example], batch_size: int) -> list[list[int]]:
    """Indices in batches of like length: little padding. Longest first, so that running out of memory shows at once."""
    order = sorted(range(len(examples)), key=lambda i: (-examples[i].length, i))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
