"""Statistics over draws: in running sums, which do not grow with the draws, and those that need all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weightnoise._errors import OptionError


class RunningMean:
    """Mean and variance over units of one draw, or of two that belong together, as they come."""

    mean: Tensor
    _between: Tensor  # Sum of squares of the means of units about the mean.
    _within: Tensor  # And of the draws about the means of their units.

    def __init__(self) -> None:
        self._units = 0

    def add(self, values: Sequence[Tensor]) -> None:
        """One more unit."""
        unit = values[0] if len(values) == 1 else torch.stack(list(values)).mean(dim=0)
        within = sum(((value - unit).square() for value in values), torch.zeros_like(unit))
        if self._units == 0:
            self._size = len(values)
            self.mean, self._between, self._within = unit.clone(), torch.zeros_like(unit), within
        elif unit.shape != self.mean.shape:
            raise OptionError(
                f"predict needs outputs of one shape for a batch, and got {tuple(self.mean.shape)} and "
                f"{tuple(unit.shape)} from two draws."
            )
        else:
            self._within += within
            step = unit - self.mean
            self.mean += step / (self._units + 1)
            self._between += step * (unit - self.mean)
        self._units += 1

    def std(self) -> Tensor:
        """From the unbiased variance: that about the mean that was found, and that of this mean."""
        of_mean = self._between / (self._units * (self._units - 1))
        return ((self._within + self._size * self._between) / (self._units * self._size) + of_mean).sqrt()


def quantiles_over_draws(values: Tensor, which: Sequence[float]) -> Tensor:
    """Over the first dimension; torch.quantile takes 16 million numbers at most."""
    ordered, last = values.sort(dim=0).values, len(values) - 1
    places = [(int(one * last), one * last - int(one * last)) for one in which]
    return torch.stack([ordered[at].lerp(ordered[min(at + 1, last)], rest) for at, rest in places])
