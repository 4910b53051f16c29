"""Monte Carlo evaluation: the time of one draw, a noisy forward without gradients included."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

import weightnoise as wn
from tests.benchmarks.contenders import Step, naive, with_noise
from tests.benchmarks.measure import Row, against, interleave, short
from tests.benchmarks.options import Options, grid
from tests.benchmarks.workloads import WORKLOADS, Workload

DRAWS = 20  # As many as `evaluate_robustness` makes unless told.

Evaluate: TypeAlias = Callable[[nn.Module, Tensor, float], Step]


def plain(model: nn.Module, x: Tensor, std: float) -> Step:
    """As many forwards without noise."""
    return lambda: _repeat(model, x)


def ours(model: nn.Module, x: Tensor, std: float) -> Step:
    """Forwards of a model with weightnoise on it."""
    return plain(wn.add_weight_noise(model, std), x, std)


def robustness(model: nn.Module, x: Tensor, std: float) -> Step:
    """`evaluate_robustness`, which adds the noise, holds each draw for its metric and removes the noise."""

    def metric(model: nn.Module) -> float:
        return float(model(x).sum())

    def evaluate() -> None:
        wn.evaluate_robustness(model, metric, levels=[1.0], law=wn.Gaussian(std), draws=DRAWS, progress=False)

    return evaluate


def load_noisy(model: nn.Module, x: Tensor, std: float) -> Step:
    """Load a noisy `state_dict` for each draw, and the clean one at the end."""

    def evaluate() -> None:
        clean = copy.deepcopy(model.state_dict())
        for _ in range(DRAWS):
            model.load_state_dict(with_noise(clean, std))
            model(x)
        model.load_state_dict(clean)

    return evaluate


def add_to_data(model: nn.Module, x: Tensor, std: float) -> Step:
    """Add noise to ``.data`` and copy the clean values back, tensor by tensor."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]

    def evaluate() -> None:
        clean = [p.data.clone() for p in matrices]
        for _ in range(DRAWS):
            for p in matrices:
                p.data.add_(torch.randn_like(p), alpha=std)
            model(x)
            for p, value in zip(matrices, clean, strict=True):
                p.data.copy_(value)

    return evaluate


def parametrization(model: nn.Module, x: Tensor, std: float) -> Step:
    """Forwards under a dozen lines on torch's parametrize."""
    return plain(naive(model, std), x, std)


CONTENDERS: dict[str, Evaluate] = {
    "plain": plain,
    "weightnoise on": ours,
    "evaluate_robustness": robustness,
    "copy and restore": load_noisy,
    ".data add and restore": add_to_data,
    "naive parametrization": parametrization,
}


def evaluations(workload: Workload, contenders: Mapping[str, Evaluate], std: float = 0.01) -> dict[str, Step]:
    """One evaluation for each contender, on copies of one model in evaluation mode."""
    torch.manual_seed(0)
    model, (x, _) = workload.model().eval(), workload.batch()
    made = {name: make(copy.deepcopy(model), x, std) for name, make in contenders.items()}
    return {name: torch.no_grad()(step) for name, step in made.items()}


def run(options: Options) -> list[Row]:
    """A row for each workload and contender."""
    rows = []
    for name in options.trained:
        steps = evaluations(WORKLOADS[name], CONTENDERS)
        times = interleave(steps, options.seconds, options.about(name))
        rows += [{"workload": name, **per_draw(against(times, each))} for each in steps]
    return rows


def per_draw(row: Row, draws: int = DRAWS) -> Row:
    """The numbers of one draw from those of an evaluation."""
    return row | {key: short(row[key] / draws) for key in ("milliseconds", "extra")}


def table(rows: Sequence[Row]) -> str:
    """Milliseconds of a draw."""
    return grid(rows, "workload", lambda row: f"{row['milliseconds']:.2f}")


def _repeat(model: nn.Module, x: Tensor) -> None:
    for _ in range(DRAWS):
        model(x)
