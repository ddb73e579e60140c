"""A loss that looks at other pairs is found out before a run."""

import functools
from collections.abc import Callable

import pytest
import torch

from losses.logps import Logps
from losses.preference import dpo
from losses.trial import stands_alone


def squeezed(policy: Logps, reference: Logps | None) -> torch.Tensor:
    return -(policy.chosen - policy.rejected).squeeze()


def hardest(policy: Logps, reference: Logps | None) -> torch.Tensor:
    margin = policy.chosen - policy.rejected
    return -margin * (margin <= margin.topk(min(2, len(margin)), largest=False).values[-1])


def standardised(policy: Logps, reference: Logps | None) -> torch.Tensor:
    assert len(policy.chosen) > 1
    return (policy.chosen - policy.chosen.mean()) / policy.chosen.std()


@pytest.mark.parametrize(
    ("loss", "by_pair"),
    [(functools.partial(dpo, beta=0.1), True), (squeezed, True), (hardest, False), (standardised, False)],
)
def test_a_loss_that_looks_at_other_pairs_is_found_out(loss: Callable[..., torch.Tensor], by_pair: bool) -> None:
    assert stands_alone(functools.partial(loss)) is by_pair
