"""The noise on a model that keys choose, by the names of what carries it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from weightnoise._attach.hook import own_activation_noises
from weightnoise._attach.module_noise import own_noises
from weightnoise._errors import WeightNoiseError, raise_problems
from weightnoise._noise.context import AnyNoise
from weightnoise._select.patterns import Key, is_key, matches, no_match
from weightnoise._torch.modules import walk


@dataclass(eq=False)
class Carrier:
    """A use of a parameter, or a module, and the noise on it.

    Attributes:
        source: what tied uses have in common: the Parameter.
    """

    names: tuple[str, ...]
    owner: nn.Module
    source: object
    noises: list[AnyNoise] = field(default_factory=list)


def chosen_noises(model: nn.Module, keys: Sequence[Key]) -> list[AnyNoise]:
    """The noise on what a key fits; that of a tied parameter if it fits one of its uses.

    Raises:
        WeightNoiseError: with every key that is none or fits nothing.
    """
    carriers = _carriers(model)
    problems: list[WeightNoiseError] = []
    fitting = {key: [one for one in carriers if matches(key, one)] for key in keys if is_key(key, problems)}
    if carriers:
        problems += [no_match(key, carriers, "noise") for key, found in fitting.items() if not found]
    raise_problems(problems)
    sources = {id(one.source) for found in fitting.values() for one in found}
    return [noise for one in carriers if id(one.source) in sources for noise in one.noises]


def _carriers(model: nn.Module) -> list[Carrier]:
    found: list[Carrier] = []
    for node in walk(model):
        for name, noise in own_noises(node.module):
            names = tuple(prefix + name for prefix in node.prefixes)
            parameter = node.module._parameters.get(name)
            found.append(Carrier(names, node.module, noise if parameter is None else parameter, [noise]))
        activations: list[AnyNoise] = [*own_activation_noises(node.module)]
        if activations:
            found.append(Carrier(node.names, node.module, node.module, activations))
    return found
