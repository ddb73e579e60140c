"""One client's local update: from the weights it received to the weights it sends back."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from clients.optimizers import load_optimizer_state, make_optimizer, optimizer_state
from clients.schedule import Schedule, warmed_up
from clients.settings import LocalSettings, RoundSettings
from clients.state import ClientState
from clients.step import Step
from fed.data.examples import Example
from fed.distributed.stop import Pauses
from fed.model.arrays import model_tensors
from fed.model.evaluation import Metrics, evaluate
from fed.model.policy import Policy, pair_logps
from fed.model.randomness import AdapterDropout
from fed.tracking.log import Log
from fed.tracking.metrics import untied_accuracy

NO_PAUSES = Pauses()
# The original DPO code's TensorBoard tags; {} is "train" or "eval".
TAGS = {
    "loss": "loss/{}",
    "anchor": "anchor/{}",
    "accuracy": "rewards_{}/accuracies",
    "ties": "rewards_{}/ties",
    "margin": "rewards_{}/margins",
    "reward_chosen": "rewards_{}/chosen",
    "reward_rejected": "rewards_{}/rejected",
    "logps_chosen": "logps_{}/chosen",
    "logps_rejected": "logps_{}/rejected",
    "grad_norm": "grad_norm",
}


@dataclass
class Progress:
    """The progress of a client's training within a round."""

    steps: int = 0  # optimizer steps taken
    seen: int = 0  # pairs trained on
    sums: dict[str, float] = field(default_factory=dict)  # of each metric over the pairs

    def add(self, metrics: Metrics, pairs: int) -> None:
        """Add a step on so many pairs with these mean metrics."""
        self.steps += 1
        self.seen += pairs
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * pairs

    def means(self) -> Metrics:
        """Return the mean metrics over all pairs trained on, and their number as `examples`."""
        return {**{name: value / self.seen for name, value in self.sums.items()}, "examples": self.seen}


class LocalTrainer:
    """A trainer that trains the run's one model, in place, for one client after the other."""

    def __init__(self, policy: Policy, settings: LocalSettings) -> None:
        self.policy = policy
        self.settings = settings
        self.schedule = Schedule(settings, policy.layout)
        self.step = Step(policy, settings)
        self.dropout = AdapterDropout(policy.model)

    def train(
        self,
        client_id: int,
        examples: Sequence[Example],
        held_out: Sequence[Example],
        state: ClientState,
        this_round: RoundSettings,
        log: Log,
        pauses: Pauses = NO_PAUSES,
    ) -> Metrics:
        """Train one client for a round, update `state` and return the mean metrics of the steps.

        The training begins with the model's present weights, or continues from `pauses.point()`. It leaves the result
        in the model.

        Raises:
            Stopped: After a step, if the run was asked to stop.
        """
        steps = self.schedule.steps(examples, client_id, state, this_round)
        anchored = self.with_anchor(examples, steps)
        received = {n: p.detach().clone() for n, p in self.step.parameters.items()} if this_round.proximal_mu else {}
        optimizer, progress = self._begin(state, pauses.point())
        for number, indices in list(enumerate(steps))[progress.steps :]:
            if held_out and number == 0 and self.settings.do_first_eval:
                self._report_evaluation(log, client_id, held_out, state.updates)
            lr = self._set_lr(optimizer, this_round, warmed_up(self.settings, len(steps), number, state.updates))
            pairs = [(anchored if number >= self._first_anchored else examples)[i] for i in indices]
            with self.dropout.on(self.settings.seed, client_id, state.updates, self.policy.ranks.index):
                metrics = self.step.take(optimizer, pairs, this_round, received)
            progress.add(metrics, len(pairs))
            state.add_step(len(pairs))
            with log.phase("log"):
                log.advance(len(pairs))
                log.update(client_id, "train", _update_tags(metrics, state, lr, this_round.decay), step=state.updates)
            if held_out and self._evaluation_is_due(state.examples, len(pairs)):
                self._report_evaluation(log, client_id, held_out, state.updates)
            pauses.pause(functools.partial(self._point, progress, state, optimizer))
        state.batches = len(steps) + (state.batches if self.settings.reshuffle else 0)
        state.optimizer = self._optimizer_state(optimizer) if self.settings.client_optimizer == "persist" else {}
        return progress.means()

    def evaluate(self, pairs: Sequence[Example]) -> Metrics:
        """Return the metrics of the model's present weights on these pairs, by the loss that is trained."""
        settings = self.settings
        return evaluate(self.policy, pairs, loss=settings.loss, beta=settings.beta, batch_size=settings.eval_batch_size)

    def with_anchor(self, examples: Sequence[Example], steps: Sequence[np.ndarray]) -> Sequence[Example]:
        """Return the examples with their anchor column, from the weights as received.

        Without dropout only examples of later steps get one: at the first step the policy is still the model received.
        """
        if not self.settings.alpha:
            return examples
        needed = sorted({int(i) for indices in steps[self._first_anchored :] for i in indices})
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

    @property
    def _first_anchored(self) -> int:
        """The first step that needs the anchor column."""
        return 0 if self.dropout else 1

    def _set_lr(self, optimizer: torch.optim.Optimizer, this_round: RoundSettings, share: float) -> float:
        """Set and return the learning rate: this share of the round's, decayed if decay is the learning rate's."""
        base = self.settings.lr if this_round.lr is None else this_round.lr
        lr = base * (this_round.decay if self.settings.decay_target == "lr" else 1.0) * share
        for group in optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _evaluation_is_due(self, examples: int, added: int) -> bool:
        """Return whether the last step, which added so many pairs, passed a multiple of `eval_every`."""
        return examples // self.settings.eval_every > (examples - added) // self.settings.eval_every

    def _report_evaluation(self, log: Log, client_id: int, held_out: Sequence[Example], updates: int) -> None:
        tags = _tags("eval", self.evaluate(held_out))
        with log.phase("log"):
            log.update(client_id, "eval", tags, step=updates)

    def _point(self, progress: Progress, state: ClientState, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the state from which training can continue within the round."""
        return {
            "steps": progress.steps,
            "seen": progress.seen,
            "updates": state.updates,
            "examples": state.examples,
            "sums": progress.sums,
            "optimizer": self._optimizer_state(optimizer),
            "weights": model_tensors(self.policy.model),
        }

    def _begin(self, state: ClientState, point: Mapping[str, Any] | None) -> tuple[torch.optim.Optimizer, Progress]:
        """Return the optimizer and the progress; those of a point, after restoring its weights and counters."""
        if point is None:
            return self._optimizer(state.optimizer), Progress()
        state.updates, state.examples = point["updates"], point["examples"]
        with torch.no_grad():
            for name, tensor in model_tensors(self.policy.model).items():
                tensor.copy_(point["weights"][name])
        return self._optimizer(point["optimizer"]), Progress(point["steps"], point["seen"], dict(point["sums"]))

    def _optimizer(self, state: Mapping[str, torch.Tensor]) -> torch.optim.Optimizer:
        """Return a new optimizer, with the stored state if there is one."""
        optimizer = make_optimizer(self.settings.optimizer, self.step.parameters.values(), self.settings.lr)
        load_optimizer_state(optimizer, self.step.parameters, state)
        return optimizer

    def _optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
        return optimizer_state(optimizer, self.step.parameters)


def _update_tags(metrics: Metrics, state: ClientState, lr: float, decay: float) -> Metrics:
    """Return a step's values by their tags; pairs that tie are no part of the accuracy."""
    own = {"counters/examples": state.examples, "counters/updates": state.updates, "lr": lr, "decay": decay}
    shown = {name: value for name, value in metrics.items() if name != "accuracy"}
    if (accuracy := untied_accuracy(metrics)) is not None:
        shown["accuracy"] = accuracy
    return {**_tags("train", shown), **own}


def _tags(split: str, metrics: Metrics) -> Metrics:
    return {TAGS[name].format(split): value for name, value in metrics.items() if name in TAGS}
