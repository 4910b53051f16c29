"""Many held draws of a model evaluated at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from weightnoise._attach.find import find_noise
from weightnoise._attach.hook import ActivationNoise
from weightnoise._holds import held_overrides, weight_of
from weightnoise._noise.context import AnyNoise, NoiseContext
from weightnoise._noise.control import Override
from weightnoise._noise.held import HeldDraw

_ELEMENTS = 2**24  # Of all draws that are stacked at a time: 64 MiB in float32.


def evaluate_together(
    model: nn.Module, function: Callable[[nn.Module], Mapping[str, Tensor]], draws: Sequence[tuple[int, int]]
) -> Iterator[dict[str, float]]:
    """``function(model)`` under ``hold_noise(model, seed=seed, sign=sign)`` for each (seed, sign) of ``draws``.

    By `torch.vmap` over the draws, so that all weights keep their shapes within ``function``. It must return
    tensors, and may not change state, draw, or decide by a value: these are errors.
    """
    size = max(1, _ELEMENTS // max(1, sum(parameter.numel() for parameter in model.parameters())))
    for start in range(0, len(draws), size):
        some = draws[start : start + size]
        found: dict[int, dict[str, float]] = {}
        for sign in dict.fromkeys(sign for _, sign in some):
            places = [place for place, draw in enumerate(some) if draw[1] == sign]
            values = _at_once(model, function, [some[place][0] for place in places], sign)
            for row, place in enumerate(places):
                found[place] = {str(key): float(value[row].detach()) for key, value in values.items()}
        yield from (found[place] for place in range(len(some)))


def _at_once(
    model: nn.Module, function: Callable[[nn.Module], Mapping[str, Tensor]], seeds: Sequence[int], sign: int
) -> dict[str, Tensor]:
    on = find_noise(model)
    opened = [held_overrides(on, seed, sign) for seed in seeds]
    noises = [noise for noise, _ in opened[0]]
    if any(isinstance(noise, ActivationNoise) for noise in noises):
        raise NotImplementedError("noise on activations is drawn within the metric")
    parts = [
        [(_drawn(noise, override.held), override.held.key) for noise, override in one if override.held]
        for one in opened
    ]
    stacked = pytree.tree_map(lambda *part: torch.stack(part) if isinstance(part[0], Tensor) else part[0], *parts)

    def one(draws: list[Any]) -> dict[str, Tensor]:
        held = (HeldDraw(None, sign, (drawn,), key=key) for drawn, key in draws)
        overrides = [(noise, Override(held=draw)) for noise, draw in zip(noises, held, strict=True)]
        with NoiseContext(lambda: overrides):
            return dict(function(model))

    dims = pytree.tree_map(lambda part: 0 if isinstance(part, Tensor) else None, stacked)
    values: dict[str, Tensor] = torch.vmap(one, in_dims=(dims,))(stacked)
    return values


def _drawn(noise: AnyNoise, held: HeldDraw) -> Any:
    """The draw that is held for a noise on a weight."""
    weight = weight_of(noise)
    return None if weight is None else held.make(noise.handed, weight)
