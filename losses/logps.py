"""Summed response log-probabilities from hidden states; logits of a whole sequence are never built.

Shapes: N sequences (2B when paired), R rows that predict a response token, D hidden size, V vocabulary, B pairs.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Logps(NamedTuple):
    """Response log-probabilities in nats, summed over tokens, each of shape (B,).

    `chosen_tokens` and `rejected_tokens` count response tokens, end-of-text included; losses that use means need them.
    """

    chosen: Tensor
    rejected: Tensor | None = None  # None: supervised data
    chosen_tokens: Tensor | None = None
    rejected_tokens: Tensor | None = None

    def per_token(self) -> "Logps":
        """Divide by the number of response tokens.

        Raises:
            ValueError: If the token counts are unknown.
        """
        return Logps(
            _mean(self.chosen, self.chosen_tokens),
            None if self.rejected is None else _mean(self.rejected, self.rejected_tokens),
            self.chosen_tokens,
            self.rejected_tokens,
        )

    def part(self, pairs: slice) -> "Logps":
        """Return the log-probs of some of the pairs."""
        return Logps(*(None if values is None else values[pairs] for values in self))  # type: ignore[arg-type]

    def detach(self) -> "Logps":
        """Return the same numbers without gradient."""
        return Logps(*(None if values is None else values.detach() for values in self))  # type: ignore[arg-type]


def _mean(logps: Tensor, tokens: Tensor | None) -> Tensor:
    if tokens is None:
        raise ValueError("log-probs per token need chosen_tokens and rejected_tokens; one of them is None")
    return logps / tokens


def summed_logps(
    hidden_RD: Tensor, head: Callable[[Tensor], Tensor], targets_R: Tensor, sizes: Sequence[int]
) -> Tensor:
    """Compute the log-probability of each sequence's response, shape (N,), float32.

    Args:
        hidden_RD: Hidden states at the positions that predict response tokens, sequence after sequence.
        head: Maps (R, D) to (R, V) logits.
        targets_R: Token id that each row predicts.
        sizes: Rows of each sequence; they sum to R.
    """
    logits_RV = head(hidden_RD).float()
    return sum_rows(logits_RV.gather(1, targets_R[:, None]).squeeze(1) - logits_RV.logsumexp(1), sizes)


def sum_rows(logps_R: Tensor, sizes: Sequence[int]) -> Tensor:
    """Sum over each sequence's rows, shape (N,).

    It does not use index_add: on a GPU that adds in the order in which threads come, and untrained weights would no
    longer tie exactly.
    """
    return torch.stack([rows.sum() for rows in torch.split(logps_R, list(sizes))])
