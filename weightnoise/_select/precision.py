"""Weights of so few digits that noise rounds away on them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from weightnoise._errors import NoiseRoundsAwayWarning
from weightnoise._random import draws as _random
from weightnoise._select.resolve import Placement
from weightnoise.laws import Law, sample

_SEED = 0
_CHECKED = 65_536  # Weights.


def warn_if_rounded_away(placements: Sequence[Placement]) -> None:
    """Warn once, naming every low-precision parameter that would lose most of its noise."""
    lost = [
        placement.candidate.name
        for placement in placements
        if _rounds_away(placement.handed, placement.candidate.tensor)
    ]
    if lost:
        listed = ", ".join(map(repr, lost))
        warnings.warn(
            f"Most of the noise is smaller than half the spacing of these low-precision weights and rounds "
            f"away: {listed}. Use stronger noise, or keep float32 weights (autocast computes in half precision).",
            NoiseRoundsAwayWarning,
            stacklevel=3,
        )


def _is_bitwise(law: Law) -> bool:
    return law.bitwise or any(map(_is_bitwise, law.inside))


def _rounds_away(law: Law, weight: Tensor) -> bool:
    short = weight.dtype in (torch.float16, torch.bfloat16)
    if not short or weight.is_meta or weight.numel() == 0 or _is_bitwise(law):
        return False
    if weight.ndim:
        weight = weight[: max(1, _CHECKED * weight.shape[0] // weight.numel())]
    with _random.seeded(_SEED, weight.device), torch.no_grad():
        exact = weight.float()
        noisy = sample(law, exact)
    moved = noisy != exact
    kept = noisy.to(weight.dtype) != weight
    return bool(moved.any()) and (moved & kept).sum().item() < 0.5 * moved.sum().item()
