"""A policy scored on any rows, against any reference, as a whole and by group.

Shapes: N rows.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from fed.data.examples import are_pairs
from fed.data.rows import Preference
from fed.data.tokens import tokenize
from fed.intervals import mean_interval
from fed.model.evaluation import Loss, Metrics, as_tensors, pair_metrics, response_metrics
from fed.model.lora import adapter_off
from fed.model.policy import OnPairs, Policy, pair_logps
from feedback.asking import Asking
from feedback.policies import Found, Loading, load
from losses.logps import Logps

T = TypeVar("T")


@dataclass(frozen=True)
class Read:
    """Rows as one policy reads and scores them.

    Attributes:
        rows: Those that have token ids.
        logps: The summed log-probs of their responses, float64, (N,).
        dropped: How many rows have none, by reason.
        cut: How many rows lost tokens, because they are longer than what is read.
    """

    rows: Sequence[Preference]
    logps: Logps
    dropped: Mapping[str, int]
    cut: int = 0


def read(policy: Policy, rows: Sequence[Preference], asking: Asking, *, batch_size: int, on_pairs: OnPairs) -> Read:
    """Score rows with one policy.

    Raises:
        ValueError: If no row is left, a prompt has no token, or conversations meet a tokenizer without a chat template.
    """
    found = tokenize(rows, policy.tokenizer, lengths=asking.lengths, chat=asking.chat)
    kept = [row for row, is_kept in zip(rows, found.kept, strict=True) if is_kept]
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in found.cuts.dropped.items())
        raise ValueError(f"no row is left to score ({reasons or 'there was none'})")
    paired = are_pairs(found.examples)
    logps = pair_logps(policy, found.examples, batch_size=batch_size, paired=paired, on_pairs=on_pairs)
    columns = as_tensors(found.examples, [one.chosen for one in logps], [one.rejected for one in logps])
    return Read(kept, columns, found.cuts.dropped, found.cuts.pairs)


def chosen_logps(policy: Policy, rows: Sequence[Preference], asking: Asking, *, batch_size: int) -> Tensor:
    """Return the log-probs of all rows' chosen responses, or a reward model's scores, float64, (N,).

    Raises:
        ValueError: If a row has no token ids.
    """
    found = read(policy, rows, asking, batch_size=batch_size, on_pairs=lambda pairs: None)
    if found.dropped:
        raise ValueError(f"a response cannot be scored: {next(iter(found.dropped))}")
    return found.logps.chosen


def both(found: Found, reference: Found | None, how: Loading, work: Callable[[Policy], T]) -> tuple[T, T | None]:
    """Return what `work` makes of a policy and of its reference, of which one is in memory at a time.

    Args:
        found: The policy.
        reference: The reference; the policy itself if that is the one with its adapter off; None: there is none.
        how: The way both are loaded.
        work: Is given each.
    """
    policy = load(found, how)
    own = work(policy)
    if reference is found:
        with adapter_off(policy.model):
            return own, work(policy)
    if reference is None:
        return own, None
    del policy
    return own, work(load(reference, how))


@dataclass(frozen=True)
class Scores:
    """The scores of every row, from which those of groups follow.

    Attributes:
        rows: The rows.
        policy: Log-probs under the policy.
        reference: Log-probs under the reference; None: there is none, and rewards are the policy's own log-probs.
        losses: The loss of each row, (N,); None: without a reference there is none.
        beta: Scales rewards.
    """

    rows: Sequence[Preference]
    policy: Logps
    reference: Logps | None
    losses: Tensor | None
    beta: float

    @classmethod
    def of(
        cls, rows: Sequence[Preference], policy: Logps, reference: Logps | None, loss: Loss, beta: float
    ) -> "Scores":
        """Return the scores of rows with these log-probs."""
        losses = None if reference is None else loss(policy, reference)
        return cls(rows, policy, reference, losses, beta if reference is not None else 1.0)

    @classmethod
    def of_reads(cls, policy: Read, reference: Read | None, loss: Loss, beta: float) -> "Scores":
        """Return the scores of the rows that both have read.

        Raises:
            ValueError: If the reference could not read a row that the policy could.
        """
        if reference is not None and list(policy.rows) != list(reference.rows):
            raise ValueError(
                f"the policy scores {len(policy.rows)} rows and the reference other {len(reference.rows)}: their "
                "tokenizers drop different ones; raise max_length"
            )
        return cls.of(policy.rows, policy.logps, None if reference is None else reference.logps, loss, beta)

    def metrics(self, places: Sequence[int] | None = None) -> dict[str, Any]:
        """Return the metrics of all rows, or of those at some places, with the ends of 95 % intervals.

        See `fed.model.evaluation.pair_metrics`; `perplexity` is that of chosen responses. Without a reference there are
        no loss and no log-ratio, and accuracy is the share of pairs whose chosen response has the higher log-prob.
        """
        chosen = torch.arange(len(self.rows)) if places is None else torch.tensor(places)
        policy = _part(self.policy, chosen)
        base = _part(self.reference, chosen) if self.reference is not None else _zeros(policy)
        gains = policy.chosen - base.chosen
        is_paired = policy.rejected is not None and not bool(policy.rejected.isnan().any())
        found: Metrics = pair_metrics(policy, base, beta=self.beta) if is_paired else {}
        found.update({k: v for k, v in response_metrics(policy, gains, beta=self.beta).items() if k not in found})
        found["perplexity"] = math.exp(min(found["loss_per_token"], 700.0))
        units = [self.rows[place].conversation for place in chosen.tolist()]
        if is_paired:
            assert policy.rejected is not None and base.rejected is not None
            margins = self.beta * (gains - (policy.rejected - base.rejected))
            _, found["margin_low"], found["margin_high"] = mean_interval(margins.tolist(), units)
        if self.losses is not None:
            found["loss"], found["loss_low"], found["loss_high"] = mean_interval(self.losses[chosen].tolist(), units)
        else:
            found.pop("log_ratio")
        return {"conversations": len(set(units)), **found}

    def by(self, column: str) -> dict[str, dict[str, Any]]:
        """Return the metrics of the rows of each value of a column, in the order of the values.

        Raises:
            ValueError: If no row has such a column.
        """
        places: dict[str, list[int]] = {}
        for place, row in enumerate(self.rows):
            places.setdefault(row.column(column) or "", []).append(place)
        if set(places) == {""}:
            names = sorted({name for row in self.rows for name in row.extra.names})
            raise ValueError(f"by={column} names no column of the rows; they have {', '.join(['group', *names])}")
        return {value: self.metrics(places[value]) for value in sorted(places, key=_natural)}


def _part(logps: Logps, places: Tensor) -> Logps:
    return Logps(*(None if column is None else column[places] for column in logps))  # type: ignore[arg-type]


def _zeros(like: Logps) -> Logps:
    return Logps(torch.zeros_like(like.chosen), None if like.rejected is None else torch.zeros_like(like.rejected))


def _natural(value: str) -> tuple[int, str]:
    return (int(value), "") if value.isascii() and value.isdecimal() else (1 << 62, value)
