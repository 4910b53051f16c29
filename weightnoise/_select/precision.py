"""Weights whose numbers cannot hold the noise that a spec puts on them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from weightnoise._errors import InfiniteNoiseWarning, NoiseRoundsAwayWarning
from weightnoise._noise.precision import fault
from weightnoise._select.patterns import listed
from weightnoise._select.resolve import Placement
from weightnoise._torch.modules import is_dtensor


def warn_if_lost(placements: Sequence[Placement]) -> set[str]:
    """Warn once, naming every parameter that would lose most of its noise, or become infinite; return them."""
    found: dict[str, list[str]] = {"rounds away": [], "infinite": []}
    for placement in placements:
        tensor = placement.candidate.tensor.detach()
        kind = (
            None
            if is_dtensor(tensor)
            else fault(placement.handed, tensor, 1.0, placement.handed.strengths(tensor))
        )
        if kind is not None:
            found[kind].append(placement.candidate.name)
    if found["rounds away"]:
        warnings.warn(
            _ROUNDS_AWAY.format(names=listed(found["rounds away"])), NoiseRoundsAwayWarning, stacklevel=3
        )
    if found["infinite"]:
        warnings.warn(_INFINITE.format(names=listed(found["infinite"])), InfiniteNoiseWarning, stacklevel=3)
    return {name for names in found.values() for name in names}


_ROUNDS_AWAY = (
    "Most of the noise is smaller than half the spacing of the numbers of these weights and rounds away: {names}. "
    "Use stronger noise, or weights of more digits: float32 in place of bfloat16 (autocast computes with fewer)."
)
_INFINITE = (
    "The noise is so strong that noisy weights are no numbers of their dtype any more, but infinite: {names}. "
    "Use weaker noise."
)
