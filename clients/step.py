"""One optimizer step of a client's local update.

Shapes: B pairs of a micro-batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from clients.optimizers import clip_grad_norm
from clients.settings import LocalSettings, RoundSettings
from fed.data.collate import Batch
from fed.data.examples import Example
from fed.distributed.shards import local
from fed.model.evaluation import Metrics, of_scores
from fed.model.policy import Policy, total_loss
from losses.anchor import anchor
from losses.logps import Logps


@dataclass(frozen=True)
class Part:
    """A process's part of a micro-batch."""

    batch: Batch
    places: Sequence[int]  # places of its pairs in the micro-batch; none: the batch does not count


class Step:
    """An optimizer step on the mean loss over a few pairs; it changes the policy's weights in place."""

    def __init__(self, policy: Policy, settings: LocalSettings) -> None:
        self.policy = policy
        self.settings = settings
        self.weights = {name: p for name, p in policy.model.named_parameters() if p.requires_grad}
        # What the optimizer sees: of weights that are split over processes, this process's part in the same memory.
        self.parameters = {
            name: nn.Parameter(local(p.detach())) if isinstance(p, DTensor) else p for name, p in self.weights.items()
        }
        self._parts = [p for name, p in self.parameters.items() if p is not self.weights[name]]
        self._whole = [p for name, p in self.parameters.items() if p is self.weights[name]]

    def take(
        self,
        optimizer: torch.optim.Optimizer,
        examples: Sequence[Example],
        this_round: RoundSettings,
        received: Mapping[str, Tensor],
    ) -> Metrics:
        """Take one optimizer step on `examples` and return their mean metrics before it.

        `received` holds the parameters as the client received them; it is read only with `proximal_mu`.
        """
        sums = _Sums()
        for part in self._parts_of(examples):
            self._backward(part, this_round, len(examples), sums)
        self._collect_gradients()
        self._add_proximal_gradient(this_round.proximal_mu, received)
        norm = clip_grad_norm(self._whole, self.settings.max_grad_norm, self._parts, self.policy.holders)
        optimizer.step()
        for parameter in (*self.parameters.values(), *self.weights.values()):
            parameter.grad = None
        means = {name: value / len(examples) for name, value in self.policy.ranks.sum_metrics(sums.floats()).items()}
        return {**means, "grad_norm": float(norm)}

    def _parts_of(self, examples: Sequence[Example]) -> Iterator[Part]:
        """Yield this process's part of each micro-batch of a step.

        The processes that share a model share the pairs of each micro-batch. All must take part, so a process for which
        no pair is left repeats another process's pair and discards the result.
        """
        settings, parts, ranks = self.settings, self.settings.gradient_accumulation_steps, self.policy.ranks
        size = settings.batch_size // parts if settings.max_tokens_per_step is None else -(-len(examples) // parts)
        if not self.policy.layout.packing:  # pairs of like length together: less padding, the same gradient
            examples = sorted(examples, key=lambda example: -example.length)
        for start in range(0, len(examples), size):
            pairs = examples[start : start + size]
            longest_first = sorted(range(len(pairs)), key=lambda i, pairs=pairs: -pairs[i].length)  # type: ignore[misc]
            places = sorted(longest_first[ranks.index :: ranks.count])
            own = [pairs[i] for i in places] or pairs[:1]
            yield Part(self.policy.collate(own, paired=not settings.supervised), places)

    def _backward(self, part: Part, this_round: RoundSettings, num_pairs: int, sums: "_Sums") -> None:
        """Add a part's gradient of the mean loss over the step's `num_pairs` pairs, and its metrics to `sums`."""
        # Gradients are averaged over the processes that share a model.
        scale = self.policy.ranks.count if part.places else 0

        def loss(policy: Logps, reference: Logps | None, received: Logps | None) -> Tensor:
            losses, terms = self._losses(policy, reference, received, this_round, part)
            sums.add(terms, counts=bool(part.places))
            return scale * losses / num_pairs

        total, logps = total_loss(self.policy, part.batch, loss, by_pair=self.settings.by_pair)
        total.backward()  # type: ignore[no-untyped-call]
        found = _rewards(logps, part.batch.reference, self.settings.beta)
        if self.policy.scores:
            found = of_scores(found)
        sums.add(found, counts=bool(part.places))

    def _losses(
        self,
        policy: Logps,
        reference: Logps | None,
        received: Logps | None,
        this_round: RoundSettings,
        part: Part,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return L_k of each pair, shape (B,), and its terms. Without `received`, the policy is the model received."""
        settings = self.settings
        if settings.by_pair or self.policy.ranks.count == 1:
            losses = settings.loss(policy, reference)
        else:
            losses = self._loss_of_all(policy, reference, part.places)
        terms = {"loss": losses.detach()}
        if settings.decay_target == "loss":
            losses = this_round.decay * losses
        if settings.alpha:
            received = received or policy.detach()
            if settings.anchor_norm == "token":
                policy, received = policy.per_token(), received.per_token()
            terms["anchor"] = anchor(policy, received)
            losses = losses + settings.alpha * terms["anchor"]
        return losses, terms

    def _loss_of_all(self, policy: Logps, reference: Logps | None, places: Sequence[int]) -> Tensor:
        """Return the losses of this process's pairs by a loss that must see all pairs of the micro-batch together.

        The gradient of their sum is that of the sum over all pairs.
        """
        ranks = self.policy.ranks
        own = slice(0, len(places))
        everyone = ranks.gather((list(places), [_on_cpu(logps, own) for logps in (policy, reference)]))
        order = torch.tensor([place for other, _ in everyone for place in other]).argsort()

        def merged(logps: Logps | None, which: int) -> Logps | None:
            if logps is None:
                return None
            parts = [found[which] for _, found in everyone]
            parts[ranks.index] = logps.part(own)
            columns = zip(*parts, strict=True)
            device = logps.chosen.device
            return Logps(*(None if c[0] is None else torch.cat([x.to(device) for x in c])[order] for c in columns))  # type: ignore[arg-type]

        whole = merged(policy, 0)
        assert whole is not None
        losses = self.settings.loss(whole, merged(reference, 1))
        if not places:
            return 0 * policy.chosen
        others = losses.sum() - losses[places].sum()
        return losses[places] + (others - others.detach()) / len(places)

    def _collect_gradients(self) -> None:
        """Give the parts that the optimizer sees the gradients of the weights they belong to."""
        for name, weight in self.weights.items():
            if weight is not self.parameters[name] and weight.grad is not None:
                self.parameters[name].grad = local(weight.grad)

    @torch.no_grad()
    def _add_proximal_gradient(self, mu: float, received: Mapping[str, Tensor]) -> None:
        """Add mu (theta - theta^t), the gradient of FedProx's term, without building a graph for it."""
        if mu:
            for name, parameter in self.parameters.items():
                assert parameter.grad is not None
                parameter.grad.add_(parameter - received[name], alpha=mu)


class _Sums(dict[str, Tensor]):
    """Sums of metrics over the pairs of a step, in float64 on the device: reading one there would wait for a GPU."""

    def add(self, values: Mapping[str, Tensor], *, counts: bool) -> None:
        """Add the values of a few pairs, or zeros unless the pairs count."""
        for name, value in values.items():
            of_pairs = value.detach().double().sum() if counts else torch.zeros((), dtype=torch.float64)
            self[name] = self[name] + of_pairs if name in self else of_pairs

    def floats(self) -> dict[str, float]:
        """Return the sums as numbers."""
        return {name: float(value) for name, value in self.items()}


def _on_cpu(logps: Logps | None, pairs: slice) -> Logps | None:
    """Return the log-probs of some pairs as constants on the CPU."""
    return None if logps is None else Logps(*(None if c is None else c[pairs].detach().cpu() for c in logps))  # type: ignore[arg-type]


def _rewards(logps: Logps, reference: Logps | None, beta: float) -> dict[str, Tensor]:
    """Return the rewards and log-probs of each pair, as far as the batch holds what they need."""
    found = {"logps_chosen": logps.chosen}
    if logps.rejected is None or reference is None or reference.rejected is None:
        return found
    chosen, rejected = beta * (logps.chosen - reference.chosen), beta * (logps.rejected - reference.rejected)
    return {
        **found,
        "logps_rejected": logps.rejected,
        "reward_chosen": chosen,
        "reward_rejected": rejected,
        "accuracy": (chosen > rejected).double(),
        "ties": (chosen == rejected).double(),
        "margin": chosen - rejected,
    }
