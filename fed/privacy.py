"""The numbers behind `privacy=`: Flower's RDP accountant, and its two kinds of noise in the same unit.

Both kinds are Gaussian mechanisms. Their noise multiplier z is the noise's standard deviation divided by the
sensitivity, the largest change that one client can make to what is published. So z alone decides epsilon: T releases
have RDP T a / (2 z^2) of order a.
"""

import functools
import math
from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord
from flwr.serverapp import GaussianPrivacyEvent, NeighboringRelation, PrivacyConfig, RdpAccountant, SamplingMethod
from torch import Tensor

from fed.config.groups import PrivacySettings
from fed.errors import Failed
from fed.model.arrays import to_record, to_tensors


def accountant(delta: float, population: int) -> RdpAccountant:
    """Return an accountant of releases that each may contain any of `population` clients, without credit for sampling.

    Raises:
        ValueError: If the package that computes it is not installed.
    """
    config = PrivacyConfig(
        target_delta=delta,
        population_size=population,
        # The accountant reads only z of a Gaussian release: the relation is the one that z was computed for.
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
        sampling_method=SamplingMethod.NO_AMPLIFICATION,
    )
    try:
        return RdpAccountant(config)
    except ImportError as error:
        raise ValueError(
            "privacy=central_dp and local_dp need dp-accounting, which computes epsilon: "
            "pip install -c constraints.txt -e '.[privacy]'"
        ) from error


@functools.lru_cache(maxsize=4096)  # most of many clients have taken part equally often
def epsilon(noise_multiplier: float, releases: int, delta: float) -> float:
    """Return the epsilon that so many releases spend together; 0 for none."""
    if releases == 0:
        return 0.0
    one = accountant(delta, 1)
    one.compose(GaussianPrivacyEvent(noise_multiplier, sample_size=1, population_size=1), releases)
    return one.get_epsilon(delta)


def local_sensitivity(settings: PrivacySettings) -> float:
    """Return 2 C, the largest distance between two updates of norm at most C."""
    return 2 * settings.clipping_norm


def classical_epsilon(settings: PrivacySettings) -> float:
    """Return the epsilon with which Flower's `LocalDpMod` adds noise of standard deviation z x sensitivity.

    The mod computes sensitivity sqrt(2 ln(1.25 / delta)) / epsilon. That formula is valid for epsilon < 1 only; here it
    sets the noise and is not used for accounting.
    """
    return math.sqrt(2 * math.log(1.25 / settings.delta)) / settings.noise_multiplier


def moved(sent: ArrayRecord, trained: ArrayRecord) -> ArrayRecord:
    """Return the trained weights; if they equal the sent ones, change the last bits of the first number.

    Flower's clipping divides by the norm of the difference, and nobody may see that a client has not moved.
    """
    before, after = to_tensors(sent), to_tensors(trained)
    if any(name not in before or not torch.equal(before[name], after[name]) for name in after):
        return trained
    name = next((name for name, tensor in after.items() if tensor.numel()), None)
    if name is None:
        return trained
    changed = after[name].clone()
    value = float(changed.flatten()[0])
    changed.view(-1)[0] = value + max(abs(value) * 2**-22, 1e-10)
    return to_record({**after, name: changed})


@torch.no_grad()
def update_norm(sent: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> float:
    """Return the L2 norm of trained - sent over all arrays: differences in float32, as they are clipped, then float64.

    It is inf or NaN if a difference is.
    """
    squares = ((tensor.float() - sent[name].float()).double().square().sum() for name, tensor in trained.items())
    return math.sqrt(sum(map(float, squares)))


@torch.no_grad()
def longest_update(settings: PrivacySettings, sent: Mapping[str, Tensor]) -> float:
    """Return an upper bound on the norm of an update that leaves a client which clips.

    It is the clipping norm C, and with local_dp s (sqrt(d) + 10) for d numbers of noise of standard deviation s:
    Gaussian noise is longer with probability exp(-50) (Boucheron, Lugosi and Massart, Concentration Inequalities,
    Theorem 5.6). The rest is for rounding in float32.
    """
    numbers = sum(tensor.numel() for tensor in sent.values())
    noise = noise_deviation(settings) * (math.sqrt(numbers) + 10) if settings.kind == "local_dp" else 0.0
    weights = math.sqrt(sum(float(tensor.double().square().sum()) for tensor in sent.values()))
    return 1.001 * (settings.clipping_norm + noise) + 1e-6 * weights


def noise_deviation(settings: PrivacySettings) -> float:
    """Return the standard deviation of the noise that a client adds to each number with local_dp."""
    return settings.noise_multiplier * local_sensitivity(settings)


@torch.no_grad()
def check_rounding(settings: PrivacySettings, received: Mapping[str, Tensor]) -> None:
    """Check that float32 holds the noise beside weights of this size; 2^23 + noise below 1 is 2^23 again, for one.

    Raises:
        Failed: If the spacing of float32 at the largest weight is more than a 16th of the noise.
    """
    largest = max((float(tensor.abs().max()) for tensor in received.values() if tensor.numel()), default=0.0)
    if not largest * 2**-23 <= noise_deviation(settings) / 16:
        raise Failed(
            f"the server sent a weight of {largest:.3g}, beside which float32 rounds away noise of standard deviation "
            f"{noise_deviation(settings):.3g}; nothing is sent"
        )


def described(settings: PrivacySettings, num_rounds: int) -> str:
    """Describe the privacy setting and the epsilon it spends in one line."""
    spent = epsilon(settings.noise_multiplier, num_rounds, settings.delta)
    of_whom = " of one client" if settings.kind == "local_dp" else ""
    limit = "" if settings.max_epsilon is None else f", ends before {settings.max_epsilon:g}"
    return (
        f"privacy: {settings.kind}, updates clipped to {settings.clipping_norm:g}, noise multiplier "
        f"{settings.noise_multiplier:g}: epsilon {spent:.3g} at delta {settings.delta:g} after {num_rounds} rounds"
        f"{of_whom}{limit}; what this protects: docs/privacy.md"
    )
