"""A fit of devices, drawn. Needs matplotlib."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from matplotlib.figure import Figure

from weightnoise.laws._curves import polynomial

DeviceFit: TypeAlias = Any  # It imports this file for its `plot`.

_BLUE, _RED, _GREEN = "#0072B2", "#D55E00", "#009E73"  # Okabe and Ito's, apart for colour-blind readers.


def plot_fit(fit: DeviceFit) -> Figure:
    """Deviations over the conductance, standardised residuals, and exponents of drift where there are times."""
    count = 2 if fit.drift is None else 3
    figure = Figure(figsize=(4.2 * count, 3.8), layout="constrained")
    axes: Any = figure.subplots(1, count)
    _deviations(axes[0], fit)
    axes[1].plot(fit.targets.abs(), fit.residuals, ".", color=_BLUE, alpha=0.4, markersize=3)
    for level in (-2, 2):
        axes[1].axhline(level, color="#7a7a7a", linestyle="--")
    axes[1].set(xlabel="target", ylabel="residual / standard deviation")
    axes[1].set_title("5 % lie outside the lines, if the law is right", fontsize="medium")
    if fit.drift is not None:
        _exponents(axes[2], fit.drift)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.3)
    return figure


def _deviations(axes: Any, fit: DeviceFit) -> None:
    for points, name, color in ((fit.programming, "device to device", _BLUE), (fit.read, "read to read", _RED)):
        if points is not None:
            axes.errorbar(points.places, points.values, points.errors, fmt="o", color=color, label=name)
    if fit.coefficients:
        full = fit.scale
        r = torch.linspace(
            fit.targets.abs().min().item() / full,
            fit.targets.abs().max().item() / full,
            100,
            dtype=torch.float64,
            device="cpu",
        )
        axes.plot(r * full, polynomial(fit.coefficients, r), color=_BLUE, label="fit")
    axes.set(xlabel="target", ylabel="standard deviation", ylim=(0, None))
    axes.set_title("spread", fontsize="medium")
    axes.legend(frameon=False)


def _exponents(axes: Any, drift: Any) -> None:
    axes.plot(drift.r, drift.exponents, ".", color=_GREEN, alpha=0.4, markersize=3)
    r = torch.linspace(drift.r.min().item(), drift.r.max().item(), 100, dtype=torch.float64, device="cpu")
    mean = drift.mean[0] + drift.mean[1] * r.log()
    axes.plot(r, mean, color=_GREEN)
    axes.fill_between(r, mean - drift.std, mean + drift.std, color=_GREEN, alpha=0.18, linewidth=0)
    axes.set(xlabel="target / g_max", ylabel="exponent of drift")
    axes.set_title("mean ± 1 standard deviation", fontsize="medium")
