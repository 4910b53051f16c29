"""From measurements of devices to a law."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from weightnoise._checks import check_choice, check_count, check_strength
from weightnoise._config import spec_to_config
from weightnoise._errors import OptionError
from weightnoise._estimating import (
    Drift,
    Points,
    deviations,
    drift_of,
    fitted_deviation,
    fitted_mean,
    groups,
    rounded,
)
from weightnoise._fit_laws import conductance_law, weight_law
from weightnoise.laws import Noise
from weightnoise.laws._curves import polynomial

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class DeviceFit:
    """The result of `fit_device`.

    Attributes:
        law: the law, or a list of two for weights that were read several times: the chip's and the reading's.
        programming: standard deviations from device to device, by groups of conductances.
        read: those from read to read; None where nothing was read twice.
        coefficients: of the polynomial of the programming error in r; () for a table.
        coefficient_errors: their standard errors.
        drift: the exponents; None without times.
        scale: the conductance or weight at which r is 1.
        targets: what was to be programmed.
        residuals: of each device, divided by the standard deviation that the law gives it: standard normal
            numbers where the law is right.
    """

    law: Noise | list[Noise]
    programming: Points
    read: Points | None
    coefficients: tuple[float, ...]
    coefficient_errors: tuple[float, ...]
    drift: Drift | None
    scale: float
    targets: Tensor
    residuals: Tensor

    def save(self, path: str | Path) -> None:
        """Write the law as JSON, for `spec_from_config` and ``weightnoise robustness --law device.json``."""
        text = json.dumps(spec_to_config(self.law), indent=2)
        Path(path).write_text(text + "\n", encoding="utf-8")

    def plot(self) -> Figure:
        """Deviations and residuals over the conductance, and exponents of drift. Needs matplotlib."""
        from weightnoise._fit_plot import plot_fit

        return plot_fit(self)


def fit_device(
    target: Tensor,
    measured: Tensor,
    *,
    times: Sequence[float] | Tensor | None = None,
    g_max: float | None = None,
    g_min: float | None = None,
    curve: Literal["polynomial", "table"] = "polynomial",
    degree: int = 2,
    knots: int = 10,
    weights: bool = False,
) -> DeviceFit:
    r"""Fit a law to measured devices: errors of programming, drift, and read noise.

    Repeated reads tell the two apart: what all reads of a device have in common is its own (from device to device,
    so from chip to chip), the rest is the noise of reading. A device's mean of n reads has the variance
    ``sigma(r)^2 + read^2 / n``, of which sigma is found: a polynomial by maximum likelihood of normal numbers, a
    table from the mean squares of groups of devices. With several times each device has an exponent nu, the slope
    of ``-ln g`` over ``ln t``; mu is fitted to them as ``a + b ln r``, on devices of more than 5 % of g_max.

    Args:
        target: conductances that were programmed, of any shape; or weights.
        measured: what was read, of the shape ``target.shape``, ``(reads, *target.shape)``, or with ``times``
            ``(times, *target.shape)`` or ``(times, reads, *target.shape)``.
        times: of the reads, in seconds since programming, positive and ascending; the first is t0 of the law.
        g_max: the conductance that stands for the largest weight; None for the largest target.
        g_min: that of an empty device; None for the smallest target.
        curve: ``"polynomial"`` of r = g / g_max, or ``"table"``.
        degree: of the polynomial.
        knots: the most points of a table, each of a group of devices.
        weights: whether these are weights, of either sign: the law is `StateDependentNoise` then, relative to the
            largest of them; of two reads and more a list with that of the chip `Frozen`. Times are refused.

    Returns:
        A `DeviceFit` with the law, the estimates it is from, residuals, ``plot()`` and ``save(path)``.

    Raises:
        OptionError: for shapes that do not fit, numbers that are none, negative conductances, fewer than 10
            devices, times that do not ascend, and times where no device of more than 5 % of g_max has an exponent.

    Example:
        >>> target = torch.linspace(0, 25, 500)
        >>> measured = target + 0.5 * torch.randn(8, 1, 500).mean(0) + 0.1 * torch.randn(8, 500)
        >>> fit_device(target, measured, degree=0).read.values.mean() < 0.15
        tensor(True)

    Source:
        The way of measuring: Nandakumar et al., Phase-change memory models for deep learning training and
        inference, 2019; components of variance: Searle, Casella and McCulloch, Variance components, 1992.
    """
    check_choice("fit_device", "curve", curve, ("polynomial", "table"))
    check_count("fit_device", "degree", degree, 0, 8)
    check_count("fit_device", "knots", knots, 1)
    with torch.inference_mode(False), torch.no_grad():
        return _fit(target, measured, times, g_max, g_min, curve, degree, knots, weights)


def _fit(
    target: Any,
    measured: Any,
    times: Any,
    g_max: float | None,
    g_min: float | None,
    curve: str,
    degree: int,
    knots: int,
    weights: bool,
) -> DeviceFit:
    g, x, t = _data(target, measured, times, weights)
    full = g.abs().max().item() if g_max is None else check_strength("fit_device", "g_max", g_max)
    empty = g.min().item() if g_min is None else check_strength("fit_device", "g_min", g_min)
    if not full > 0:
        raise OptionError("fit_device(target=...) has no conductance above 0.")
    means, read = x.mean(dim=1), _read_noise(x, knots)
    reading = torch.zeros_like(means) if read is None else read.at(means.abs()).square() / x.shape[1]
    spread = _programming(g.abs() / full, full, means[0] - g, reading[0], degree, curve, knots, centred=weights)
    drift = None if t is None else drift_of(g, full, means, reading, t)
    curve_or_points = spread.coefficients or spread.points
    if weights:
        law: Any = weight_law(curve_or_points, read, full)
    else:
        law = conductance_law(curve_or_points, read, drift, spread.shift, (empty, full), g, t)
    return DeviceFit(
        law, spread.points, read, spread.coefficients, spread.errors, drift, full, g, spread.residuals
    )


@dataclass(frozen=True, eq=False)
class _Spread:
    """What was found of the error of programming."""

    points: Points
    coefficients: tuple[float, ...]
    errors: tuple[float, ...]
    shift: tuple[float, ...]
    residuals: Tensor


def _read_noise(x: Tensor, knots: int) -> Points | None:
    if x.shape[1] == 1:
        return None
    at = x.mean(dim=1).abs().flatten()
    return deviations(at, x.var(dim=1).flatten(), groups(at, knots), x.shape[1] - 1)


def _programming(
    r: Tensor, full: float, errors: Tensor, reading: Tensor, degree: int, curve: str, knots: int, centred: bool
) -> _Spread:
    g, which = r * full, groups(r, knots)
    points = deviations(g, errors.square(), which, 1, reading)
    shift = None
    if not centred:
        shift = fitted_mean(r, errors, (points.at(g).square() + reading).sqrt(), degree)
    if shift is not None:
        errors = errors - polynomial(shift.tolist(), r)
        points = deviations(g, errors.square(), which, 1, reading)
    sigma = points.at(g)
    found: tuple[float, ...] = ()
    uncertain: tuple[float, ...] = ()
    if curve == "polynomial":
        coefficients, own = fitted_deviation(r, errors.square(), reading, degree, points)
        sigma = polynomial(coefficients.tolist(), r).clamp(min=0.0)
        found, uncertain = (tuple(map(rounded, one)) for one in (coefficients, own))
    residuals = errors / (sigma.square() + reading).sqrt().clamp(min=1e-30)
    return _Spread(points, found, uncertain, () if shift is None else tuple(map(rounded, shift)), residuals)


def _data(
    target: Tensor, measured: Tensor, times: Sequence[float] | Tensor | None, weights: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The targets in a row, what was read as (times, reads, devices), and the times, all as float64 on the CPU."""
    g, x = _numbers("target", target), _numbers("measured", measured)
    t = None if times is None else _numbers("times", times)
    lead = x.ndim - g.ndim
    if tuple(x.shape[lead:]) != tuple(g.shape) or lead not in ((0, 1) if t is None else (1, 2)):
        raise OptionError(
            f"fit_device(measured=...) must have the shape (reads, *target.shape), or with times (times, reads, "
            f"*target.shape), got {tuple(x.shape)} for targets of {tuple(g.shape)}."
        )
    if g.numel() < 10:
        raise OptionError(f"fit_device(target=...) has {g.numel()} devices; 10 are the least for a spread.")
    if not (torch.isfinite(g).all() and torch.isfinite(x).all()):
        raise OptionError(
            "fit_device(target, measured) holds numbers that are not finite. Leave these devices out."
        )
    if not weights and bool((g < 0).any()):
        raise OptionError("fit_device(target=...) has negative conductances. For weights give weights=True.")
    if t is not None:
        ascending = t.ndim == 1 and len(t) > 1 and bool((t.diff() > 0).all() and t[0] > 0 and t.isfinite().all())
        if weights or not ascending or len(t) != x.shape[0]:
            raise OptionError(
                f"fit_device(times=...) must be two times or more, positive and ascending, one for each row of "
                f"conductances, got {times!r}" + (" with weights=True." if weights else ".")
            )
    x = x.reshape(1 if t is None else x.shape[0], -1, g.numel())
    return g.flatten(), x, t


def _numbers(option: str, value: Any) -> Tensor:
    """The numbers as float64 on the CPU, in memory of their own: those of inference mode cannot be fitted to."""
    try:
        given = torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"fit_device({option}=...) must be a tensor or a list of numbers: {error}") from error
    if given.is_complex():
        raise OptionError(f"fit_device({option}=...) must be real numbers, got {given.dtype}.")
    return torch.empty(given.shape, dtype=torch.float64, device="cpu").copy_(given)
