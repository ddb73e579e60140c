"""One client's local update: from the weights it received to the weights it sends back.

Shapes: B pairs of a micro-batch.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from clients.optimizers import clip_grad_norm, make_optimizer
from clients.settings import LocalSettings, OnUpdate, RoundSettings
from clients.state import ClientState
from fed.data.collate import Batch, num_tokens
from fed.data.order import BatchOrder
from fed.data.tokens import Example
from fed.distributed.shards import local
from fed.model.arrays import model_tensors
from fed.model.evaluation import Metrics, evaluate
from fed.model.policy import OnPairs, Policy, pair_logps, total_loss
from losses.anchor import anchor
from losses.logps import Logps


class Pauses(Protocol):
    """The part of `fed.checkpoints.journal.Journal` that a training asks between two steps."""

    def point(self) -> Mapping[str, Any] | None:
        """Where it was stopped before; None: it begins."""

    def pause(self, point: Callable[[], Mapping[str, Any]]) -> None:
        """Returns, or raises `Stopped`, the point being kept."""


@dataclass(frozen=True)
class Part:
    """A process's part of a micro-batch."""

    batch: Batch
    places: Sequence[int]  # of its pairs among those of the micro-batch; none: the batch does not count


class LocalTrainer:
    """Trains the run's one model, in place, for one client after the other."""

    def __init__(self, policy: Policy, settings: LocalSettings) -> None:
        self.policy = policy
        self.settings = settings
        self.weights = {name: p for name, p in policy.model.named_parameters() if p.requires_grad}
        # What the optimizer sees: of weights that are split over processes the part of this one, the very memory.
        self.parameters = {
            name: nn.Parameter(local(p.detach())) if isinstance(p, DTensor) else p for name, p in self.weights.items()
        }
        self._parts = [p for name, p in self.parameters.items() if p is not self.weights[name]]
        self._whole = [p for name, p in self.parameters.items() if p is self.weights[name]]

    def num_pairs(self, examples: Sequence[Example], client_id: int, rounds: int = 1) -> list[int]:
        """Pairs a client with these examples trains on in its first, second, ... round."""
        order, first, found = self._order(examples, client_id), 0, []
        for _ in range(rounds):
            steps = self._steps(order, first)
            found.append(sum(map(len, steps)))
            first += len(steps) if self.settings.reshuffle else 0
        return found

    def train(
        self,
        client_id: int,
        examples: Sequence[Example],
        held_out: Sequence[Example],
        state: ClientState,
        this_round: RoundSettings,
        *,
        on_update: OnUpdate,
        on_pairs: OnPairs,
        pauses: Pauses | None = None,
    ) -> Metrics:
        """Run the round's local steps from the model's present weights; update `state`; mean training metrics.

        The weights afterwards are the client's result. Where it was stopped before, it goes on from that step.

        Raises:
            Stopped: After a step, if that was asked.
        """
        settings = self.settings
        first = state.batches if settings.reshuffle else 0
        order = self._order(examples, client_id)
        if this_round.pairs is None:
            steps = self._steps(order, first)
        else:
            steps = order.stretch(state.examples if settings.reshuffle else 0, this_round.pairs)
        anchored = self._with_anchor(examples, steps)
        received = {name: p.detach().clone() for name, p in self.parameters.items()} if this_round.proximal_mu else {}
        optimizer = self._optimizer(state)
        sums: dict[str, float] = {}
        seen = start = 0
        if pauses is not None and (point := pauses.point()) is not None:
            start, seen, sums = point["steps"], point["seen"], dict(point["sums"])
            state.updates, state.examples = point["updates"], point["examples"]
            optimizer = self._optimizer(replace(state, optimizer=point["optimizer"]))
            with torch.no_grad():
                for name, tensor in model_tensors(self.policy.model).items():
                    tensor.copy_(point["weights"][name])
        for number, indices in list(enumerate(steps))[start:]:
            if held_out and number == 0 and settings.do_first_eval:
                on_update("eval", _tags("eval", self.evaluate(held_out)), state.updates)
            decay = this_round.decay if settings.decay_target == "lr" else 1.0
            position = state.updates if settings.client_optimizer == "persist" else number
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * decay * min(1.0, (position + 1) / (settings.warmup_steps + 1))
            pairs = [(anchored if number else examples)[i] for i in indices]
            metrics = self.step(optimizer, pairs, this_round, received)
            seen += len(indices)
            state.updates += 1
            state.examples += len(indices)
            on_pairs(len(indices))
            on_update("train", self._update_tags(metrics, state, optimizer.param_groups[0]["lr"]), state.updates)
            if (
                held_out
                and state.examples // settings.eval_every > (state.examples - len(indices)) // settings.eval_every
            ):
                on_update("eval", _tags("eval", self.evaluate(held_out)), state.updates)
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + value * len(indices)
            if pauses is not None:
                counts = {"steps": number + 1, "seen": seen, "updates": state.updates, "examples": state.examples}
                pauses.pause(functools.partial(self._point, counts, sums, optimizer))
        state.batches = first + len(steps)
        state.optimizer = self._optimizer_state(optimizer) if settings.client_optimizer == "persist" else {}
        return {name: value / seen for name, value in sums.items()}

    def _point(
        self, counts: Mapping[str, int], sums: Mapping[str, float], optimizer: torch.optim.Optimizer
    ) -> dict[str, Any]:
        """All that the steps to come depend on, but for what was sent and stored before the first one."""
        weights = model_tensors(self.policy.model)
        return {**counts, "sums": sums, "optimizer": self._optimizer_state(optimizer), "weights": weights}

    def _order(self, examples: Sequence[Example], client_id: int) -> BatchOrder:
        settings, layout = self.settings, self.policy.layout
        order = BatchOrder(len(examples), settings.batch_size, settings.seed, client_id)
        if settings.max_tokens_per_step is None:
            return order
        tokens = [num_tokens(example, layout, paired=not settings.supervised) for example in examples]
        return replace(order, tokens=tokens, max_tokens=settings.max_tokens_per_step, padded=not layout.packing)

    def _steps(self, order: BatchOrder, first: int) -> list[np.ndarray]:
        """The example indices of a round's optimizer steps."""
        if self.settings.local_steps is not None:
            return order.batches(first, self.settings.local_steps)
        return order.epochs(first, self.settings.local_epochs)

    def evaluate(self, pairs: Sequence[Example]) -> Metrics:
        """Metrics of the model's present weights on these pairs, by the loss that is trained."""
        settings = self.settings
        return evaluate(self.policy, pairs, loss=settings.loss, beta=settings.beta, batch_size=settings.eval_batch_size)

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        examples: Sequence[Example],
        this_round: RoundSettings,
        received: Mapping[str, Tensor],
    ) -> Metrics:
        """One optimizer step on the mean loss over `examples`; their mean metrics before the step."""
        ranks = self.policy.ranks
        sums: dict[str, float] = {}
        for part in self._micro_batches(examples):
            counts = ranks.count if part.places else 0  # gradients are averaged over the processes that share a model

            def add(values: Mapping[str, Tensor], counts: int = counts) -> None:
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + (float(value.detach().double().sum()) if counts else 0.0)

            def loss(
                policy: Logps, reference: Logps | None, received: Logps | None, part: Part = part, counts: int = counts
            ) -> Tensor:
                losses, values = self._losses(policy, reference, received, this_round, part)
                add(values)
                return counts * losses / len(examples)

            total, logps = total_loss(self.policy, part.batch, loss, by_pair=self.settings.by_pair)
            total.backward()  # type: ignore[no-untyped-call]
            add(_rewards(logps, part.batch.reference, self.settings.beta))
        self._collect_gradients()
        self._add_proximal_gradient(this_round.proximal_mu, received)
        norm = clip_grad_norm(self._whole, self.settings.max_grad_norm, self._parts, self.policy.holders)
        optimizer.step()
        for parameter in (*self.parameters.values(), *self.weights.values()):
            parameter.grad = None
        means = {name: value / len(examples) for name, value in ranks.sum_metrics(sums).items()}
        return {**means, "grad_norm": float(norm)}

    def _micro_batches(self, examples: Sequence[Example]) -> Iterator[Part]:
        """What this process computes of an optimizer step.

        The processes that share a model share the pairs of each micro-batch. One for which none is left computes one of
        the others' in vain, because all must take part.
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

    def _collect_gradients(self) -> None:
        for name, weight in self.weights.items():
            if weight is not self.parameters[name] and weight.grad is not None:
                self.parameters[name].grad = local(weight.grad)

    def _losses(
        self,
        policy: Logps,
        reference: Logps | None,
        received: Logps | None,
        this_round: RoundSettings,
        part: Part,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L_k of each pair, (B,), and its parts. Without `received`, the policy itself is the model received."""
        settings = self.settings
        if settings.by_pair or self.policy.ranks.count == 1:
            losses = settings.loss(policy, reference)
        else:
            losses = self._loss_of_all(policy, reference, part.places)
        parts = {"loss": losses.detach()}
        if settings.decay_target == "loss":
            losses = this_round.decay * losses
        if settings.alpha:
            received = received or policy.detach()
            if settings.anchor_norm == "token":
                policy, received = policy.per_token(), received.per_token()
            parts["anchor"] = anchor(policy, received)
            losses = losses + settings.alpha * parts["anchor"]
        return losses, parts

    def _loss_of_all(self, policy: Logps, reference: Logps | None, places: Sequence[int]) -> Tensor:
        """Losses of this process's pairs by a loss that must see all pairs of the micro-batch together.

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

    @torch.no_grad()
    def _add_proximal_gradient(self, mu: float, received: Mapping[str, Tensor]) -> None:
        """mu (theta - theta^t): the gradient of FedProx's term, without building a graph for it."""
        if mu:
            for name, parameter in self.parameters.items():
                assert parameter.grad is not None
                parameter.grad.add_(parameter - received[name], alpha=mu)

    def _with_anchor(self, examples: Sequence[Example], steps: Sequence[np.ndarray]) -> Sequence[Example]:
        """The examples with their anchor column, from the weights as received.

        Only what later steps read: at the first step the policy is still the model received.
        """
        if not self.settings.alpha:
            return examples
        needed = sorted({int(i) for indices in steps[1:] for i in indices})
        column = pair_logps(
            self.policy,
            [examples[i] for i in needed],
            batch_size=self.settings.eval_batch_size,
            paired=not self.settings.supervised,
        )
        filled = list(examples)
        for i, pair in zip(needed, column, strict=True):
            filled[i] = replace(filled[i], anchor=pair)
        return filled

    def _optimizer(self, state: ClientState) -> torch.optim.Optimizer:
        """A new optimizer, continued from the stored state when there is one."""
        optimizer = make_optimizer(self.settings.optimizer, self.parameters.values(), self.settings.lr)
        for key, tensor in state.optimizer.items():
            name, slot = key.rsplit("/", 1)
            parameter = self.parameters[name]
            # Unless it is fused, AdamW keeps its step count on the CPU.
            here = slot != "step" or optimizer.param_groups[0].get("fused")
            optimizer.state[parameter][slot] = tensor.to(parameter.device if here else "cpu", copy=True)
        return optimizer

    def _optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        return {
            f"{name}/{slot}": torch.as_tensor(value).cpu()
            for name, parameter in self.parameters.items()
            for slot, value in optimizer.state[parameter].items()
            if value is not None
        }

    def _update_tags(self, metrics: Metrics, state: ClientState, lr: float) -> Metrics:
        own = {"counters/examples": state.examples, "counters/updates": state.updates, "lr": lr, "decay": state.decay}
        return {**_tags("train", metrics), **own}


def _on_cpu(logps: Logps | None, pairs: slice) -> Logps | None:
    return None if logps is None else Logps(*(None if c is None else c[pairs].detach().cpu() for c in logps))  # type: ignore[arg-type]


def _rewards(logps: Logps, reference: Logps | None, beta: float) -> dict[str, Tensor]:
    """Rewards and log-probs of each pair, as far as the batch holds what they need."""
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
        "margin": chosen - rejected,
    }


def _tags(split: str, metrics: Metrics) -> Metrics:
    """The original DPO code's TensorBoard tags for these metrics."""
    names = {
        "loss": f"loss/{split}",
        "anchor": f"anchor/{split}",
        "accuracy": f"rewards_{split}/accuracies",
        "margin": f"rewards_{split}/margins",
        "reward_chosen": f"rewards_{split}/chosen",
        "reward_rejected": f"rewards_{split}/rejected",
        "logps_chosen": f"logps_{split}/chosen",
        "logps_rejected": f"logps_{split}/rejected",
        "grad_norm": "grad_norm",
    }
    return {names[name]: value for name, value in metrics.items() if name in names}
