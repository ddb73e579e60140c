"""The one model of a run, and the log-probabilities it gives to pairs.

Shapes: B pairs, N sequences, T tokens, R response tokens, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fed.batches import Batch, Example, PairLogps, Tokenizer, as_logps, by_length, collate
from losses.logps import Logps, summed_logps


@dataclass(frozen=True)
class Policy:
    """A causal language model with its tokenizer and the precision it computes in."""

    model: Any  # transformers.PreTrainedModel
    tokenizer: Tokenizer
    device: torch.device
    compute_dtype: torch.dtype | None = None  # None: the dtype of the weights
    split_head: bool = True  # the logits are head(hidden states), so the head can run on response rows only

    def autocast(self) -> AbstractContextManager[Any]:
        """Context in which forward passes compute."""
        if self.compute_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute_dtype)


def response_logps(policy: Policy, batch: Batch) -> Logps:
    """Summed response log-probs of each sequence of a batch, float32, with gradient."""
    model = policy.model
    with policy.autocast():
        if policy.split_head:
            hidden_NTD = model.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
            head: Callable[[Tensor], Tensor] = model.get_output_embeddings()
        else:
            hidden_NTD = model(input_ids=batch.input_ids, use_cache=False).logits
            head = nn.Identity()
        rows_RD = hidden_NTD.flatten(0, 1).index_select(0, batch.rows)
        logps_N = summed_logps(rows_RD, head, batch.targets, batch.sequence, len(batch.lengths))
    return as_logps(logps_N, batch.lengths, batch.paired)


@torch.no_grad()
def pair_logps(policy: Policy, examples: Sequence[Example], *, batch_size: int) -> list[PairLogps]:
    """Log-probs of every pair, in order. The same examples in the same batch size give the same bits."""
    found: list[PairLogps | None] = [None] * len(examples)
    for indices in by_length(examples, batch_size):
        logps = response_logps(policy, collate([examples[i] for i in indices], device=policy.device))
        assert logps.rejected is not None
        for i, chosen, rejected in zip(indices, logps.chosen.tolist(), logps.rejected.tolist(), strict=True):
            found[i] = PairLogps(chosen, rejected)
    return [pair for pair in found if pair is not None]


def save_policy(policy: Policy, directory: Path) -> None:
    """Write an HF directory: `AutoModelForCausalLM.from_pretrained(directory)` loads it."""
    policy.model.save_pretrained(directory)
    policy.tokenizer.save_pretrained(directory)  # type: ignore[attr-defined]
