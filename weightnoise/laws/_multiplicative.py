"""Noise that multiplies the weight by a positive random number."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from weightnoise._checks import check_choice, check_strength
from weightnoise._random import draws as _random
from weightnoise._random import passes as _passes
from weightnoise._torch.modes import computes_numbers
from weightnoise.laws._law import Law, straight_through
from weightnoise.laws._options import law_repr
from weightnoise.laws._scale import Gradient, wide


@dataclass(frozen=True)
class LogNormal(Law):
    r"""Log-normal weight noise: ``w * exp(std e - std^2 / 2)`` with ``e ~ N(0, 1)`` per element.

    The sign of a weight never changes, the mean stays w, and the standard deviation of the noisy
    weight is ``|w| sqrt(exp(std^2) - 1)``. Scaling by a factor f makes the strength ``f std``.

    Args:
        std: standard deviation of the logarithm, dimensionless. 0.1 to 0.5 is usual.
        gradient: ``"straight-through"`` hands the gradient at the noisy weight to the clean one
            unchanged; ``"exact"`` multiplies it by the random number.

    Raises:
        ValueError: for a strength that is negative or not finite.

    Example:
        >>> law = LogNormal(0.3)
        >>> bool((law.apply(torch.ones(9), law.draw(torch.ones(9)), 1.0) > 0).all())
        True

    Source:
        Multiplicative noise of a device whose conductance varies by a factor: Klachko, Mahmoodi
        and Strukov, Improving noise tolerance of mixed-signal neural networks, 2019, arXiv 1904.01705.
    """

    std: float
    _: KW_ONLY
    gradient: Gradient = "straight-through"

    normal_draw = True
    __repr__ = law_repr

    def __post_init__(self) -> None:
        check_strength("LogNormal", "std", self.std)
        check_choice("LogNormal", "gradient", self.gradient, ("straight-through", "exact"))

    def draw(self, weight: Tensor) -> Tensor:
        """Standard normal numbers in the weight's shape."""
        return _random.normal(weight)

    def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
        """``weight * exp(s * noise - s^2 / 2)`` with ``s = factor * std``."""
        std = factor * self.std
        if _passes.can_apply(factor, weight, noise):
            return self._in_one_pass(weight, noise, std)
        ratio = _ratio(wide(noise), std)
        if self.gradient == "exact":
            return (weight * ratio).to(weight.dtype)
        return straight_through(weight, (weight.detach() * ratio).to(weight.dtype))

    def _in_one_pass(self, weight: Tensor, noise: Tensor, std: float) -> Tensor:
        def make() -> Tensor:
            return _passes.apply(_passes.LOG_NORMAL, (std, -std * std / 2), weight, noise)

        if self.gradient != "exact":
            return make()
        return _passes.with_gradients(make, lambda grad, noise: (grad * _ratio(noise, std),), (noise,), weight)

    def apply_part(self, part: Tensor, noise: Tensor, factor: float, over_parts: object) -> Tensor:
        """As for `Gaussian`."""
        return self.apply(part.contiguous(), noise.contiguous(), factor)  # The bits of the whole.


def _ratio(noise: Tensor, std: float) -> Tensor:
    if computes_numbers():
        return torch.rsub(noise, std * std / -2, alpha=-std).exp_()
    # For compiled code alpha is a constant, and a schedule's factor none.
    return (noise * std - std * std / 2).exp()
