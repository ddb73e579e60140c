"""The head and the loss in one: log-probs and all gradients, a block of logits at a time.

The logits of all rows never exist at once, and neither does their gradient. A block of logits gives its log-probs; the
loss is differentiated with respect to those; then the block becomes, in place, the gradient of its logits, which gives
the gradients of hidden states and weight. That takes three matrix products, as the plain path does. Only if the loss
must see more than a block together are the logits made twice.

Shapes: N sequences (2B when paired), R rows that predict a response token, D hidden size, V vocabulary, B pairs.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from losses.logps import sum_rows

BLOCK_BYTES = 64 * 2**20  # of float32 logits alive at once; smaller blocks made the head 10 % slower on a CPU
GPU_BLOCK_BYTES = 8 * BLOCK_BYTES  # elsewhere: a block costs some twenty kernel launches, whatever its size
Product = Callable[[Tensor, Tensor], Tensor]
# Called with first, last and the log-probs of the sequences [first, last); returns their losses.
SequenceLoss = Callable[[int, int, Tensor], Tensor]


def product(left: Tensor, right: Tensor) -> Tensor:
    """left right^T."""
    return left @ right.t()


@dataclass(frozen=True)
class Head:
    """logits = hidden weight^T + bias, its products taken in `dtype` by `product`."""

    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)
    dtype: torch.dtype
    product: Product = product

    @property
    def block_rows(self) -> int:
        """Rows whose logits may be alive at once."""
        size = BLOCK_BYTES if self.weight.is_cpu else GPU_BLOCK_BYTES
        return max(1, size // (4 * self.weight.shape[0]))


@torch.no_grad()
def blockwise_logps(hidden_RD: Tensor, head: Head, targets_R: Tensor, sizes: Sequence[int]) -> Tensor:
    """Compute the log-probability of each sequence's response, shape (N,), float32, without gradient."""
    weight = head.weight.to(head.dtype)
    blocks = zip(torch.split(hidden_RD, head.block_rows), torch.split(targets_R, head.block_rows), strict=True)
    logps = [_Block(head, hidden.to(head.dtype), weight, targets).logps for hidden, targets in blocks]
    return sum_rows(torch.cat(logps), sizes)


def blockwise_loss(
    hidden_RD: Tensor,
    head: Head,
    targets_R: Tensor,
    sizes: Sequence[int],
    loss: SequenceLoss,
    *,
    group: int,
) -> tuple[Tensor, Tensor]:
    """Compute the sum of all losses, with gradient, and the log-probs of the responses, (N,), without gradient.

    Args:
        hidden_RD: Hidden states at the positions that predict response tokens, sequence after sequence.
        head: The linear layer on top.
        targets_R: Token id that each row predicts.
        sizes: Rows of each sequence; they sum to R.
        loss: Called for consecutive parts of the sequences.
        group: Sequences that `loss` must see together: 2 for a loss of pairs, N for one that mixes all pairs.
    """
    total, logps = _BlockwiseLoss.apply(  # type: ignore[no-untyped-call]
        hidden_RD, head.weight, head.bias, head, _Sequences(targets_R, sizes, group), loss
    )
    return total, logps


@dataclass(frozen=True)
class _Sequences:
    """The token ids that the rows predict, the rows of each sequence, and the sequences that a loss sees together."""

    targets_R: Tensor
    sizes: Sequence[int]
    group: int

    def chunks(self, block_rows: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (first sequence, last, first row, last) of consecutive whole groups, as many as fit into a block."""
        sizes = self.sizes
        first = start = end = 0
        for at in range(0, len(sizes), self.group):
            size = sum(sizes[at : at + self.group])
            if at > first and end + size - start > block_rows:
                yield first, at, start, end
                first, start = at, end
            end += size
        yield first, len(sizes), start, end


class _Block:
    """The logits of some rows, as exp(logits - their maximum), and their log-probs."""

    def __init__(self, head: Head, hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
        self.hidden, self.targets = hidden, targets[:, None]
        logits = head.product(hidden, weight).float()
        if head.bias is not None:
            logits += head.bias
        largest = logits.amax(1, keepdim=True)
        of_targets = logits.gather(1, self.targets) - largest
        self.powers = logits.sub_(largest).exp_()  # in place: the one large tensor
        self.sums = self.powers.sum(1, keepdim=True)
        self.logps = (of_targets - self.sums.log()).squeeze(1)

    def logits_gradient(self, slopes_R: Tensor) -> Tensor:
        """slope (onehot - softmax) of each row: the gradient of sum(slopes * logps). It uses the block up."""
        slopes, powers = slopes_R[:, None], self.powers
        del self.powers  # free as soon as the caller is done with it
        return powers.mul_(-slopes / self.sums).scatter_add_(1, self.targets, slopes)


class _BlockwiseLoss(torch.autograd.Function):
    """A function that computes its gradients in the forward pass, while each block's logits exist anyway."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_RD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        head: Head,
        sequences: _Sequences,
        loss: SequenceLoss,
    ) -> tuple[Tensor, Tensor]:
        gradients = _Gradients(hidden_RD, head, ctx.needs_input_grad[1], ctx.needs_input_grad[2])
        total, logps = hidden_RD.new_zeros((), dtype=torch.float32), []
        for first, last, start, end in sequences.chunks(head.block_rows):
            of_chunk, sizes = functools.partial(loss, first, last), sequences.sizes[first:last]
            chunk_loss, chunk_logps = _chunk(gradients, sequences.targets_R, start, end, sizes, of_chunk)
            total += chunk_loss
            logps.append(chunk_logps)
        ctx.gradients = gradients
        all_logps = torch.cat(logps)
        ctx.mark_non_differentiable(all_logps)
        return total, all_logps

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [None if g is None else g.mul_(grad_total) for g in gradients.results()]
        return (*scaled, None, None, None)


class _Gradients:
    """The gradients that add up over blocks, in float32 whatever the dtype of the weights."""

    def __init__(self, hidden_RD: Tensor, head: Head, of_weight: bool, of_bias: bool) -> None:
        self.hidden = hidden_RD.to(head.dtype)
        self.weight = head.weight.to(head.dtype)
        self.head, self.of_weight, self.of_bias = head, of_weight, of_bias
        self.d_hidden = torch.empty_like(hidden_RD)
        self.d_weight: Tensor | None = None
        self.d_bias: Tensor | None = None

    def block(self, start: int, end: int, targets_R: Tensor) -> _Block:
        return _Block(self.head, self.hidden[start:end], self.weight, targets_R[start:end])

    def add(self, block: _Block, start: int, slopes_R: Tensor) -> None:
        d_logits = block.logits_gradient(slopes_R)
        if self.of_bias:
            of_bias = d_logits.sum(0)
            self.d_bias = of_bias if self.d_bias is None else self.d_bias.add_(of_bias)
        d_logits = d_logits.to(self.head.dtype)
        self.d_hidden[start : start + len(slopes_R)] = self.head.product(d_logits, self.weight.t())
        if self.of_weight:
            of_weight = self.head.product(d_logits.t(), block.hidden.t())
            del d_logits
            self.d_weight = of_weight.float() if self.d_weight is None else self.d_weight.add_(of_weight)

    def results(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        sums = ((self.d_weight, self.head.weight), (self.d_bias, self.head.bias))
        return self.d_hidden, *(None if d is None or w is None else d.to(w.dtype) for d, w in sums)  # type: ignore[return-value]


def _chunk(
    gradients: _Gradients,
    targets_R: Tensor,
    start: int,
    end: int,
    sizes: Sequence[int],
    loss: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Return loss and log-probs of a chunk and add its gradients. Only a chunk of several blocks makes logits twice."""
    step = gradients.head.block_rows
    starts = range(start, end, step)
    rows = []
    for at in starts:
        kept = None  # freed before the next one is made
        kept = gradients.block(at, min(at + step, end), targets_R)
        rows.append(kept.logps)
    with torch.enable_grad():
        logps = sum_rows(torch.cat(rows), sizes).requires_grad_()
        total = loss(logps).sum()
    (slopes,) = torch.autograd.grad(total, logps)
    repeats = torch.tensor(sizes, device=slopes.device)
    slopes_R = slopes.repeat_interleave(repeats, output_size=end - start)
    for at in reversed(starts):  # the last one's logits are still there
        kept = kept or gradients.block(at, min(at + step, end), targets_R)
        gradients.add(kept, at, slopes_R[at - start : min(at + step, end) - start])
        kept = None
    return total.detach(), logps.detach()
