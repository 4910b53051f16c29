"""Finding the noise of a model: on one module, or on all."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from weightnoise._attach.hook import ActivationNoise, own_activation_noises
from weightnoise._attach.module_noise import ModuleNoise, own_noises
from weightnoise._noise.weight_noise import WeightNoise
from weightnoise._torch.modules import unwrap, walk


def module_noise(owner: nn.Module) -> ModuleNoise | None:
    """Return the `ModuleNoise` of a noisy module; None for any other module."""
    holder = owner.__dict__["_modules"].get("parametrizations")
    return None if holder is None else holder.__dict__.get("module_noise")


class FoundNoise(NamedTuple):
    """All noise of a model, in the order of its modules.

    Attributes:
        weights: each noise on a weight: the full clean name of its parameter, the owner, and the noise.
        activations: each noise on activations: the full name of its module, the module, and the noise.
    """

    weights: list[tuple[str, nn.Module, WeightNoise]]
    activations: list[tuple[str, nn.Module, ActivationNoise]]


def find_noise(model: nn.Module) -> FoundNoise:
    """All noise of a model, in one walk."""
    weights: list[tuple[str, nn.Module, WeightNoise]] = []
    activations: list[tuple[str, nn.Module, ActivationNoise]] = []
    for node in walk(model, most_names=1):
        module, prefix = node.module, node.prefixes[0]
        weights += [(prefix + name, module, noise) for name, noise in own_noises(module)]
        activations += [(node.names[0], module, noise) for noise in own_activation_noises(module)]
    return FoundNoise(weights, activations)


def noises(model: nn.Module) -> list[tuple[str, nn.Module, WeightNoise]]:
    """Each noise on a weight of the model."""
    return find_noise(model).weights


def activation_noises(model: nn.Module) -> list[tuple[str, nn.Module, ActivationNoise]]:
    """Each noise on activations of the model."""
    return find_noise(model).activations


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
