"""Weights written into the conductances of memory devices: programmed, drifted and read."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from weightnoise._errors import OptionError
from weightnoise._random import draws as _random
from weightnoise._torch.layers import Layout
from weightnoise.laws._conductances import sums, targets, units
from weightnoise.laws._curves import LEAST, Curve, Table, clamped_line, curve_at, power_law
from weightnoise.laws._device_options import check_device, named_repr, warn_beyond
from weightnoise.laws._law import Law, straight_through
from weightnoise.laws._pieces import by_pieces
from weightnoise.laws._quantize import precise
from weightnoise.laws._rates import draw_events, event_mask, is_rare, rate_problem
from weightnoise.laws._regions import Per, Regions, Tile, regions_problem
from weightnoise.laws._scale import Gradient, add_scaled, wide

Draw: TypeAlias = (
    "tuple[Tensor, Tensor | None, Tensor | None] | tuple[Tensor, Tensor | None, Tensor | None, Tensor]"
)

_MEASURED, _MEASURED_G_MAX = (0.26348, 1.9650, -1.1731), 25.0  # In microsiemens.


@dataclass(frozen=True)
class ProgrammingNoise(Law):
    r"""Programming noise, drift until a time, and read noise of pairs of devices; by default phase-change memory.

    A weight w is the difference of two conductances, ``g+ = g_min + (g_max - g_min) max(w, 0) / max |w|`` and g-
    for -w. Each of the two goes through, with ``r = g / g_max`` and independent standard normals::

        programmed   g_p = max(0, m + sigma(m) e1)       m = g + shift(g)
        drifted      g_d = g_p (1 + time / t0)^-nu       nu = |mu(r) + s(r) e2|
        or relaxed   g_d = g_p + relaxation(m) e2
        read         g_r = g_d (1 + q(g_p / g_max) growth e3), or g_d + read(g_d) growth e3

    with ``mu(r) = clamp(a + b ln r, low, high)``, s(r) of the same form, ``q(r) = min(cap, a / r^b)`` and
    ``growth = sqrt(ln((time + t0 + t_read) / (2 t_read)))``. g_r is cut to ``bounds``, and the noisy weight is
    ``(g_r+ - g_r-) max |w| / (g_max - g_min)``. A factor multiplies e1, e2, e3, mu, the shift and the rates of
    stuck devices; the mirrored draw turns the signs of e1, e2 and e3. Computed in float32 or better.

    A curve, such as sigma, is a polynomial ``(c0, c1, ...)`` of r; a table ``((g, value), ...)``, with straight
    lines between its conductances; or ``((time, one of these), ...)``, linear in ln(1 + time / t0) between and
    beyond these times. Its values are conductances. `weightnoise.devices` has laws of measured devices, and
    `fit_device` makes one from measurements.

    The defaults are fits to devices with a largest conductance of 25 microsiemens; give other coefficients for
    others. With the defaults another g_max stands for another device of the same technology: its errors are the
    same fraction of g_max, and so of the weight.

    Args:
        g_max: the conductance that stands for max |w|, in microsiemens or another unit of all conductances.
        time: since the first read after programming (t0), in seconds; 0 for no drift.
        g_min: the conductance of an empty device.
        pairs: how much each of several pairs counts: the first is filled first, and the next holds what is left.
            () for one device for each weight, at g_min for the smallest weight and at g_max for the largest.
        programming: the curve sigma; () for exact programming.
        g_reference: the largest conductance of the device that polynomials are of, whose values are multiplied by
            g_max / g_reference; None for 25 with the default coefficients, and for g_max with others.
        shift: a curve: what the mean of a conductance gains until ``time``.
        drift: a, b, low, high of mu; () for none.
        drift_spread: a, b, low, high of s.
        relaxation: a curve: the standard deviation of what a conductance gains until ``time``; without ``drift``.
        t0: time of the first read after programming, in seconds.
        read: a, b, cap of q, or a table of standard deviations; () for no read noise.
        t_read: duration of a read, in seconds; None for read noise that does not grow.
        bounds: the least and the largest conductance; None for no limit.
        stuck: rates of single devices that stay at g_min, and at g_max.
        compensate: multiply the conductances after the drift: ``"tensor"``, or True, by sum |g| of the weight
            before the drift over sum |g| after it (global drift compensation; from the conductances themselves,
            where a chip has noisy read-outs of them); ``"output"`` by the same of each output; ``"global"`` by one
            number for all weights, which brings the mean of a device at g_max back. False for none of it.
        per: what has an m = max |w| of its own, mapped to g_max: ``"tensor"``, ``"output"`` or ``"input"`` for
            each output or input of the layer, or the dimension of the channels.
        tile: rows and columns of the crossbars that the weight is cut into, as for `Gaussian`.
        measured: the least and the largest conductance of the data that the curves are from, and the longest time;
            None for what is not known. Beyond them a `DeviceRangeWarning` comes once.
        chip: number of a specimen whose programming errors, drift and stuck devices are frozen while read noise is
            fresh in each forward; None for a new programming in each, as in hardware-aware training.
        gradient: ``"straight-through"`` hands the gradient at the noisy weight to the clean one
            unchanged; ``"exact"`` differentiates through all of the above.

    Raises:
        ValueError: for values that are negative or not finite, too few coefficients, and parts that exclude
            each other.

    Example:
        >>> day = ProgrammingNoise(time=86400.0, chip=3)
        >>> day.draw(torch.zeros(4, 3))[0].shape
        torch.Size([2, 4, 3])

    Source:
        Nandakumar et al., Phase-change memory models for deep learning training and inference,
        2019; coefficients as in the open-source IBM Analog Hardware Acceleration Kit. Several pairs: Le Gallo et
        al., Precision of bit slicing with in-memory computing based on analog phase-change memory crossbars, 2022.
    """

    g_max: float = 25.0
    time: float = 0.0
    _: KW_ONLY
    g_min: float = 0.0
    pairs: tuple[float, ...] = (1.0,)
    programming: Curve = _MEASURED
    g_reference: float | None = None
    shift: Curve = ()
    drift: tuple[float, float, float, float] | tuple[()] = (0.0244, -0.0155, 0.049, 0.1)
    drift_spread: tuple[float, float, float, float] = (-0.0059, -0.0125, 0.008, 0.045)
    relaxation: Curve = ()
    t0: float = 20.0
    read: tuple[float, float, float] | Table | tuple[()] = (0.0088, 0.65, 0.2)
    t_read: float | None = 250e-9
    bounds: tuple[float, float | None] = (0.0, None)
    stuck: tuple[float, float] = (0.0, 0.0)
    compensate: bool | Literal["tensor", "output", "global"] | Regions = False
    per: Per = "tensor"
    tile: Tile = None
    measured: tuple[float | None, float | None, float | None] | None = None
    chip: int | None = None
    gradient: Gradient = "straight-through"

    of_chip = True
    normal_draw = True

    def __repr__(self) -> str:
        """As one would write it."""
        return named_repr(self)

    def __post_init__(self) -> None:
        check_device(self)
        warn_beyond(self)

    @property
    def _share(self) -> float:
        """What the polynomial of sigma, of another device, is multiplied by."""
        usual = _MEASURED_G_MAX if self.programming == _MEASURED else self.g_max
        return self.g_max / (usual if self.g_reference is None else self.g_reference)

    def draw(self, weight: Tensor) -> Draw:
        """Standard normals for programming, drift and reading, each in the shape (devices, *weight.shape).

        And numbers for stuck devices, where there are such.
        """
        devices = precise(weight).new_empty(()).expand(2 * len(self.pairs) or 1, *weight.shape)
        programming = _random.normal(devices)  # First, so that a seed means the same device at any time.
        moves = self.relaxation or (self.drift and self.time)
        drawn = programming, _random.normal(devices) if moves else None, self._draw_read(devices)
        return (*drawn, draw_events(devices, devices.shape, *self.stuck)) if any(self.stuck) else drawn

    def redraw(self, weight: Tensor, frozen: Draw) -> Draw:
        """The same programming, drift and faults, read again."""
        return (*frozen[:2], self._draw_read(frozen[0]), *frozen[3:])

    def _draw_read(self, devices: Tensor) -> Tensor | None:
        return _random.normal(devices) if self.read else None

    def apply(self, weight: Tensor, noise: Draw, factor: float) -> Tensor:
        """The conductances of the devices, in units of the weight."""
        if weight.numel() == 0:
            return weight
        if problem := self.factor_problem(factor):
            raise OptionError(problem)
        exact = self.gradient == "exact"
        clean = weight if exact else weight.detach()
        unit, low = units(wide(clean), self.pairs, self.g_max - self.g_min, self.regions)
        make, parts = partial(self._noisy, factor), (clean, unit, low, *noise)
        summed = self.compensate not in (False, "global")  # Over devices of all of the weight.
        noisy = make(*parts) if summed else by_pieces(make, *parts)
        return noisy if exact else straight_through(weight, noisy)

    def _noisy(self, factor: float, weight: Tensor, unit: Tensor, low: Tensor | None, *noise: Any) -> Tensor:
        """What becomes of a weight or a part of it, without a choice of its gradient."""
        clean = wide(weight)
        target, back = targets(clean, self.pairs, self.g_max - self.g_min, unit, low)
        target = target + self.g_min if self.g_min else target
        made = self._conductances(target, noise, factor)
        if len(noise) == 4:
            made = self._with_stuck(made, noise[3], factor)
        return (clean + back(made - target)).to(weight.dtype)  # Of no noise, the weight to the last bit.

    def _curve(self, curve: Curve, g: Tensor) -> Tensor:
        return curve_at(curve, g, self.time / self.t0, self.t0, (self.g_max, self._share))

    def _deviation(self, curve: Curve, g: Tensor) -> Tensor:
        return self._curve(curve, g).clamp(min=0.0)

    def _conductances(self, target: Tensor, noise: Draw, factor: float) -> Tensor:
        programming, drift, read = noise[:3]
        mean = target + abs(factor) * self._curve(self.shift, target) if self.shift else target
        sigma = self._deviation(self.programming, mean)
        made = programmed = add_scaled(mean, programming, factor, sigma).clamp(min=0.0)
        if drift is not None and (self.drift or self.relaxation):
            made = self._drifted(programmed, target, mean, drift, factor)
        if self.compensate:
            made = made * self._compensation(programmed + (target - mean), made, factor)
        if read is not None:
            growth = 1.0
            if self.t_read is not None:
                growth = math.sqrt(math.log((self.time + self.t0 + self.t_read) / (2 * self.t_read)))
            made = add_scaled(made, read, growth * factor, self._read_deviation(programmed, made))
        return made.clamp(*self.bounds)

    def _drifted(self, programmed: Tensor, target: Tensor, mean: Tensor, e: Tensor, factor: float) -> Tensor:
        if self.relaxation:
            return add_scaled(programmed, e, factor, self._deviation(self.relaxation, mean))
        decay = self._exponent(target / self.g_max, e, factor) * -math.log1p(self.time / self.t0)
        return programmed * decay.exp()

    def _exponent(self, ratio: Tensor, drift: Tensor, factor: float) -> Tensor:
        mean, spread = (clamped_line(ratio, *line) for line in (self.drift, self.drift_spread))
        return add_scaled(mean * abs(factor), drift, factor, spread).abs()

    def _read_deviation(self, programmed: Tensor, drifted: Tensor) -> Tensor:
        if isinstance(self.read[0], tuple):
            return self._deviation(self.read, drifted)
        read: Any = self.read
        scale, power, cap = read
        return drifted * power_law(programmed, self.g_max, scale, power).clamp(max=cap)

    def _compensation(self, before: Tensor, after: Tensor, factor: float) -> Tensor:
        over: Any = "tensor" if self.compensate is True else self.compensate
        if over != "global":
            return sums(before, over) / sums(after, over).clamp(min=LEAST)
        full = before.new_full((1,), self.g_max)
        left = full + abs(factor) * self._curve(self.shift, full)
        if self.drift:
            left = self._drifted(left, full, full, torch.zeros_like(full), factor)
        return full / left.clamp(min=LEAST)

    def _with_stuck(self, made: Tensor, numbers: Tensor, factor: float) -> Tensor:
        low, high = self.stuck
        rare = is_rare(low, high)
        made = torch.where(event_mask(numbers, low + high, factor, rare=rare), self.g_max, made)
        return torch.where(event_mask(numbers, low, factor, rare=rare), self.g_min, made)

    def factor_problem(self, factor: float) -> str | None:
        """Why the rates of stuck devices cannot be multiplied by ``factor``, or None."""
        return rate_problem(self, sum(self.stuck), factor) if any(self.stuck) else None

    def laid_out(self, layout: Layout | None) -> ProgrammingNoise:
        """The law for a tensor whose outputs and inputs lie so."""
        law = super().laid_out(layout)
        if law.compensate != "output" or layout is None:
            return law
        return replace(law, compensate=Regions("output", None, layout))

    def problem(self, weight: Tensor) -> str | None:
        """Why it does not fit ``weight``, or None."""
        if self.compensate == "output":
            return "compensate='output' needs a layer whose layout is known, and there it is not. Use 'tensor'"
        return super().problem(weight) or (
            regions_problem(self.compensate, weight) if isinstance(self.compensate, Regions) else None
        )
