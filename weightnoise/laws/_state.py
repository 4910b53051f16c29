"""Gaussian noise whose strength depends on the state of the device that holds the weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from weightnoise._checks import check_choice, check_per, check_strength, is_number
from weightnoise._errors import OptionError
from weightnoise._random import draws as _random
from weightnoise.laws._curves import polynomial
from weightnoise.laws._law import Law, straight_through
from weightnoise.laws._options import law_repr
from weightnoise.laws._regions import Per, Tile
from weightnoise.laws._scale import Gradient, statistic, wide

Coefficients: TypeAlias = "tuple[float, ...] | tuple[tuple[float, ...], ...]"


@dataclass(frozen=True)
class StateDependentNoise(Law):
    r"""Gaussian noise that depends on the size of the weight: ``w + scale(w) sigma(g) / g_max * e``.

    ``g = g_max |w| / scale(w)`` is the state of the device, ``e ~ N(0, 1)`` per element, and sigma a polynomial,
    ``sigma(g) = max(0, c0 + c1 g + c2 g^2 + ...)``, or several: a polynomial up to each of the ``breaks``, and
    the last one beyond them. An empty device, of ``g <= threshold``, has no noise and reads 0. A factor
    multiplies sigma.

    Args:
        coefficients: c0, c1, ...; or several tuples of them, one more than there are breaks.
        breaks: states at which the next polynomial begins, in ascending order.
        threshold: the largest state of an empty device; 0 spares weights that are 0. None for no such device.
        g_max: the state that stands for scale(w), in the unit of the coefficients, the breaks and the threshold;
            1 for fractions of the scale, 25 for microsiemens of a device with that range.
        relative_to: scale(w): ``"absmax"``, ``"std"`` or ``"rms"``, as for `Gaussian`.
        per: what has a scale of its own: ``"tensor"``, ``"output"`` or ``"input"`` for each output or input of the
            layer, or the dimension of the channels.
        tile: rows and columns of the crossbars that the weight is cut into, as for `Gaussian`.
        gradient: ``"straight-through"`` hands the gradient at the noisy weight to the clean one unchanged;
            ``"exact"`` differentiates sigma and the scale too.

    Raises:
        ValueError: for coefficients that are no finite numbers, breaks that do not ascend or are not one fewer
            than the polynomials, and values that are negative.

    Example:
        >>> StateDependentNoise((0.01, 0.03), per="output")  # 1 % of the largest weight of an output, 4 % at it.
        StateDependentNoise(coefficients=(0.01, 0.03), per='output')

    Source:
        Joshi et al., Accurate deep neural network inference using computational phase-change memory, 2020, arXiv
        1906.03138; two polynomials and a threshold: Büchel et al., Analog foundation models, 2025,
        arXiv 2505.09663.
    """

    coefficients: Coefficients
    _: KW_ONLY
    breaks: tuple[float, ...] = ()
    threshold: float | None = None
    g_max: float = 1.0
    relative_to: Literal["absmax", "std", "rms"] = "absmax"
    per: Per = "tensor"
    tile: Tile = None
    gradient: Gradient = "straight-through"

    __repr__ = law_repr
    normal_draw = True

    def __post_init__(self) -> None:
        name = "StateDependentNoise"
        pieces = self._pieces
        if not pieces or not all(map(_are_numbers, pieces)) or () in pieces:
            raise OptionError(
                f"{name}(coefficients=...) must be a tuple of finite numbers, or a tuple of such tuples, got "
                f"{self.coefficients!r}."
            )
        ascending = _are_numbers(self.breaks) and list(self.breaks) == sorted(set(self.breaks))
        if not ascending or len(self.breaks) != len(pieces) - 1:
            raise OptionError(
                f"{name}(breaks=...) must be {len(pieces) - 1} numbers in ascending order, one fewer than there "
                f"are polynomials, got {self.breaks!r}."
            )
        if self.threshold is not None:
            check_strength(name, "threshold", self.threshold)
        check_strength(name, "g_max", self.g_max)
        if self.g_max == 0:
            raise OptionError(f"{name}(g_max=...) must be positive.")
        check_choice(name, "relative_to", self.relative_to, ("absmax", "std", "rms"))
        check_per(name, self.per)
        check_choice(name, "gradient", self.gradient, ("straight-through", "exact"))

    @property
    def _pieces(self) -> tuple[tuple[float, ...], ...]:
        given = self.coefficients
        if not isinstance(given, tuple):
            return ()
        nested = bool(given) and isinstance(given[0], tuple)
        return given if nested else (given,)  # type: ignore[return-value]

    @property
    def sign_symmetric(self) -> bool:  # type: ignore[override]
        """Whether no weight is moved to 0, which has one direction."""
        return not self.threshold

    def draw(self, weight: Tensor) -> Tensor:
        """Standard normal numbers in the weight's shape."""
        return _random.normal(weight)

    def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
        """``weight + factor * scale(weight) * sigma(g) / g_max * noise``, and 0 for an empty device."""
        exact = self.gradient == "exact"
        clean = wide(weight if exact else weight.detach())
        std, empty = self._deviation(clean)
        noisy = clean + std * noise * factor
        if empty is not None and self.threshold:
            noisy = torch.where(empty, 0.0, noisy)
        noisy = noisy.to(weight.dtype)
        return noisy if exact else straight_through(weight, noisy)

    def _deviation(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """The standard deviation of each weight, and which devices are empty."""
        scale = statistic(weight, self.relative_to, self.regions)
        unit = torch.where(scale > 0, scale, 1.0) / self.g_max
        state = weight.abs() / unit
        sigma = polynomial(self._pieces[-1], state)
        for piece, end in zip(self._pieces[-2::-1], self.breaks[::-1], strict=True):
            sigma = torch.where(state <= end, polynomial(piece, state), sigma)
        # Nothing is known of a device whose range is 0: all of its weights are 0.
        std = torch.where(scale > 0, sigma.clamp(min=0.0) * unit, 0.0)
        if self.threshold is None:
            return std, None
        empty = state <= self.threshold
        return torch.where(empty, 0.0, std), empty

    def deviation(self, weight: Tensor, strengths: Mapping[str, Tensor] | None = None) -> Tensor | None:
        """The standard deviation of each weight; None where the threshold moves weights to 0."""
        if self.threshold:
            return None
        return self._deviation(wide(weight if self.gradient == "exact" else weight.detach()))[0]


def _are_numbers(values: object) -> bool:
    return isinstance(values, tuple) and all(map(is_number, values))
