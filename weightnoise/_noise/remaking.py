"""The noisy weight of ``memory="recompute"``: made with a recipe, and with no tensors for the backward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from weightnoise._noise.draws import apply_draw, bare, is_keyed
from weightnoise._noise.memory_recompute import Recomputed
from weightnoise._noise.recipe import Recipe, Source, tensors_in
from weightnoise._torch.autograd import handing_on

if TYPE_CHECKING:
    from weightnoise._noise.weight_noise import WeightNoise


def recomputable(noise: WeightNoise, weight: Tensor, draw: Any, factor: float, kept: Recomputed) -> Tensor:
    """As `apply_draw`, leaving a recipe in ``kept``."""
    recipe = Recipe(
        noise.name,
        weight,
        lambda weight: apply_draw(noise, weight, draw, factor),
        lambda: _sources(noise, weight, draw),
    )
    if is_keyed(draw) or not weight.requires_grad:
        noisy = recipe.make(weight)
    elif noise.handed.gradient == "straight-through" and not noise.strength_names:
        with torch.no_grad():
            value = recipe.make(weight)
        noisy = handing_on(weight, value)
    else:
        recipe.checkpointed = True
        with set_checkpoint_early_stop(False):  # So that it comes to look at what it has made.
            noisy = checkpoint(recipe.make, weight, use_reentrant=False, preserve_rng_state=False)
    kept.add(recipe, noisy)
    return noisy


def _sources(noise: WeightNoise, weight: Tensor, draw: Any) -> list[Source]:
    """The tensors that a noisy weight is made from, each with what to call it after the parameter's name."""
    found = [("", weight)]
    for name in noise.strength_names:
        found.append((f": its learned {name}", getattr(noise, name)))
    for tensor in noise.law_tensors:
        found.append((f": a tensor of its law {type(noise.law).__name__}", tensor))
    for drawn in (bare(draw), noise.chip_draw):
        if drawn is not None and not isinstance(drawn, int):  # As a key or a seed is, which most draws are.
            found += [(": its draw", tensor) for tensor in tensors_in(drawn)]
    return found
