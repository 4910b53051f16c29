"""Draw the figures of the pages about the laws: ``python docs/figures.py [folder]``, docs/images by default.

A figure has one row for each law: what it makes of one weight (a histogram, shares or a curve, against the
closed form where there is one), and a weight matrix before and after on one colour scale.
"""

from __future__ import annotations

import argparse
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

import weightnoise as wn
from weightnoise.laws import sample

Panel: TypeAlias = Callable[[Any, wn.Noise], None]

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#9a9a9a"  # Okabe and Ito's, told apart by all.
COLORS = colormaps["PuOr"].resampled(41)  # Few enough for a palette that keeps each of them.
DRAWS = 4000
ROW, COLUMN = 5, 9  # The weight whose noisy values the histograms show.


def weight_matrix() -> Tensor:
    """A matrix with a pattern that the eye can follow, its largest weight 1."""
    outputs = torch.linspace(-1.0, 1.0, 16)[:, None]
    inputs = torch.linspace(-1.0, 1.0, 32)
    weight = torch.cos(4.0 * outputs + 9.0 * inputs) * torch.exp(-1.5 * (outputs**2 + inputs**2))
    return weight / weight.abs().max()


WEIGHT = weight_matrix()
W = WEIGHT[ROW, COLUMN].item()


def noisy_values(law: wn.Noise) -> Tensor:
    """What many draws make of the one weight."""
    return torch.stack([sample(law, WEIGHT)[ROW, COLUMN] for _ in range(DRAWS)])


def normal(mean: float, std: float) -> Callable[[Tensor], Tensor]:
    """The normal density."""
    return lambda value: torch.exp(-(((value - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))


def box(mean: float, bound: float) -> Callable[[Tensor], Tensor]:
    """The density of numbers uniform within ``bound`` of ``mean``."""
    return lambda value: torch.where((value - mean).abs() <= bound, 1 / (2 * bound), 0.0)


def log_normal(weight: float, std: float) -> Callable[[Tensor], Tensor]:
    """The density of ``weight * exp(std e - std^2 / 2)`` for a positive weight."""
    log = normal(-std * std / 2, std)
    return lambda value: torch.where(value > 0, log((value.clamp(min=1e-6) / weight).log()) / value.abs(), 0.0)


def factorised(mean: float, std: float) -> Callable[[Tensor], Tensor]:
    """The density of ``mean + std f(e1) f(e2)``: e1 e2 has the density K0(|z|) / pi, and f is a signed root."""

    def density(value: Tensor) -> Tensor:
        root = ((value - mean) / std).abs().clamp(min=1e-6)
        bessel: Tensor = torch.special.modified_bessel_k0(root**2)
        return 2 * root * bessel / (math.pi * std)

    return density


def laplace(mean: float, scale: float) -> Callable[[Tensor], Tensor]:
    """The Laplace density."""
    return lambda value: torch.exp(-(value - mean).abs() / scale) / (2 * scale)


def histogram(density: Callable[[Tensor], Tensor] | None = None) -> Panel:
    """The noisy values of one weight, and their density where it is known."""

    def panel(axes: Any, law: wn.Noise) -> None:
        values = noisy_values(law)
        low, high = values.min().item(), values.max().item()
        axes.hist(values.numpy(), bins=32, range=(low, high), density=True, color=GREY, label=f"{DRAWS} draws")
        if density is not None:
            margin = 0.05 * (high - low)
            line = torch.linspace(low - margin, high + margin, 400)
            axes.plot(line, density(line), color=ORANGE, label="closed form")
        axes.axvline(W, color=BLUE, linestyle="--", label=f"clean, w = {W:.2f}")
        axes.set(xlabel="noisy weight", ylabel="density")

    return panel


def shares(expected: dict[float, float], *, log: bool = False) -> Panel:
    """How often one weight becomes each of a few values, and the probabilities."""

    def panel(axes: Any, law: wn.Noise) -> None:
        values = noisy_values(law)
        levels = torch.tensor(list(expected))
        found = [((values - level).abs() < 1e-5).float().mean().item() for level in levels]
        width = 0.04 * (levels.max() - levels.min()).item()
        axes.bar(levels, found, width=width, color=GREY, label=f"{DRAWS} draws")
        axes.plot(levels, list(expected.values()), "o", color=ORANGE, markersize=5, label="probability")
        axes.axvline(W, color=BLUE, linestyle="--", label=f"clean, w = {W:.2f}")
        axes.set(xlabel="noisy weight", ylabel="share of draws", ylim=(0, 1.05))
        if log:
            axes.set(yscale="log", ylim=(0.002, 2.0))

    return panel


def curve(axes: Any, law: wn.Noise) -> None:
    """What a law without chance makes of every weight of the matrix."""
    clean, order = WEIGHT.flatten().sort()
    axes.plot(clean, clean, color=BLUE, linestyle="--", label="clean")
    axes.plot(clean, sample(law, WEIGHT).flatten()[order], color=ORANGE, label="changed")
    axes.set(xlabel="clean weight w", ylabel="changed weight")


@dataclass(frozen=True)
class Row:
    """A law in a figure: its name there, and what to draw of one weight; of ``of`` where that is another law."""

    title: str
    law: wn.Noise
    panel: Panel
    of: wn.Noise | None = None


@dataclass(frozen=True)
class Laplace:
    """The law of own-laws.md."""

    scale: float

    def draw(self, weight: Tensor) -> Tensor:
        """Numbers from the Laplace distribution."""
        uniform = torch.rand(weight.shape) - 0.5
        return -uniform.sign() * torch.log1p(-2 * uniform.abs())

    def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
        """The sum."""
        return weight + factor * self.scale * noise


STUCK = {W: 0.8, 0.0: 0.1, 1.0: 0.05, -1.0: 0.05}
STEP = 1 / 3  # Of 3 bits: 7 levels from -1 to 1.
BELOW = math.floor(W / STEP) * STEP
ROUNDED = sample(wn.Chain((wn.Clip(2.0), wn.Quantize(4))), WEIGHT)[ROW, COLUMN].item()


def bit_flips(p: float, bits: int) -> dict[float, float]:
    """Where no bit or one bit flips: the value and its probability."""
    step, most = 1 / (2 ** (bits - 1) - 1), 2**bits
    code = round(W / step) % most
    moved = {W: (1 - p) ** bits}
    for place in range(bits):
        signed = (((code ^ (1 << place)) + most // 2) % most) - most // 2
        moved[W + step * (signed - round(W / step))] = p * (1 - p) ** (bits - 1)
    return moved


FAMILIES: dict[str, list[Row]] = {
    "additive": [
        Row("Gaussian(0.1)", wn.Gaussian(0.1), histogram(normal(W, 0.1))),
        Row("Uniform(0.2)", wn.Uniform(0.2), histogram(box(W, 0.2))),
    ],
    "multiplicative": [
        Row(
            'Gaussian(0.4, relative_to="value")',
            wn.Gaussian(0.4, relative_to="value"),
            histogram(normal(W, 0.4 * abs(W))),
        ),
        Row("LogNormal(0.4)", wn.LogNormal(0.4), histogram(log_normal(W, 0.4))),
    ],
    "dropconnect": [
        Row("DropConnect(0.3)", wn.DropConnect(0.3), shares({0.0: 0.3, W / 0.7: 0.7})),
        Row("DropConnect(0.3, block=8)", wn.DropConnect(0.3, block=8), shares({0.0: 0.3, W / 0.7: 0.7})),
    ],
    "quantisation": [
        Row("Quantize(3)", wn.Quantize(3), curve),
        Row(
            "Quantize(3, stochastic=True)",
            wn.Quantize(3, stochastic=True),
            shares({BELOW: 1 - (W - BELOW) / STEP, BELOW + STEP: (W - BELOW) / STEP}),
        ),
        Row("QuantizationNoise(3)", wn.QuantizationNoise(3), histogram(box(W, STEP / 2))),
    ],
    "converters": [
        Row("Converter(3, range=0.7)", wn.Converter(3, range=0.7), curve),
        Row("Converter(levels=6, range=0.7)", wn.Converter(levels=6, range=0.7), curve),
        Row("Converter(3, range=0.7, signed=False)", wn.Converter(3, range=0.7, signed=False), curve),
    ],
    "faults": [
        Row(
            "StuckAt(zero=0.1, high=0.05, low=0.05)",
            wn.StuckAt(zero=0.1, high=0.05, low=0.05),
            shares(STUCK),
            of=wn.StuckAt(zero=0.1, high=0.05, low=0.05, chip=None),
        ),
        Row("BitFlip(0.02)", wn.BitFlip(0.02), shares(bit_flips(0.02, 8), log=True)),
    ],
    "programming": [
        Row("ProgrammingNoise()", wn.ProgrammingNoise(), histogram()),
        Row("ProgrammingNoise(time=86400.0)", wn.ProgrammingNoise(time=86400.0), histogram()),
    ],
    "devices": [
        Row("devices.RERAM_WAN", wn.devices.RERAM_WAN, histogram()),
        Row("devices.RERAM_CMO", wn.devices.RERAM_CMO, histogram()),
        Row(
            "replace(devices.SONOS, time=86400.0)",
            replace(wn.devices.SONOS, time=86400.0),
            histogram(),
        ),
    ],
    "fixed": [
        Row("Clip(2.0)", wn.Clip(2.0), curve),
        Row("Temperature(85.0)", wn.Temperature(85.0), curve),
    ],
    "learned": [
        Row("LearnedGaussian(0.1)", wn.LearnedGaussian(0.1), histogram(normal(W, 0.1))),
        Row(
            "LearnedGaussian(0.1, factorised=True)",
            wn.LearnedGaussian(0.1, factorised=True),
            histogram(factorised(W, 0.1)),
        ),
        Row("Variational(-2.0)", wn.Variational(-2.0), histogram(normal(W, math.log1p(math.exp(-2.0))))),
        Row(
            "ParametricNoise(0.25)",
            wn.ParametricNoise(0.25),
            histogram(normal(W, 0.25 * WEIGHT.std(correction=0).item())),
        ),
        Row("VariationalDropout(0.25)", wn.VariationalDropout(0.25), histogram(normal(W, 0.5 * abs(W)))),
    ],
    "combining": [
        Row(
            "[Clip(2.0), Quantize(4), Gaussian(0.05)]",
            wn.Chain((wn.Clip(2.0), wn.Quantize(4), wn.Gaussian(0.05))),
            histogram(normal(ROUNDED, 0.05)),
        ),
        Row("Protect(Gaussian(0.2), 0.1)", wn.Protect(wn.Gaussian(0.2), 0.1), histogram(normal(W, 0.2))),
    ],
    "own-laws": [Row("Laplace(0.1)", Laplace(0.1), histogram(laplace(W, 0.1)))],
}


def draw_family(rows: list[Row]) -> Figure:
    """One row a law: one weight, the matrix before, the matrix after."""
    figure = Figure(figsize=(9.0, 2.1 * len(rows)), layout="constrained")
    grid: Any = figure.subplots(len(rows), 3, width_ratios=(1.25, 1.0, 1.0), squeeze=False)
    for (left, before, after), row in zip(grid, rows, strict=True):
        row.panel(left, row.of or row.law)
        left.set_title(row.title, fontsize=9)
        left.legend(fontsize=6.5, framealpha=0.8)
        noisy = sample(row.law, WEIGHT)
        # One scale for both; the few numbers beyond it have its last colour.
        top = max(1.0, min(1.5, noisy.abs().max().item()))
        for axes, shown, title in ((before, WEIGHT, "before"), (after, noisy, "after")):
            image = axes.imshow(
                shown.numpy(), cmap=COLORS, vmin=-top, vmax=top, aspect="auto", interpolation="nearest"
            )
            axes.set_title(title, fontsize=9)
            axes.set_xlabel("input", fontsize=8)
            axes.tick_params(labelsize=7)
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        before.set_ylabel("output", fontsize=8)
        left.tick_params(labelsize=7)
        left.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
        left.xaxis.label.set_fontsize(8)
        left.yaxis.label.set_fontsize(8)
        bar = figure.colorbar(image, ax=(before, after), label="weight", fraction=0.05, pad=0.02)
        bar.ax.tick_params(labelsize=7)
        bar.ax.yaxis.label.set_fontsize(8)
    return figure


def draw_programming_curves() -> Figure:
    """The programming polynomial, and what drift does to the mean weight of a layer over time."""
    figure = Figure(figsize=(9.0, 3.0), layout="constrained")
    left, right = axes_pair = figure.subplots(1, 2)
    g_max, (c0, c1, c2) = 25.0, (0.26348, 1.9650, -1.1731)
    ratio = torch.linspace(0.1, 1.0, 19)
    targets = torch.cat((ratio, torch.ones(1))).expand(DRAWS, -1)
    found = g_max * sample(wn.ProgrammingNoise(read=()), targets)[:, :-1].std(dim=0)
    sigma = c0 + c1 * ratio + c2 * ratio**2
    empty = c0 * math.sqrt(0.5 - 0.5 / math.pi)  # The other device of the pair, programmed to 0 and cut off there.
    left.plot(ratio, found, "o", color=GREY, markersize=4, label=f"standard deviation of {DRAWS} draws")
    left.plot(ratio, (sigma**2 + empty**2).sqrt(), color=ORANGE, label="closed form, both devices")
    left.plot(ratio, sigma, color=BLUE, linestyle="--", label=r"$\sigma(r)$ of one device")
    left.set(xlabel=r"target $r = g / g_{max}$", ylabel="error (microsiemens)", ylim=(0, 1.3), title="programming")
    times = torch.logspace(0, 7.5, 16).tolist()
    weight = torch.linspace(-1.0, 1.0, 2001)
    styles = ((False, ORANGE, "-", "as it drifts"), (True, BLUE, "--", "compensate=True"))
    for compensate, color, style, label in styles:
        kept = []
        for time in times:
            noisy = sample(wn.ProgrammingNoise(time=time, compensate=compensate), weight)
            kept.append((noisy * weight).sum() / weight.square().sum())
        right.plot(times, kept, color=color, linestyle=style, marker=".", label=label)
    for time, name in ((3600.0, "hour"), (86400.0, "day"), (31536000.0, "year")):
        right.axvline(time, color=GREY, linewidth=0.8)
        right.text(time, 0.42, f" {name}", fontsize=7, color="#555555", ha="right", rotation=90)
    right.set(xscale="log", ylim=(0.4, 1.1), xlabel="time after programming (s)")
    right.set(ylabel="slope, noisy on clean weights", title="drift")
    write_small(axes_pair)
    return figure


def write_small(panels: Any) -> None:
    """Give panels side by side a legend, and texts that are as small as those of the other figures."""
    for axes in panels:
        axes.legend(fontsize=7)
        axes.tick_params(labelsize=8)
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
            text.set_fontsize(9)


def draw_devices() -> Figure:
    """How far weights are from what was programmed: over the weight, and over time."""
    figure = Figure(figsize=(9.0, 3.2), layout="constrained")
    left, right = axes_pair = figure.subplots(1, 2)
    weight = torch.linspace(0.0, 1.0, 21)
    targets = torch.cat((weight, torch.tensor([-1.0 + 1e-6, 1.0]))).expand(4 * DRAWS, -1)
    times = torch.logspace(0, 5.2, 9).tolist()
    for name, color in zip(
        wn.devices.__all__, (ORANGE, BLUE, GREEN, "#CC79A7", "#56B4E9", "#000000"), strict=True
    ):
        law = getattr(wn.devices, name)
        spread = (sample(law, targets)[:, :21] - weight).square().mean(dim=0).sqrt()
        left.plot(weight, 100 * spread, color=color, label=name)
        if law.measured is None or law.measured[2] != 0:
            moved = [
                (sample(replace(law, time=time), targets)[:, :21] - weight).square().mean().sqrt()
                for time in times
            ]
            right.plot(times, [100 * one for one in moved], color=color, marker=".", label=name)
    left.set(xlabel="weight / largest weight", ylabel="root mean square error, %", ylim=(0, 8), title="at first")
    right.set(xscale="log", yscale="log", xlabel="time (s)", title="over time, all weights")
    write_small(axes_pair)
    return figure


def draw_fit() -> Figure:
    """A fit of simulated measurements: 2,000 devices, four times, five reads each."""
    law = wn.ProgrammingNoise(pairs=(), programming=(0.4, 1.2, -0.8), read=((0.0, 0.1), (25.0, 0.3)), t_read=None)
    target = torch.linspace(0.0, 25.0, 2000)
    drawn = replace(law, time=1.0).draw(target)
    times = [20.0, 200.0, 2000.0, 20000.0]
    reads = [
        [replace(law, time=time - 20.0).apply(target, law.redraw(target, drawn), 1.0) for _ in range(5)]
        for time in times
    ]
    fit = wn.fit_device(target, torch.stack([torch.stack(some) for some in reads]), times=times)
    return fit.plot()


def draw_paths() -> Figure:
    """The noise of one weight over the steps of a hold."""
    figure = Figure(figsize=(7.0, 2.6), layout="constrained")
    axes: Any = figure.subplots()
    layer = wn.add_weight_noise(torch.nn.Linear(1, 1, bias=False), 1.0)
    kinds: tuple[tuple[Any, str], ...] = ((0.0, GREY), (0.99, BLUE), ((0.9, 0.99, 0.999), ORANGE))
    for rho, color in kinds:
        path = []
        with torch.no_grad(), wn.hold_noise(layer, seed=4, rho=rho) as held:
            for _ in range(400):
                path.append((layer.weight - layer.get_parameter("weight")).item())
                held.advance()
        axes.plot(path, color=color, linewidth=0.6 if rho == 0 else 1.4, label=f"rho={rho}")
    axes.set(xlabel="step", ylabel="noise / std")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def draw_ramps() -> Figure:
    """The factor over the steps of training."""
    figure = Figure(figsize=(7.0, 2.6), layout="constrained")
    axes: Any = figure.subplots()
    steps = range(101)
    ramps = (
        ("linear_ramp(40, start=20)", wn.linear_ramp(40, start=20), ORANGE, "-"),
        ("cosine_ramp(40, start=20)", wn.cosine_ramp(40, start=20), BLUE, "--"),
        ("start_at(40)", wn.start_at(40), GREEN, "-."),
        ("cosine_ramp(30, start=70, first=1, last=0)", wn.cosine_ramp(30, start=70, first=1, last=0), GREY, ":"),
    )
    for label, ramp, color, style in ramps:
        factors = [ramp(step) for step in steps]
        axes.plot(steps, factors, color=color, linestyle=style, drawstyle="steps-post", label=label)
    axes.set(xlabel="step", ylabel="factor of the strength")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    **{name: lambda rows=rows: draw_family(rows) for name, rows in FAMILIES.items()},  # type: ignore[misc]
    "programming-curves": draw_programming_curves,
    "device-errors": draw_devices,
    "device-fit": draw_fit,
    "noise-over-time": draw_paths,
    "ramps": draw_ramps,
}


def save(figure: Figure, path: Path) -> None:
    """Write an SVG that is the same each time, or a PNG with a palette, which takes a third of the space."""
    if path.suffix == ".svg":
        with matplotlib.rc_context({"svg.hashsalt": path.stem}):
            figure.savefig(path, metadata={"Date": None})
        return
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    Image.open(buffer).convert("RGB").quantize(200).save(path, optimize=True)


def main() -> None:
    """Draw all figures into the folder that the command line names."""
    parser = argparse.ArgumentParser(description="Draw the figures of the documentation.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent / "images")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            save(draw(), folder / f"{name}.png")


if __name__ == "__main__":
    main()
