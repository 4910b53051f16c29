"""Estimates from measurements of devices: deviations over the conductance, and exponents of drift."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weightnoise._errors import OptionError
from weightnoise.laws._curves import interpolated

_FULL_ENOUGH = 0.05  # Of the largest conductance: below, a logarithm is mostly noise.


@dataclass(frozen=True, eq=False)
class Points:
    """Estimates over the conductance, in order.

    Attributes:
        places: the mean conductance of the devices of each group.
        values: a standard deviation for each.
        errors: standard errors of these.
    """

    places: Tensor
    values: Tensor
    errors: Tensor

    def at(self, g: Tensor) -> Tensor:
        """The values at other conductances: straight lines between the points, constant beyond."""
        return interpolated(list(zip(self.places.tolist(), self.values.tolist(), strict=True)), g)

    def table(self) -> tuple[tuple[float, float], ...]:
        """The points as the table of a law."""
        return tuple(
            (rounded(place), rounded(value)) for place, value in zip(self.places, self.values, strict=True)
        )


def rounded(value: Any) -> float:
    """To six digits."""
    return float(f"{float(value):.6g}")


def groups(g: Tensor, count: int) -> Tensor:
    """The number of the group of each device: of equal targets where these are few, else of neighbours.

    Devices of one target are in one group, so that no two groups lie at the same place.
    """
    unique: Any = torch.unique
    different, which, sizes = unique(g, return_inverse=True, return_counts=True)
    if len(different) > count:
        before = sizes.cumsum(0) - sizes  # How many devices have a smaller target.
        which = unique(before * count // len(g), return_inverse=True)[1][which]
    return which  # type: ignore[no-any-return]


def deviations(g: Tensor, squares: Tensor, which: Tensor, freedom: int, beside: Tensor | None = None) -> Points:
    """The root of the mean square of each group, less what else is in it.

    Args:
        g: conductances.
        squares: estimates of the variance of each.
        which: the groups.
        freedom: how many degrees of freedom a square has.
        beside: variances that are in the squares and are not meant.
    """
    size = torch.bincount(which).double()

    def mean(of: Tensor) -> Tensor:
        return torch.zeros_like(size).index_add(0, which, of) / size

    whole = mean(squares)
    own = (whole if beside is None else whole - mean(beside)).clamp(min=0.0)
    std = own.sqrt()
    # Of a variance of k degrees of freedom sqrt(2 / k) of itself; of its root, half of that by the root.
    errors = whole * (2.0 / (size * freedom)).sqrt() / (2.0 * std).clamp(min=1e-30)
    places = mean(g)
    order = places.argsort()
    return Points(places[order], std[order], torch.minimum(errors, whole.sqrt())[order])


def fitted_deviation(
    r: Tensor, squares: Tensor, beside: Tensor, degree: int, start: Points
) -> tuple[Tensor, Tensor]:
    """Maximum likelihood of a polynomial standard deviation: its coefficients, and their standard errors.

    Each square is one of a normal number of variance ``sigma(r)^2 + beside``.
    """
    powers = _powers(r, degree)
    first = torch.linalg.lstsq(powers, start.at(r).unsqueeze(1)).solution[:, 0]
    unit = squares.mean().sqrt().clamp(min=1e-30)  # So that all coefficients are of the order of 1.
    with torch.enable_grad():
        own = (first / unit).clone().requires_grad_()
        optimizer = torch.optim.LBFGS([own], max_iter=300, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            variance = ((powers @ own).square() + beside / unit**2).clamp(min=1e-12)
            value: Tensor = (variance.log() + squares / unit**2 / variance).mean()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(loss)  # type: ignore[no-untyped-call]
    coefficients = own.detach() * unit
    sigma = powers @ coefficients
    slopes = 2 * sigma.unsqueeze(1) * powers / (sigma.square() + beside).clamp(min=1e-30).unsqueeze(1)
    covariance = torch.linalg.pinv(slopes.T @ slopes / 2)
    return coefficients, covariance.diagonal().sqrt()


def _powers(r: Tensor, degree: int) -> Tensor:
    """The powers of each number from 0 to the degree, in a row."""
    return torch.stack([r**power for power in range(degree + 1)], dim=1)


def fitted_mean(r: Tensor, values: Tensor, sigma: Tensor, degree: int) -> Tensor | None:
    """A polynomial mean by weighted least squares; None where it is not to be told from 0.

    That is up to 4 standard deviations of chi-square above its mean.
    """
    weights = 1.0 / sigma.clamp(min=sigma.max() * 1e-3 + 1e-30)
    powers = _powers(r, degree) * weights.unsqueeze(1)
    found = torch.linalg.lstsq(powers, (values * weights).unsqueeze(1)).solution[:, 0]
    chi_square = (powers @ found).square().sum().item()
    freedom = degree + 1
    return found if chi_square > freedom + 4 * math.sqrt(2 * freedom) else None


@dataclass(frozen=True, eq=False)
class Drift:
    """Exponents of drift: ``nu = a + b ln r`` on average, with a standard deviation; and each device's.

    Attributes:
        mean: a, b.
        std: from device to device.
        limits: the least and the largest mean over the measured conductances.
        r: of the devices whose exponents are known.
        exponents: theirs.
        errors: standard errors of a, b.
    """

    mean: tuple[float, float]
    std: float
    limits: tuple[float, float]
    r: Tensor
    exponents: Tensor
    errors: tuple[float, float]


def drift_of(g: Tensor, full: float, means: Tensor, variances: Tensor, times: Tensor) -> Drift:
    """Slopes of the logarithm of conductances over that of time.

    Args:
        g: targets.
        full: the largest conductance.
        means: conductances at each time.
        variances: of these, by reading.
        times: since programming.
    """
    r = g / full
    known = (r > _FULL_ENOUGH) & (means > 0).all(dim=0)
    if not bool(known.any()):
        raise OptionError(
            f"fit_device(times=..., g_max={rounded(full)}) knows no exponent of drift: of {len(g)} devices none "
            f"is above {100 * _FULL_ENOUGH:g} % of g_max and read above 0 at each time. Leave times out for a law "
            "without drift, or measure larger conductances; g_max is the conductance of the largest weight."
        )
    x = times.log() - times.log().mean()
    size = x.square().sum()
    exponents = -(x.unsqueeze(1) * means[:, known].log()).sum(dim=0) / size
    reading = ((x.unsqueeze(1) / size).square() * (variances / means.square())[:, known]).sum(dim=0)
    log = r[known].log()
    columns = [torch.ones_like(log), log] if bool((log != log[0]).any()) else [torch.ones_like(log)]
    design = torch.stack(columns, dim=1)
    variance = torch.zeros_like(reading)
    for _ in range(3):  # Each device counts by how well its exponent is known, as far as that is.
        root = (variance + reading).clamp(min=1e-30).rsqrt() if bool(variance.any()) else torch.ones_like(reading)
        found = torch.linalg.lstsq(design * root.unsqueeze(1), (exponents * root).unsqueeze(1)).solution[:, 0]
        squares = (exponents - design @ found).square() * len(log) / max(len(log) - len(found), 1)
        own = ((squares - reading) * root**4).sum() / (root**4).sum()
        variance = own.clamp(min=0.0).expand_as(reading)
    known_by = design * (variance + reading).clamp(min=1e-30).rsqrt().unsqueeze(1)
    errors = torch.linalg.pinv(known_by.T @ known_by).diagonal().sqrt().tolist()
    a, b = [*found.tolist(), 0.0][:2]
    fits, std = design @ found, math.sqrt(variance[0].item())
    return Drift((a, b), std, (fits.min().item(), fits.max().item()), r[known], exponents, (*errors, 0.0)[:2])
