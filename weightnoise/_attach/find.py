"""Finding the noise of a model: on one module, or on all."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from weightnoise._attach.hook import ActivationNoise, own_activation_noises
from weightnoise._attach.module_noise import ModuleNoise, own_noises
from weightnoise._noise.weight_noise import WeightNoise
from weightnoise._torch.modules import unwrap, walk


def module_noise(owner: nn.Module) -> ModuleNoise | None:
    """Return the `ModuleNoise` of a noisy module; None for any other module."""
    holder = owner.__dict__["_modules"].get("parametrizations")
    return None if holder is None else holder.__dict__.get("module_noise")


def noises(model: nn.Module) -> Iterator[tuple[str, nn.Module, WeightNoise]]:
    """Each noise on the model: the full clean name of its parameter, the owner, and the noise."""
    for node in walk(model, most_names=1):
        for name, noise in own_noises(node.module):
            yield node.prefixes[0] + name, node.module, noise


def every_noise(model: nn.Module) -> list[WeightNoise | ActivationNoise]:
    """Each noise on weights and activations, in no particular order: what contexts need, without the names."""
    found: list[WeightNoise | ActivationNoise] = []
    seen: set[int] = set()
    waiting = [unwrap(model)]
    while waiting:
        module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        own = module_noise(module)
        if own is not None:
            found += [noise for _, noise in own_noises(module)]
        found += own_activation_noises(module)
        waiting += [child for child in module.__dict__["_modules"].values() if child is not None]
    return found
