"""Summed response log-probabilities, from hidden states; full-sequence logits are never built.

Shapes: N sequences (2B when paired), R rows that predict a response token, D hidden size, V vocabulary, B pairs.
"""

from collections.abc import Callable
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
        """Mean log-probability per response token.

        Raises:
            ValueError: If the token counts are unknown.
        """
        if self.chosen_tokens is None:
            raise ValueError("log-probs per token need chosen_tokens and rejected_tokens; they are None")
        rejected = None
        if self.rejected is not None and self.rejected_tokens is not None:
            rejected = self.rejected / self.rejected_tokens
        return Logps(self.chosen / self.chosen_tokens, rejected, self.chosen_tokens, self.rejected_tokens)


def summed_logps(
    hidden_RD: Tensor, head: Callable[[Tensor], Tensor], targets_R: Tensor, sequence_R: Tensor, num_sequences: int
) -> Tensor:
    """Log-probability of each sequence's response, shape (N,), float32.

    Args:
        hidden_RD: Hidden states at the positions that predict response tokens.
        head: Maps (R, D) to (R, V) logits.
        targets_R: Token id that each row predicts.
        sequence_R: Sequence, in [0, N), that each row belongs to.
        num_sequences: N.
    """
    logits_RV = head(hidden_RD).float()
    logps_R = logits_RV.gather(1, targets_R[:, None]).squeeze(1) - logits_RV.logsumexp(1)
    return torch.zeros(num_sequences, device=logps_R.device).index_add(0, sequence_R, logps_R)
