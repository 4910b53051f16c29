"""The demo: classifiers of handwritten digits, trained without and with weight noise, and measured under noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from weightnoise._robustness.evaluate import evaluate_robustness
from weightnoise._robustness.report import RobustnessReport
from weightnoise._weights import add_weight_noise, remove_weight_noise
from weightnoise.laws import Gaussian, Noise, ProgrammingNoise, StuckAt

TRAINING_NOISE = 0.2
BATCH = 64

Progress: TypeAlias = Callable[[str], None]


@dataclass(frozen=True)
class Condition:
    """Noise at test time that grows.

    Attributes:
        name: what it is.
        law: of strength 1.
        levels: factors on it.
        unit: what a level counts.
    """

    name: str
    law: Noise
    levels: tuple[float, ...]
    unit: str


GAUSSIAN = Gaussian(1.0, relative_to="absmax")
CONDITIONS = (
    Condition(
        "Gaussian noise", GAUSSIAN, (0.0, 0.05, 0.1, 0.2, 0.3), "standard deviation / largest weight of the matrix"
    ),
    Condition("stuck weights", StuckAt(zero=1.0), (0.0, 0.1, 0.2, 0.3, 0.4), "share of weights stuck at 0"),
    Condition(
        "phase-change memory", ProgrammingNoise(), (0.0, 1.0, 2.0, 4.0, 6.0), "times the noise of measured devices"
    ),
)
ALONE = 0.3  # Level of the Gaussian noise on one weight matrix alone.


@dataclass(frozen=True)
class Digits:
    """Images of digits as rows of 64 numbers between 0 and 1, and their classes."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


@dataclass(frozen=True)
class Curve:
    """Accuracy in per cent over noise levels, or over parameters that have noise alone.

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


@dataclass(frozen=True)
class Results:
    """The findings of the demo, for networks trained without noise and with it, in this order.

    Attributes:
        conditions: a pair of curves for each of `CONDITIONS`.
        parameters: the names of the weight matrices.
        alone: a pair of curves over ``parameters``, with noise of level `ALONE` on one of them.
    """

    conditions: Sequence[Sequence[Curve]]
    parameters: Sequence[str]
    alone: Sequence[Curve]


def load_digits() -> Digits:
    """The 1797 images that scikit-learn ships, split at random, always alike: 1297 to train on, 500 to test on."""
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    images, labels = load(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(images / 16, labels, test_size=500, random_state=0)
    x = [torch.tensor(part, dtype=torch.float32, device="cpu") for part in (train_x, test_x)]
    y = [torch.tensor(part, dtype=torch.int64, device="cpu") for part in (train_y, test_y)]
    return Digits(x[0], y[0], x[1], y[1])


def make_model() -> nn.Sequential:
    """The network of the demo."""
    first, second, third = (
        nn.Linear(inputs, outputs, dtype=torch.float32, device="cpu")
        for inputs, outputs in ((64, 128), (128, 64), (64, 10))
    )
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)


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
        order = torch.randperm(len(digits.train_y), dtype=torch.int64, device="cpu")
        for batch in order.split(BATCH):  # type: ignore[no-untyped-call]
            loss = nn.functional.cross_entropy(model(digits.train_x[batch]), digits.train_y[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()
        progress(f"epoch {epoch + 1}/{epochs}, loss {loss.item():.3f}")
    return model if law is None else remove_weight_noise(model)


def evaluate(model: nn.Module, digits: Digits, law: Noise | None, draws: int) -> list[float]:
    """Test accuracy in per cent for each of ``draws`` draws of ``law``, one draw for all images."""
    report = _report(model, digits, draws, levels=(1.0,), law=law or Gaussian(0.0))
    found: list[float] = report.values[0].tolist()
    return found


def run(noise: float, seeds: int, epochs: int, draws: int, progress: Progress) -> Results:
    """Train and evaluate networks without noise and with ``noise``, one of each for each seed."""
    digits = load_digits()
    found: dict[str, list[list[RobustnessReport]]] = {}
    with one_thread():
        for label, strength in (("no noise", 0.0), (f"noise {noise:g}", noise)):
            networks = found.setdefault(label, [])
            for seed in range(seeds):
                name = f"network {len(found) * seeds - seeds + seed + 1}/{2 * seeds} ({label})"
                model = train(digits, strength, seed, epochs, _named(progress, name))
                networks.append(_reports(model, digits, draws))
    *conditions, alone = (
        [_curve(label, place, found[label]) for label in found] for place in range(len(CONDITIONS) + 1)
    )
    return Results(conditions, tuple(networks[0][-1].curves), alone)


def _reports(model: nn.Module, digits: Digits, draws: int) -> list[RobustnessReport]:
    """One for each condition, and that of noise on one parameter at a time."""
    under = [_report(model, digits, draws, levels=one.levels, law=one.law) for one in CONDITIONS]
    return [*under, _report(model, digits, draws, levels=[ALONE], law=GAUSSIAN, by_parameter=True)]


def _report(model: nn.Module, digits: Digits, draws: int, **options: Any) -> RobustnessReport:
    @torch.no_grad()
    def accuracy(model: nn.Module) -> float:
        hits = model.eval()(digits.test_x).argmax(dim=1) == digits.test_y
        return 100.0 * float(hits.double().mean())

    return evaluate_robustness(model, accuracy, draws=draws, progress=False, **options)


def _curve(label: str, place: int, networks: Sequence[Sequence[RobustnessReport]]) -> Curve:
    rows = [torch.cat(list(reports[place].curves.values())) for reports in networks]
    return Curve(label, torch.stack(rows, dim=1))


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
