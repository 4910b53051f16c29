"""The demo: a classifier of handwritten digits, trained without and with weight noise."""

from __future__ import annotations

import importlib.util
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from weightnoise._contexts import hold_noise
from weightnoise._weights import add_weight_noise, remove_weight_noise
from weightnoise.laws import Gaussian, Noise

LEVELS = (0.0, 0.05, 0.1, 0.2, 0.3)
TRAINING_NOISE = 0.2
BATCH = 64

Progress: TypeAlias = Callable[[str], None]


@dataclass(frozen=True)
class Digits:
    """Images of digits as rows of 64 numbers between 0 and 1, and their classes."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


@dataclass(frozen=True)
class Curve:
    """Accuracy in per cent over noise levels.

    Attributes:
        label: what the network was trained with.
        values: levels x training seeds x draws.
    """

    label: str
    values: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean accuracy per level."""
        return self.values.mean(dim=(1, 2))

    @property
    def error(self) -> Tensor:
        """Standard error per level: of the networks' means, or of the draws of a single network."""
        samples = self.values.mean(dim=2) if self.values.shape[1] > 1 else self.values[:, 0]
        return samples.std(dim=1) / math.sqrt(samples.shape[1])

    @property
    def spread(self) -> Tensor:
        """Standard deviation over all networks and draws per level."""
        return self.values.flatten(1).std(dim=1)


def missing_extras() -> list[str]:
    """The packages that only the demo needs and that are not installed."""
    return [name for name in ("matplotlib", "sklearn") if importlib.util.find_spec(name) is None]


def load_digits() -> Digits:
    """The 1797 images that scikit-learn ships, split at random, always alike: 1297 to train on, 500 to test on."""
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    images, labels = load(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(images / 16, labels, test_size=500, random_state=0)
    x = [torch.tensor(part, dtype=torch.float32) for part in (train_x, test_x)]
    return Digits(x[0], torch.tensor(train_y), x[1], torch.tensor(test_y))


def make_model() -> nn.Sequential:
    """The network of the demo."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def absmax_noise(level: float) -> Gaussian | None:
    """Gaussian noise of ``level`` times the layer's largest weight, or None for level 0."""
    return Gaussian(level, relative_to="absmax") if level else None


def train(digits: Digits, noise: float, seed: int, epochs: int, progress: Progress) -> nn.Sequential:
    """Train a network, with Gaussian noise of ``noise`` times the largest weight where that is not 0."""
    torch.manual_seed(seed)
    model = make_model()
    law = absmax_noise(noise)
    if law is not None:
        add_weight_noise(model, law)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        for batch in torch.randperm(len(digits.train_y)).split(BATCH):  # type: ignore[no-untyped-call]
            loss = nn.functional.cross_entropy(model(digits.train_x[batch]), digits.train_y[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()
        progress(f"epoch {epoch + 1}/{epochs}, loss {loss.item():.3f}")
    return model if law is None else remove_weight_noise(model)


@torch.no_grad()
def evaluate(model: nn.Module, digits: Digits, law: Noise | None, draws: int) -> list[float]:
    """Test accuracy in per cent for each of ``draws`` seeded draws of noise, one draw for all images."""
    if law is None:
        return [_accuracy(model, digits)] * draws
    add_weight_noise(model, law)
    found = []
    for seed in range(draws):
        with hold_noise(model, seed=seed):
            found.append(_accuracy(model, digits))
    remove_weight_noise(model)
    return found


def _accuracy(model: nn.Module, digits: Digits) -> float:
    hits = model(digits.test_x).argmax(dim=1) == digits.test_y
    return 100.0 * float(hits.float().mean())


def run(noise: float, seeds: int, epochs: int, draws: int, progress: Progress) -> list[Curve]:
    """Train and evaluate networks without noise and with ``noise``, one of each for each seed."""
    digits = load_digits()
    curves: list[Curve] = []
    with one_thread():
        for label, strength in (("no noise", 0.0), (f"noise {noise:g}", noise)):
            networks = []
            for seed in range(seeds):
                name = f"network {len(curves) * seeds + seed + 1}/{2 * seeds} ({label})"
                model = train(digits, strength, seed, epochs, _named(progress, name))
                networks.append([evaluate(model.eval(), digits, absmax_noise(level), draws) for level in LEVELS])
            curves.append(Curve(label, torch.tensor(networks).transpose(0, 1)))
    return curves


def _named(progress: Progress, name: str) -> Progress:
    return lambda text: progress(f"{name}: {text}")


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread inside.

    The network is too small for more: on a machine that is shared, threads that wait for each other
    made the demo ten times slower.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def table(curves: Sequence[Curve]) -> str:
    """Mean accuracy and its standard error, one line a network, one column a noise level."""
    width = max(len(curve.label) for curve in curves) + 2
    lines = ["trained with".ljust(width) + "".join(f"{level:>12g}" for level in LEVELS)]
    for curve in curves:
        cells = (f"{mean:.1f} +- {error:.1f}" for mean, error in zip(curve.mean, curve.error, strict=True))
        lines.append(curve.label.ljust(width) + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def verdict(curves: Sequence[Curve]) -> str:
    """What was measured and what came out."""
    plain, noisy = curves
    _, seeds, draws = noisy.values.shape
    over = "networks" if seeds > 1 else "draws"
    gap = Curve("gap", noisy.values - plain.values)  # In pairs: both have the same seeds and draws.
    side = "ahead" if gap.mean[-1] > 0 else "behind"
    measured = (
        f"Each number is the mean test accuracy in per cent, +- its standard error over the {over}, of "
        f"{_count(seeds, 'network')} under {draws} seeded draws each, on 500 test images. The noise is Gaussian, "
        "on the weight matrices, with a standard deviation of the given fraction of the layer's largest weight, "
        "and one draw is held for the whole test set."
    )
    found = (
        f"At noise {LEVELS[-1]:g} training with noise puts the network {gap.mean[-1].abs().item():.1f} +- "
        f"{gap.error[-1].item():.1f} points {side}; without noise the two stand at {noisy.mean[0].item():.1f} "
        f"(trained with noise) and {plain.mean[0].item():.1f} (without)."
    )
    return "\n".join(textwrap.fill(text, width=79) for text in (measured, found))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def plot(curves: Sequence[Curve], path: Path) -> None:
    """Draw accuracy over noise, with a band of one standard deviation over draws, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes: Any = figure.subplots()
    for curve, color, marker in zip(curves, ("#7a7a7a", "#0b6e99"), ("s", "o"), strict=True):
        mean, spread = curve.mean.numpy(), curve.spread.numpy()
        axes.plot(LEVELS, mean, color=color, marker=marker, label=f"trained with {curve.label}", clip_on=False)
        axes.fill_between(LEVELS, mean - spread, mean + spread, color=color, alpha=0.18, linewidth=0)
    _, seeds, draws = curves[0].values.shape
    axes.set(
        xlabel="noise on the weights at test time (standard deviation / largest weight of the layer)",
        ylabel="test accuracy (%)",
        xlim=(LEVELS[0], LEVELS[-1]),
    )
    subtitle = f"mean ± 1 standard deviation of {_count(seeds, 'network')} x {draws} draws"
    axes.set_title(f"Digits: how a network holds up under weight noise\n{subtitle}", fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150, format="png")
