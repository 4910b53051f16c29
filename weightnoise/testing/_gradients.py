"""The numerical check of the gradients that training uses."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weightnoise._attach.find import noises
from weightnoise._checks import check_model
from weightnoise._contexts import hold_noise, no_noise
from weightnoise._noise.weight_noise import WeightNoise
from weightnoise._random import seeds as _seeds
from weightnoise._weights import has_weight_noise
from weightnoise.laws import Chain, Law
from weightnoise.laws._law import apply_law


@dataclass(frozen=True)
class GradientRow:
    """The check of one parameter.

    Attributes:
        entries: how many were looked at.
        largest: the largest absolute gradient among them.
        error: the largest difference between the gradient that training uses and the central difference.
    """

    entries: int = 0
    largest: float = 0.0
    error: float = 0.0

    def with_entry(self, found: float, slope: float) -> GradientRow:
        """The row with one entry more."""
        return GradientRow(
            self.entries + 1, max(self.largest, abs(found), abs(slope)), max(self.error, abs(found - slope))
        )


@dataclass(frozen=True)
class GradientTable:
    """The findings of `check_gradients`; their text is a table.

    Attributes:
        rows: by the name of the parameter.
    """

    rows: Mapping[str, GradientRow]

    def __str__(self) -> str:
        wide = max(map(len, self.rows), default=0)
        lines = [
            f"{name:{wide}}  {row.entries:7}  {row.largest:16.3e}  {row.error:13.3e}"
            for name, row in self.rows.items()
        ]
        return "\n".join([f"{'':{wide}}  entries  largest gradient  largest error", *lines])


def check_gradients(
    model: nn.Module,
    loss: Callable[..., Tensor],
    *inputs: Any,
    seed: int = 0,
    step: float = 1e-6,
    rtol: float = 1e-5,
    atol: float = 1e-7,
    max_entries: int = 20,
) -> GradientTable:
    """Compare the gradients that training uses with central differences of the loss at a held draw.

    For each parameter and each of its entries that is looked at::

        dL/dw ~= (L(w + step) - L(w - step)) / (2 step)

    A straight-through law is defined as having the gradient at the noisy weight, so what it adds is
    kept while w moves; in a list, that holds for each such law. An exact law is applied again at the
    held draw. What a law learns is checked as any other Parameter.
    Everything is done on float64 copies; the model and torch's random state stay as they are.

    Args:
        model: a model with weight noise.
        loss: ``loss(model, *inputs)`` returns a scalar; it is called many times, under one seed.
        *inputs: passed on; floating-point tensors become float64.
        seed: of the held draw, of the entries looked at, and of what the model draws itself.
        step: half the width of the difference.
        rtol: tolerance relative to the larger of the two gradients.
        atol: absolute tolerance, in units of the gradient.
        max_entries: entries looked at in each parameter, chosen at random where there are more.

    Returns:
        For each parameter, how many entries were looked at and the largest error; ``print`` it.

    Raises:
        AssertionError: naming the parameter, the entry, and both gradients.
        NotNoisyError: if the model carries no weight noise.

    Example:
        >>> model = add_weight_noise(nn.Linear(3, 2), 0.1)
        >>> table = check_gradients(model, lambda model, x: model(x).square().mean(), torch.randn(4, 3))
        >>> table.rows["weight"].entries
        6

    Source:
        The gradient at the noisy weight: Graves, Practical variational inference for neural
        networks, 2011; straight-through: Bengio et al., 2013, arXiv 1308.3432.
    """
    check_model(model)
    doubles = [_double(value) for value in inputs]
    noisy = copy.deepcopy(model).double()
    noisy.zero_grad()
    probe = _probe(noisy, seed)
    device = next(noisy.parameters()).device

    def value(of: nn.Module) -> Tensor:
        held = hold_noise(of, seed=seed) if has_weight_noise(of) else nullcontext()
        with _seeds.seeded(seed, device), held:
            return loss(of, *doubles)

    value(noisy).backward()  # type: ignore[no-untyped-call]
    moved, rows = dict(probe.named_parameters()), {}
    for name, parameter in noisy.named_parameters():
        if not parameter.requires_grad:
            continue
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.to_dense()
        rows[name] = GradientRow()
        for entry in _some_entries(parameter.numel(), max_entries, seed):
            slope = _central_difference(lambda: value(probe), moved[name], entry, step)
            found = grad.flatten()[entry].item()
            if not math.isclose(found, slope, rel_tol=rtol, abs_tol=atol):
                raise AssertionError(
                    f"Gradient of '{name}' at entry {entry}: training uses {found:.9g}, the central difference "
                    f"is {slope:.9g}."
                )
            rows[name] = rows[name].with_entry(found, slope)
    return GradientTable(rows)


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


@dataclass(frozen=True)
class _Shift(Law):
    """A straight-through law as it is differentiated: the weight plus what the law adds at one fixed weight."""

    law: Law
    clean: Tensor

    def draw(self, weight: Tensor) -> Any:
        """Draw from the law."""
        return self.law.draw(self.clean)

    def strengths(self, weight: Tensor) -> dict[str, Tensor]:
        """Return the parameters that the law learns."""
        return self.law.strengths(weight)

    def apply(
        self, weight: Tensor, noise: Any, factor: float, strengths: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The weight, moved."""
        return weight + (apply_law(self.law, self.clean, noise, factor, strengths or {}) - self.clean)

    def deviation(self, weight: Tensor, strengths: Mapping[str, Tensor] | None = None) -> Tensor | None:
        """The standard deviation at the fixed weight."""
        return self.law.deviation(self.clean, strengths or {})

    def __repr__(self) -> str:
        return repr(self.law)


def _probe(noisy: nn.Module, seed: int) -> nn.Module:
    """A copy whose straight-through laws are fixed additions.

    Differentiating it at the clean weight is differentiating the loss at what those laws make of it.
    """
    probe = copy.deepcopy(noisy)
    with hold_noise(probe, seed=seed):
        for _, owner, noise in noises(probe):
            with no_noise(probe), torch.no_grad():
                clean: Tensor = getattr(owner, noise.tensor_name).clone()
                noise.law = _probed(noise, clean)
    return probe


def _probed(noise: WeightNoise, clean: Tensor) -> Law:
    law, held = noise.handed, noise.control.held
    assert held is not None
    if not isinstance(law, Chain):
        return _shifted(law, clean)
    laws = []
    for place, (part, drawn) in enumerate(zip(law.parts, held.draw(law, clean), strict=True)):
        laws.append(_shifted(part, clean))
        clean = apply_law(part, clean, drawn, noise.control.factor, law.own(place, noise.strengths()))
    return Chain(tuple(laws))


def _shifted(law: Law, clean: Tensor) -> Law:
    return _Shift(law, clean) if law.gradient == "straight-through" else law


def _some_entries(count: int, most: int, seed: int) -> list[int]:
    if count <= most:
        return list(range(count))
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randperm(count, generator=generator, dtype=torch.int64, device="cpu")[:most].tolist()


def _central_difference(value: Callable[[], Tensor], parameter: nn.Parameter, entry: int, step: float) -> float:
    index = tuple(
        int(place)
        for place in torch.unravel_index(torch.tensor(entry, dtype=torch.int64, device="cpu"), parameter.shape)
    )
    before = parameter.detach()[index].clone()
    sides = []
    for moved in (before + step, before - step):
        with torch.no_grad():
            parameter[index] = moved
            sides.append(value().item())
            parameter[index] = before
    return (sides[0] - sides[1]) / (2 * step)
