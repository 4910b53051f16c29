"""What several hazard tests need."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Counting:
    """A law that counts its draws; every draw is the next whole number."""

    draws: list[int] = field(default_factory=list)

    def draw(self, weight: Tensor) -> Tensor:
        self.draws.append(weight.numel())
        return torch.full((), float(len(self.draws)), dtype=weight.dtype)

    def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
        return weight + factor * noise
