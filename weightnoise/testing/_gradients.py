"""The numerical check of the gradients that training uses."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weightnoise import _random
from weightnoise._contexts import hold_noise, no_noise
from weightnoise._parametrize import noises
from weightnoise._weights import has_weight_noise
from weightnoise.laws import Chain, Gaussian, Noise, Uniform


def check_gradients(
    model: nn.Module,
    loss: Callable[..., Tensor],
    *inputs: Any,
    seed: int = 0,
    step: float = 1e-6,
    rtol: float = 1e-5,
    atol: float = 1e-7,
    max_entries: int = 20,
) -> None:
    """Compare the gradients that training uses with central differences of the loss at a held draw.

    For each parameter and each of its entries that is looked at::

        dL/dw ~= (L(w + step) - L(w - step)) / (2 step)

    A straight-through law is defined as having the gradient at the noisy weight, so there w is the
    noisy weight itself. For an exact law, and for a parameter without noise, w is the clean weight
    and the law is applied again at the held draw.
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

    Raises:
        AssertionError: naming the parameter, the entry, and both gradients.
        NotNoisyError: if the model carries no weight noise.

    Example:
        >>> model = add_weight_noise(nn.Linear(3, 2), 0.1)
        >>> check_gradients(model, lambda model, x: model(x).square().mean(), torch.randn(4, 3))

    Source:
        The gradient at the noisy weight: Graves, Practical variational inference for neural
        networks, 2011; straight-through: Bengio et al., 2013, arXiv 1308.3432.
    """
    doubles = [_double(value) for value in inputs]
    noisy = copy.deepcopy(model).double()
    noisy.zero_grad()
    probe, through = _probe(noisy, seed)
    device = next(noisy.parameters()).device

    def value(of: nn.Module) -> Tensor:
        held = hold_noise(of, seed=seed) if has_weight_noise(of) else nullcontext()
        with _random.seeded(seed, device), held:
            return loss(of, *doubles)

    value(noisy).backward()  # type: ignore[no-untyped-call]
    moved = dict(probe.named_parameters())
    for name, parameter in noisy.named_parameters():
        if not parameter.requires_grad:
            continue
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.to_dense()
        for entry in _some_entries(parameter.numel(), max_entries, seed):
            slope = _central_difference(lambda: value(probe), moved[name], entry, step)
            found = grad.flatten()[entry].item()
            if not math.isclose(found, slope, rel_tol=rtol, abs_tol=atol):
                kind = "noisy" if name in through else "clean"
                raise AssertionError(
                    f"Gradient of '{name}' at entry {entry}: training uses {found:.9g}, the central difference "
                    f"at the {kind} weight is {slope:.9g}."
                )


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


@dataclass(frozen=True)
class _Shift:
    """A fixed addition: what is left of a straight-through law when its draw is held."""

    by: Tensor

    def draw(self, weight: Tensor) -> None:
        """Nothing is drawn."""

    def apply(self, weight: Tensor, noise: None, factor: float) -> Tensor:
        """The weight, moved."""
        return weight + self.by


def _probe(noisy: nn.Module, seed: int) -> tuple[nn.Module, set[str]]:
    """A copy whose straight-through laws are fixed additions, and the names of what they are on.

    Differentiating it at the clean weight is differentiating the loss at the noisy weight.
    """
    probe = copy.deepcopy(noisy)
    through = [entry for entry in noises(probe) if _differentiate_at_noisy(entry[2].law)]
    with hold_noise(probe, seed=seed):
        with no_noise(probe), torch.no_grad():
            clean = [getattr(owner, noise.tensor_name) for _, owner, noise in through]
        for (_, _, noise), weight in zip(through, clean, strict=True):
            noise.law = _Shift(noise.sample(weight) - weight)
    return probe, {name for name, _, _ in through}


def _differentiate_at_noisy(law: Noise) -> bool:
    """Whether the gradient is, by definition, the one at the noisy weight and at no other."""
    laws = law.laws if isinstance(law, Chain) else (law,)
    through = [getattr(part, "gradient", "exact") == "straight-through" for part in laws]
    # Adding what does not depend on the weight has the same gradient in both modes.
    either = [isinstance(part, (Gaussian, Uniform)) and part.relative_to is None for part in laws]
    if all(either) or not any(through):
        return False
    if all(through):
        return True
    if all(both or not past for both, past in zip(either, through, strict=True)):
        return False
    raise ValueError(f"{law!r} mixes exact and straight-through laws: no difference quotient has that gradient.")


def _some_entries(count: int, most: int, seed: int) -> list[int]:
    if count <= most:
        return list(range(count))
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most].tolist()


def _central_difference(value: Callable[[], Tensor], parameter: nn.Parameter, entry: int, step: float) -> float:
    index = tuple(int(place) for place in torch.unravel_index(torch.tensor(entry), parameter.shape))
    before = parameter.detach()[index].clone()
    sides = []
    for moved in (before + step, before - step):
        with torch.no_grad():
            parameter[index] = moved
            sides.append(value().item())
            parameter[index] = before
    return (sides[0] - sides[1]) / (2 * step)
