"""Examples as the tensors of one forward pass (`Batch`): padded, packed, or packed with the prompt shared.

Shapes: B pairs, N sequences (2B when paired: pair by pair, chosen then rejected), T tokens of the longest sequence or
    of the whole packed row, R rows that predict a response token, sequence after sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fed.data.examples import Example, PairLogps, lengths_of
from losses.logps import Logps


@dataclass(frozen=True)
class Layout:
    """The ways in which a pass saves work; losses and gradients of a batch are the same up to rounding."""

    packing: bool = True  # sequences end to end in one row, without padding
    prefix_sharing: bool = True  # packed: prompt, chosen, rejected; the prompt once for both responses
    fused_head: bool = True  # logits in blocks that become their own gradient


PADDED = Layout(packing=False, prefix_sharing=False, fused_head=False)  # the plain path


class Segment(NamedTuple):
    """Lengths of consecutive stretches of a packed row: `second` sees `prefix` and itself, but not `first`."""

    prefix: int
    first: int = 0
    second: int = 0

    @property
    def longest(self) -> int:
        """The number of tokens that the last token of the longer stretch sees, itself included."""
        return self.prefix + max(self.first, self.second)


@dataclass(frozen=True)
class Segments:
    """The tokens of a packed row that see each other: within a segment, causally; none across segments."""

    lengths: tuple[Segment, ...]
    device: torch.device
    longest: int  # tokens that one token may see, itself included

    @cached_property
    def masks(self) -> list[Tensor | None]:
        """A mask per segment: which tokens of prefix and `second` (columns) each token of `second` (rows) sees."""
        return [
            torch.ones(s.second, s.prefix + s.second, dtype=torch.bool, device=self.device).tril(s.prefix)
            if s.second
            else None
            for s in self.lengths
        ]


@dataclass(frozen=True)
class Batch:
    """The tokens of one forward pass, without the last of each response, which predicts nothing.

    Padded on the right: causal attention never lets a real token see padding, so no mask is needed.
    """

    input_ids: Tensor  # (N, T) padded, (1, T) packed
    position_ids: Tensor | None  # (1, T); None: padded
    segments: Segments | None  # None: padded
    rows: Tensor  # (R,) index into the flattened input_ids of the position that predicts each response token
    targets: Tensor  # (R,)
    sizes: tuple[int, ...]  # (N,) response tokens of each sequence
    paired: bool
    reference: Logps | None = None
    anchor: Logps | None = None

    def as_logps(self, logps_N: Tensor, first_pair: int = 0) -> Logps:
        """Split the log-probs of consecutive sequences, from `first_pair` on, into chosen and rejected."""
        group = 2 if self.paired else 1
        first = group * first_pair
        return as_logps(logps_N, self.sizes[first : first + len(logps_N)], self.paired)


def as_logps(logps_N: Tensor, sizes: Sequence[int], paired: bool) -> Logps:
    """Split log-probs and lengths of N sequences into chosen and rejected."""
    lengths_N = torch.tensor(sizes, dtype=logps_N.dtype, device=logps_N.device)
    if not paired:
        return Logps(logps_N, None, lengths_N, None)
    return Logps(logps_N[0::2], logps_N[1::2], lengths_N[0::2], lengths_N[1::2])


def collate(
    examples: Sequence[Example],
    *,
    paired: bool = True,
    device: torch.device | str = "cpu",
    layout: Layout = PADDED,
) -> Batch:
    """Make one batch, without the rejected responses if `paired` is False; no prompt and no response may be empty."""
    device = torch.device(device)
    sides = [(e.chosen, e.rejected) if paired else (e.chosen,) for e in examples]
    responses = [response for both in sides for response in both]
    sizes = tuple(len(response) for response in responses)
    if layout.packing:
        tokens, rows, positions, lengths = _packed(examples, sides, share=layout.prefix_sharing and paired)
    else:
        tokens, rows, positions, lengths = *_padded(examples, sides), None, None

    def column(pairs: Sequence[PairLogps | None]) -> Logps | None:
        known = [pair for pair in pairs if pair is not None]
        if len(known) < len(pairs):
            return None
        logps = [value for pair in known for value in (pair if paired else pair[:1])]
        return as_logps(torch.tensor(logps, device=device), sizes, paired)

    return Batch(
        input_ids=torch.from_numpy(tokens).to(device),
        position_ids=None if positions is None else torch.from_numpy(positions)[None].to(device),
        segments=None
        if lengths is None
        else Segments(tuple(lengths), device, max(segment.longest for segment in lengths)),
        rows=torch.from_numpy(rows).to(device),
        targets=torch.tensor([token for response in responses for token in response], device=device),
        sizes=sizes,
        paired=paired,
        reference=column([e.reference for e in examples]),
        anchor=column([e.anchor for e in examples]),
    )


def num_tokens(examples: Sequence[Example], layout: Layout, *, paired: bool = True) -> np.ndarray:
    """Count the tokens that each example adds to a forward pass, padding within the pair included, shape (pairs,)."""
    prompt, chosen, rejected = (lengths_of(examples) - [0, 1, 1]).T
    found: np.ndarray = prompt + chosen
    if paired and layout.packing:
        found = (1 if layout.prefix_sharing else 2) * prompt + chosen + rejected
    elif paired:
        found = 2 * (prompt + np.maximum(chosen, rejected))
    return found


def _padded(examples: Sequence[Example], sides: Sequence[Sequence[tuple[int, ...]]]) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens, shape (N, T), and rows, shape (R,)."""
    pieces = [(e.prompt, response) for e, both in zip(examples, sides, strict=True) for response in both]
    width = max(len(prompt) + len(response) - 1 for prompt, response in pieces)
    tokens = np.zeros((len(pieces), width), dtype=np.int64)
    rows = []
    for n, (prompt, response) in enumerate(pieces):
        tokens[n, : len(prompt) + len(response) - 1] = prompt + response[:-1]
        first = n * width + len(prompt) - 1  # the last prompt token predicts the first response token
        rows.append(np.arange(first, first + len(response)))
    return tokens, np.concatenate(rows)


def _packed(
    examples: Sequence[Example], sides: Sequence[Sequence[tuple[int, ...]]], *, share: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Segment]]:
    """Return tokens, shape (1, T), rows, (R,), positions, (T,), and segments."""
    tokens: list[int] = []
    rows, positions = [], []
    lengths: list[Segment] = []
    for example, both in zip(examples, sides, strict=True):
        prompt = example.prompt
        for responses in [both] if share else [(response,) for response in both]:
            last = len(tokens) + len(prompt) - 1  # the last prompt token predicts the first of every response
            tokens += prompt
            positions.append(np.arange(len(prompt)))
            for response in responses:
                own = np.arange(len(tokens), len(tokens) + len(response) - 1)
                rows += [np.array([last]), own]
                tokens += response[:-1]
                positions.append(len(prompt) + np.arange(len(own)))
            lengths.append(Segment(len(prompt), *(len(response) - 1 for response in responses)))
    packed = np.array([tokens], dtype=np.int64)
    return packed, np.concatenate(rows), np.concatenate(positions), lengths
