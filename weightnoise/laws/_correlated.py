"""Noise that several weights have in common: a row, a layer, a die, or neighbours on a crossbar."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from weightnoise._checks import check_strength
from weightnoise._errors import OptionError
from weightnoise._random import common as _common
from weightnoise._random import draws as _random
from weightnoise.laws._additive import Gaussian, Uniform
from weightnoise.laws._complete import complete
from weightnoise.laws._law import Law, Noise, apply_law
from weightnoise.laws._learned import LearnedDeviation
from weightnoise.laws._masks import DropConnect
from weightnoise.laws._multiplicative import LogNormal
from weightnoise.laws._options import law_repr
from weightnoise.laws._quantize import QuantizationNoise
from weightnoise.laws._rates import check_chip
from weightnoise.laws._scale import wide
from weightnoise.laws._state import StateDependentNoise

_NORMAL = (Gaussian, LogNormal, StateDependentNoise, LearnedDeviation)
_EACH = (*_NORMAL, Uniform, QuantizationNoise, DropConnect)
_REACH = 4.0  # Standard deviations of the kernel, where it is cut.


@dataclass(frozen=True)
class Correlated(Law):
    r"""A law whose random numbers several weights have in common; each weight alone has the noise of the law.

    ``shared``: one number along these dimensions. ``Correlated(Gaussian(0.05, relative_to="value"), shared=1)`` is
    a gain for each row, ``shared="tensor"`` one for the whole parameter, and with a ``group`` one for all
    parameters that name it: variation from die to die. ``length``: numbers that vary smoothly over the matrix of
    dimension 0 and the rest; those of two weights at the distance d, in cells, have the correlation
    ``exp(-d^2 / length^2)``.

    Put independent noise behind it in a list. Factor, mirrored draw and gradient are those of the law.

    Args:
        law: `Gaussian`, `LogNormal`, `StateDependentNoise`, `Variational`, `VariationalDropout` or
            `ParametricNoise`; with ``shared`` also `Uniform`, `QuantizationNoise`, `DropConnect` without blocks.
        shared: a dimension, a tuple of them, or ``"tensor"``.
        length: the correlation length, in cells; positive.
        group: parameters with laws of the same group have the same number, of a chip and of a held draw; with
            ``shared="tensor"`` and a ``chip``.
        chip: number of a specimen whose numbers are frozen, as for `StuckAt`; None for others in each forward.

    Raises:
        ValueError: for another law, for ``shared`` and ``length`` together or neither of them, and for a group
            without a chip or for a part of a parameter.

    Example:
        >>> gain = Correlated(LogNormal(0.1), shared="tensor", group="die", chip=0)
        >>> spec = [gain, Gaussian(0.02, relative_to="absmax")]

    Source:
        Variation within a die and from die to die: Pelgrom, Duinmaijer and Welbers, Matching properties of MOS
        transistors, 1989; smooth variation: Xiong, Zolotov and He, Robust extraction of spatial correlation, 2007.
    """

    law: Noise
    _: KW_ONLY
    shared: int | tuple[int, ...] | Literal["tensor"] | None = None
    length: float | None = None
    group: str | None = None
    chip: int | None = None

    __repr__ = law_repr

    def __post_init__(self) -> None:
        kinds = _EACH if self.length is None else _NORMAL
        if not isinstance(self.law, kinds) or getattr(self.law, "block", 1) != 1:
            names = ", ".join(kind.__name__ for kind in kinds if kind is not LearnedDeviation)
            raise OptionError(
                f"Correlated(law) must have one number for each weight, as {names} and the laws of a learned "
                f"deviation have, got {self.law!r}."
            )
        if (self.shared is None) == (self.length is None):
            raise OptionError(
                "Correlated takes shared, for equal numbers, or length, for smooth ones: one of them."
            )
        dims = self.shared if isinstance(self.shared, tuple) else (self.shared,)
        whole = all(isinstance(dim, int) and not isinstance(dim, bool) for dim in dims) and dims
        if self.shared not in (None, "tensor") and not whole:
            raise OptionError(
                f"Correlated(shared=...) must be a dimension, several or 'tensor', got {self.shared!r}."
            )
        if self.length is not None:
            check_strength("Correlated", "length", self.length)
            if self.length == 0:
                raise OptionError("Correlated(length=0) has no meaning: use the law itself.")
        check_chip("Correlated", self.chip)
        named = isinstance(self.group, str) and self.shared == "tensor" and self.chip is not None
        if self.group is not None and not named:
            raise OptionError(
                f"Correlated(group={self.group!r}) names a specimen, for whole parameters: give "
                "shared='tensor' and a chip with it."
            )
        part = complete(self.law)
        own = {"parts": (part,), "gradient": part.gradient, "common": self.group and "group"}
        for name, value in own.items():
            object.__setattr__(self, name, value)

    @property
    def smooths(self) -> bool:
        """Whether its numbers are convolved with a kernel, so that last bits may hang on threads and modes."""
        return self.length is not None

    def draw(self, weight: Tensor) -> Tensor:
        """The numbers of the law, in a shape that broadcasts to the weight, or smooth ones in its shape."""
        if self.group is not None:
            return _common.of_group(self.group, lambda: self._own_draw(weight), weight.device)
        return self._own_draw(weight)

    def _own_draw(self, weight: Tensor) -> Tensor:
        if self.length is not None:
            return _smooth(weight, self.length)
        shape = list(weight.shape)
        for dim in range(weight.ndim) if self.shared == "tensor" else self._dims:
            shape[dim] = 1
        drawn: Tensor = self.parts[0].draw(weight.new_empty(shape))
        return drawn

    @property
    def _dims(self) -> tuple[int, ...]:
        return self.shared if isinstance(self.shared, tuple) else (self.shared,)  # type: ignore[return-value]

    def redraw(self, weight: Tensor, frozen: Tensor) -> Tensor:
        """What is frozen."""
        return frozen

    def apply(
        self, weight: Tensor, noise: Tensor, factor: float, strengths: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The law's noisy weight for these numbers."""
        return apply_law(self.parts[0], weight, noise.expand(weight.shape), factor, strengths or {})

    def independent(self) -> Law:
        """The law itself, which does the same to each weight alone."""
        return self.parts[0]

    def problem(self, weight: Tensor) -> str | None:
        """Why ``shared`` or the law does not fit ``weight``, or None."""
        dims = self._dims if self.shared not in (None, "tensor") else ()
        if missing := [dim for dim in dims if not -weight.ndim <= dim < weight.ndim]:
            return (
                f"shared={missing[0]} names a dimension that a tensor of shape {tuple(weight.shape)} does not have"
            )
        return super().problem(weight)

    def around(self, parts: tuple[Noise, ...]) -> Correlated:
        """The same of another law."""
        return replace(self, law=parts[0])


def _smooth(weight: Tensor, length: float) -> Tensor:
    """Standard normal numbers in the weight's shape, white ones that a Gaussian kernel has smoothed.

    Its standard deviation is half the length, so that the correlation falls to 1/e there; its squares add up to 1.
    """
    if weight.numel() == 0:
        return _random.normal(weight)
    reach = math.ceil(_REACH * length / 2)
    rows = weight.shape[0] if weight.ndim > 1 else 1
    columns = weight.numel() // rows
    like = wide(weight.detach())
    around = reach if weight.ndim > 1 else 0
    white = _random.normal(like.new_empty((rows + 2 * around, columns + 2 * reach)))
    place = torch.arange(-reach, reach + 1, dtype=like.dtype, device=like.device)
    kernel = torch.exp(-2.0 * (place / length).square())
    kernel = (kernel / torch.linalg.vector_norm(kernel)).reshape(1, 1, -1)
    smooth = F.conv1d(white.unsqueeze(1), kernel)[:, 0]
    if around:
        smooth = F.conv1d(smooth.T.unsqueeze(1), kernel)[:, 0].T
    return smooth.reshape(weight.shape).to(weight.dtype)
