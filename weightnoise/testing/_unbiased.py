"""Checks of a law on its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from weightnoise._random import seeds as _seeds
from weightnoise.laws import Noise, sample


def assert_unbiased(law: Noise, weight: Tensor, *, draws: int = 2000, seed: int = 0) -> None:
    """Assert that the noisy weight has the clean weight as its mean.

    The mean deviation of each element is divided by its standard error. Over n elements the
    largest of these exceeds ``sqrt(2 log(n)) + 4`` less than once in 10,000 unbiased cases, and the
    mean over the elements exceeds 4 standard errors as rarely.

    Args:
        law: the law.
        weight: a clean weight, of any shape; one of 10 to 1000 elements tells most.
        draws: how many draws are averaged.
        seed: of the draws; torch's random state stays as it is.

    Raises:
        AssertionError: with the largest deviation found, in standard errors.

    Example:
        >>> assert_unbiased(Chain((Gaussian(0.1), DropConnect(0.5))), torch.randn(20, 10))
    """
    weight = weight.detach().double()
    with _seeds.seeded(seed, weight.device), torch.no_grad():
        moved = torch.stack([sample(law, weight) - weight for _ in range(draws)])
    largest = _scores(moved).max().item()
    overall = _scores(moved.flatten(1).mean(dim=1)).item()
    bound = math.sqrt(2 * math.log(max(weight.numel(), 2))) + 4
    if largest > bound or overall > 4:
        raise AssertionError(
            f"{law!r} is biased: over {draws} draws the largest mean deviation of an element is {largest:.1f} "
            f"standard errors (bound {bound:.1f}), that of their mean {overall:.1f} (bound 4)."
        )


def _scores(samples: Tensor) -> Tensor:
    """Absolute mean over dimension 0 in standard errors; 0 where nothing moves, inf for a fixed bias."""
    mean, error = samples.mean(dim=0).abs(), samples.std(dim=0) / math.sqrt(len(samples))
    return torch.where(mean > 0, mean / error, torch.zeros_like(mean))
