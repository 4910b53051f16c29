"""A draw on its way through time: AR(1) processes whose numbers are standard normal at each step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weightnoise._random import seeds as _seeds
from weightnoise.laws import Law
from weightnoise.laws._scale import wide


def check_path(law: Law, weight: Tensor) -> None:
    """Raise `OptionError` for a law whose draw cannot move a part of the way."""
    shape = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
    with _seeds.seeded(0, torch.device("cpu")), torch.no_grad():
        drawn = law.draw(shape)
        law.moved_on(drawn, [law.reread(shape, drawn)], lambda state, fresh: state)


@dataclass(frozen=True)
class Step:
    """From one state of an AR(1) process of variance 1 to a later one: ``rho^n z + sqrt(1 - rho^(2n)) e``."""

    rho: float
    steps: int

    def __call__(self, state: Tensor, fresh: list[Tensor]) -> Tensor:
        kept = self.rho**self.steps
        grown = math.sqrt(-math.expm1(2 * self.steps * math.log(self.rho))) if self.rho else 1.0
        moved: Tensor = kept * wide(state) + grown * fresh[0]
        return moved


def total(noise: Tensor, states: list[Tensor]) -> Tensor:
    """Their sum, of variance 1; in full precision within the processes, and in that of the draw here."""
    summed: Any = sum(states) / math.sqrt(len(states))
    rounded: Tensor = summed.to(noise.dtype)
    return rounded


def parted(law: Law, weight: Tensor, noise: Any, count: int) -> tuple[Any, ...]:
    """Independent draws whose sum, divided by the root of their number, is a draw."""
    if count <= 1:
        return (noise,) * count
    fresh = [law.reread(weight, noise) for _ in range(count)]

    def part(place: int) -> Any:
        def join(whole: Tensor, others: list[Tensor]) -> Tensor:
            parts = torch.stack([wide(one) for one in others])
            return parts[place] - parts.mean(dim=0) + wide(whole) / math.sqrt(count)

        return law.moved_on(noise, fresh, join)

    return tuple(map(part, range(count)))
