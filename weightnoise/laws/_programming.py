"""Weights written into the conductances of phase-change memory."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from weightnoise._checks import check_choice, check_per, check_strength, is_number
from weightnoise._errors import OptionError
from weightnoise._random import draws as _random
from weightnoise.laws._law import Law, straight_through
from weightnoise.laws._options import law_repr
from weightnoise.laws._quantize import precise
from weightnoise.laws._rates import check_chip
from weightnoise.laws._regions import Per, Tile
from weightnoise.laws._scale import Gradient, statistic, wide

Draw: TypeAlias = tuple[Tensor, Tensor | None, Tensor | None]

_MEASURED, _MEASURED_G_MAX = (0.26348, 1.9650, -1.1731), 25.0  # In microsiemens.
_LEAST = 1e-7  # Of g_max: the logarithm of a conductance of 0 is not needed, its clamped value is.


@dataclass(frozen=True)
class ProgrammingNoise(Law):
    r"""Phase-change memory: programming noise, drift until a time, and read noise, in a pair of devices.

    A weight w is the difference of two conductances, ``g+ = g_max max(w, 0) / max |w|`` and g- for
    -w. Each of the two goes through, with ``r = g / g_max`` and independent standard normals::

        programmed   g_p = max(0, g + sigma(r) e1)      sigma(r) = (g_max / g_reference) (c0 + c1 r + c2 r^2 + ...)
        drifted      g_d = g_p (1 + time / t0)^-nu      nu = |mu(r) + s(r) e2|
        read         g_r = max(0, g_d (1 + q(g_p / g_max) sqrt(ln((time + t0 + t_read) / (2 t_read))) e3))

    with ``mu(r) = clamp(a + b ln r, low, high)``, s(r) of the same form and ``q(r) = min(cap, a / r^b)``.
    The noisy weight is ``(g_r+ - g_r-) max |w| / g_max``. A factor multiplies e1, e2, e3 and the mean
    drift mu; the mirrored draw turns the signs of e1, e2 and e3. Computed in float32 or better.

    The defaults are fits to devices with a largest conductance of 25 microsiemens; give other coefficients for
    others. With the defaults another g_max stands for another device of the same technology: its errors are the
    same fraction of g_max, and so of the weight.

    Args:
        g_max: the conductance that stands for max |w|, in microsiemens.
        time: since the first read after programming (t0), in seconds; 0 for no drift.
        programming: c0, c1, ... of sigma, in microsiemens of a device whose largest conductance is g_reference.
            () for exact programming.
        g_reference: that conductance, in microsiemens; None for 25 with the default coefficients, and for
            g_max with others.
        drift: a, b, low, high of mu.
        drift_spread: a, b, low, high of s.
        t0: time of the first read after programming, in seconds.
        read: a, b, cap of q; () for no read noise.
        t_read: duration of a read, in seconds.
        compensate: multiply each weight matrix by sum |g| before the drift over sum |g| after it (global
            drift compensation; from the conductances themselves, where a chip has noisy read-outs of them).
        per: what has an m = max |w| of its own, mapped to g_max: ``"tensor"``, ``"output"`` or ``"input"`` for
            each output or input of the layer, or the dimension of the channels.
        tile: rows and columns of the crossbars that the weight is cut into, as for `Gaussian`.
        chip: number of a specimen whose programming errors and drift are frozen while read noise is
            fresh in each forward; None for a new programming in each, as in hardware-aware training.
        gradient: ``"straight-through"`` hands the gradient at the noisy weight to the clean one
            unchanged; ``"exact"`` differentiates through all of the above.

    Raises:
        ValueError: for values that are negative or not finite, or too few coefficients.

    Example:
        >>> day = ProgrammingNoise(time=86400.0, chip=3)
        >>> day.draw(torch.zeros(4, 3))[0].shape
        torch.Size([2, 4, 3])

    Source:
        Nandakumar et al., Phase-change memory models for deep learning training and inference,
        2019; coefficients as in the open-source IBM Analog Hardware Acceleration Kit.
    """

    g_max: float = 25.0
    time: float = 0.0
    _: KW_ONLY
    programming: tuple[float, ...] = _MEASURED
    g_reference: float | None = None
    drift: tuple[float, float, float, float] = (0.0244, -0.0155, 0.049, 0.1)
    drift_spread: tuple[float, float, float, float] = (-0.0059, -0.0125, 0.008, 0.045)
    t0: float = 20.0
    read: tuple[float, float, float] | tuple[()] = (0.0088, 0.65, 0.2)
    t_read: float = 250e-9
    compensate: bool = False
    per: Per = "tensor"
    tile: Tile = None
    chip: int | None = None
    gradient: Gradient = "straight-through"

    __repr__ = law_repr
    of_chip = True
    normal_draw = True

    def __post_init__(self) -> None:
        options = ("g_max", "time", "t0", "t_read") + ("g_reference",) * (self.g_reference is not None)
        for option in options:
            check_strength("ProgrammingNoise", option, getattr(self, option))
            if option != "time" and getattr(self, option) == 0:
                raise OptionError(f"ProgrammingNoise({option}=...) must be positive.")
        for option, lengths in (("drift", (4,)), ("drift_spread", (4,)), ("read", (0, 3))):
            _check_numbers(option, getattr(self, option), lengths)
        _check_numbers("programming", self.programming, None)
        check_choice("ProgrammingNoise", "compensate", self.compensate, (True, False))
        check_per("ProgrammingNoise", self.per)
        check_chip("ProgrammingNoise", self.chip)
        check_choice("ProgrammingNoise", "gradient", self.gradient, ("straight-through", "exact"))

    @property
    def _reference(self) -> float:
        """The largest conductance of the device that the coefficients of sigma are for."""
        if self.g_reference is not None:
            return self.g_reference
        return _MEASURED_G_MAX if self.programming == _MEASURED else self.g_max

    def draw(self, weight: Tensor) -> Draw:
        """Standard normals for programming, drift and reading, each in the shape (2, *weight.shape)."""
        pair = precise(weight).new_empty(()).expand(2, *weight.shape)
        programming = _random.normal(pair)  # First, so that a seed means the same device at any time.
        return programming, _random.normal(pair) if self.time else None, self._draw_read(pair)

    def redraw(self, weight: Tensor, frozen: Draw) -> Draw:
        """The same programming and drift, read again."""
        return frozen[0], frozen[1], self._draw_read(frozen[0])

    def _draw_read(self, pair: Tensor) -> Tensor | None:
        return _random.normal(pair) if self.read else None

    def apply(self, weight: Tensor, noise: Draw, factor: float) -> Tensor:
        """The difference of the two conductances, in units of the weight."""
        if weight.numel() == 0:
            return weight
        exact = self.gradient == "exact"
        clean = wide(weight if exact else weight.detach())
        unit = statistic(clean, "absmax", self.regions).clamp(min=torch.finfo(clean.dtype).tiny) / self.g_max
        positive = clean.clamp(min=0.0)
        # Not (-w).clamp(min=0): at w = 0 both of the pair would have a slope, and the weight one of 2.
        target = torch.stack((positive, positive - clean)) / unit
        made = self._conductances(target, noise, factor)
        noisy = ((made[0] - made[1]) * unit).to(weight.dtype)
        return noisy if exact else straight_through(weight, noisy)

    def _conductances(self, target: Tensor, noise: Draw, factor: float) -> Tensor:
        programming, drift, read = noise
        ratio = target / self.g_max
        share = self.g_max / self._reference
        sigma = sum(
            (share * c * ratio**power for power, c in enumerate(self.programming)), torch.zeros_like(ratio)
        )
        made = programmed = (target + sigma * programming * factor).clamp(min=0.0)
        if drift is not None:
            made = programmed * (1.0 + self.time / self.t0) ** -self._exponent(ratio, drift, factor)
            if self.compensate:
                made = made * (programmed.sum() / made.sum().clamp(min=_LEAST))
        if read is not None:
            scale, power, cap = self.read  # type: ignore[misc]
            spread = (scale / (programmed / self.g_max).clamp(min=_LEAST) ** power).clamp(max=cap)
            growth = math.sqrt(math.log((self.time + self.t0 + self.t_read) / (2 * self.t_read)))
            made = (made * (1.0 + spread * growth * read * factor)).clamp(min=0.0)
        return made

    def _exponent(self, ratio: Tensor, drift: Tensor, factor: float) -> Tensor:
        log = ratio.clamp(min=_LEAST).log()
        mean, spread = ((a + b * log).clamp(low, high) for a, b, low, high in (self.drift, self.drift_spread))
        return (mean * abs(factor) + spread * drift * factor).abs()


def _check_numbers(option: str, values: object, lengths: tuple[int, ...] | None) -> None:
    numbers = isinstance(values, tuple) and all(map(is_number, values))
    if not numbers or (lengths is not None and len(values) not in lengths):  # type: ignore[arg-type]
        wanted = "finite numbers" if lengths is None else f"{lengths[-1]} finite numbers"
        raise OptionError(f"ProgrammingNoise({option}=...) must be a tuple of {wanted}, got {values!r}.")
