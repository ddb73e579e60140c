"""The one model of a run, and the log-probabilities that it gives to pairs.

Shapes: B pairs, N sequences, T tokens, R response tokens, D hidden size, V vocabulary.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fed.cpu.onednn import onednn_product, uses_onednn
from fed.data.collate import PADDED, Batch, Layout, collate
from fed.data.examples import Example, PairLogps, sequence_lengths
from fed.data.order import by_length
from fed.data.tokens import Tokenizer
from fed.distributed.fsdp import Root, run
from fed.distributed.ranks import ALONE, Ranks
from fed.model.lora import save_model
from fed.model.scorer import is_scorer, whole_responses
from losses.fused import Head, blockwise_logps, blockwise_loss, product
from losses.logps import Logps, summed_logps

T = TypeVar("T")
# A loss: policy, reference and anchor log-probs in, one number per pair out, shape (B,).
PairLoss = Callable[[Logps, Logps | None, Logps | None], Tensor]
# Called with the number of pairs that were just done.
OnPairs = Callable[[int], None]


@dataclass(frozen=True)
class Policy:
    """A causal language model with its tokenizer and the way it computes."""

    model: Any  # transformers.PreTrainedModel
    tokenizer: Tokenizer
    device: torch.device
    compute_dtype: torch.dtype | None = None  # None: the dtype of the weights
    split_head: bool = True  # the logits are head(hidden states), so the head can run on response rows only
    layout: Layout = PADDED
    remarks: tuple[str, ...] = ()  # each names a setting that this model cannot follow, and the reason
    attention: str = "eager"  # transformers' name of the attention for generation; that of packed rows has no cache
    ranks: Ranks = ALONE  # the processes that share the work on a list of pairs
    holders: Ranks = ALONE  # the processes that hold the weights together
    root: Root | None = None  # gathers the weights if FSDP has split them
    between: Callable[[], None] = lambda: None  # called before each batch of a list that is evaluated

    def compute(self, compute: Callable[[], T]) -> T:
        """Call `compute` with whole weights, in the dtype that this policy computes in, and return its result."""

        def computed() -> T:
            with self.autocast():
                return compute()

        return computed() if self.root is None else run(self.root, computed)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context that sets the dtype of forward passes."""
        if self.compute_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute_dtype)

    @property
    def scores(self) -> bool:
        """True for a reward model, whose scores stand where policies have log-probs."""
        return is_scorer(self.model)

    def collate(self, examples: Sequence[Example], *, paired: bool = True) -> Batch:
        """Collate examples in this policy's layout, on its device."""
        if self.scores:
            examples = whole_responses(examples)
        return collate(examples, paired=paired, device=self.device, layout=self.layout)


def response_logps(policy: Policy, batch: Batch) -> Logps:
    """Compute the summed response log-probs of each sequence, float32; with gradient unless torch switches it off.

    A reward model gives scores in their place.
    """

    def compute() -> Logps:
        if policy.scores:
            return batch.as_logps(_scores(policy, batch))
        rows, head = _rows_and_head(policy, batch)
        if isinstance(head, Head) and not torch.is_grad_enabled():
            return batch.as_logps(blockwise_logps(rows, head, batch.targets, batch.sizes))
        plain = policy.model.get_output_embeddings() if isinstance(head, Head) else head
        return batch.as_logps(summed_logps(rows, plain, batch.targets, batch.sizes))

    return policy.compute(compute)


def total_loss(policy: Policy, batch: Batch, loss: PairLoss, *, by_pair: bool = True) -> tuple[Tensor, Logps]:
    """Compute the sum of all pairs' losses, with gradient, and the log-probs behind it, without gradient.

    Args:
        policy: The model.
        batch: The result of `policy.collate`.
        loss: Called once with all pairs, or several times with some of them.
        by_pair: The loss of a pair does not depend on the pairs beside it.
    """

    def compute() -> tuple[Tensor, Logps]:
        if policy.scores:
            logps = batch.as_logps(_scores(policy, batch))
            return loss(logps, batch.reference, batch.anchor).sum(), logps.detach()
        rows, head = _rows_and_head(policy, batch)
        if not isinstance(head, Head):
            logps = batch.as_logps(summed_logps(rows, head, batch.targets, batch.sizes))
            return loss(logps, batch.reference, batch.anchor).sum(), logps.detach()
        group = 2 if batch.paired else 1

        def of_sequences(first: int, last: int, logps_N: Tensor) -> Tensor:
            pairs = slice(first // group, last // group)
            columns = (None if column is None else column.part(pairs) for column in (batch.reference, batch.anchor))
            return loss(batch.as_logps(logps_N, pairs.start), *columns)

        total, logps_N = blockwise_loss(
            rows, head, batch.targets, batch.sizes, of_sequences, group=group if by_pair else len(batch.sizes)
        )
        return total, batch.as_logps(logps_N)

    return policy.compute(compute)


def _scores(policy: Policy, batch: Batch) -> Tensor:
    """Return the score of each sequence, float32, (N,), from the hidden state at the last token of its response."""
    model = policy.model
    ends = torch.tensor(batch.sizes, device=batch.rows.device).cumsum(0) - 1
    hidden = model.base_model(**_inputs(batch)).last_hidden_state.flatten(0, 1)
    found: Tensor = model.score(hidden.index_select(0, batch.rows[ends])).squeeze(-1).float()
    return found


def _inputs(batch: Batch) -> dict[str, Any]:
    """Return what a model reads of a batch."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    if batch.segments is not None:
        inputs.update(position_ids=batch.position_ids, segments=batch.segments)
    return inputs


def _rows_and_head(policy: Policy, batch: Batch) -> tuple[Tensor, Head | Callable[[Tensor], Tensor]]:
    """Return the rows that predict response tokens, (R, D), and the head that turns them into logits.

    If the model scales or caps its logits, the rows are those logits, (R, V), and the head is the identity.
    """
    model, inputs = policy.model, _inputs(batch)
    if not policy.split_head:
        if batch.segments is not None and "logits_to_keep" in inspect.signature(model.forward).parameters:
            return model(**inputs, logits_to_keep=batch.rows).logits[0], nn.Identity()
        return model(**inputs).logits.flatten(0, 1).index_select(0, batch.rows), nn.Identity()
    hidden = model.base_model(**inputs).last_hidden_state.flatten(0, 1)
    # Layers may be on several GPUs; the batch is where the head is.
    hidden_RD = hidden.to(batch.rows.device).index_select(0, batch.rows)
    head = model.get_output_embeddings()
    if not policy.layout.fused_head:
        return hidden_RD, head
    dtype = policy.compute_dtype or head.weight.dtype
    by_onednn = dtype == torch.float32 and uses_onednn(head)
    return hidden_RD, Head(head.weight, head.bias, dtype, onednn_product if by_onednn else product)


@torch.no_grad()
def pair_logps(
    policy: Policy,
    examples: Sequence[Example],
    *,
    batch_size: int,
    paired: bool = True,
    on_pairs: OnPairs = lambda pairs: None,
) -> list[PairLogps]:
    """Compute the log-probs of every pair, in order.

    The same examples in the same batch size give the same bits: several processes divide whole batches among them.

    Args:
        policy: The model; if several processes share it, all of them call this.
        examples: The pairs.
        batch_size: Pairs at a time.
        paired: Score both responses; otherwise only chosen ones, and rejected ones are nan.
        on_pairs: Called with the number of pairs that were just done.
    """
    ranks, batches = policy.ranks, by_length(sequence_lengths(examples).tolist(), batch_size)
    found = torch.zeros(len(examples), 2, dtype=torch.float64)
    for turn, own, counts in ranks.turns(len(batches)):
        policy.between()
        indices = batches[own]
        logps = response_logps(policy, policy.collate([examples[i] for i in indices], paired=paired))
        if counts:
            found[indices, 0] = logps.chosen.double().cpu()
            found[indices, 1] = math.nan if logps.rejected is None else logps.rejected.double().cpu()
        on_pairs(sum(len(batches[place]) for place in turn))
    return [PairLogps(chosen, rejected) for chosen, rejected in ranks.sum(found).tolist()]


def save_policy(policy: Policy, directory: Path, *, write: bool = True) -> None:
    """Write model and tokenizer as a directory that `AutoModelForCausalLM.from_pretrained(directory)` loads.

    A reward model is for `AutoModelForSequenceClassification`.

    With LoRA only the adapter is written. If several processes hold the model, all call this and one has `write` set.
    """
    save_model(policy.model, directory, write=write)
    if write:
        policy.tokenizer.save_pretrained(directory)  # type: ignore[attr-defined]
