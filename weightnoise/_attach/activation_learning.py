"""Whether a law can learn or measure on the activations of a module, and layers have a range together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from weightnoise._torch.layers import activation_shapes, channels_of
from weightnoise._torch.modules import ACTIVATION_NOISE, ActivationStates
from weightnoise.laws import Law
from weightnoise.laws._converter import Converter, converters

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def learned_shapes(handed: Law, module: nn.Module, at: str) -> dict[str, tuple[int, ...]]:
    """The Parameters that a law learns on the activations of ``module``, and their shapes."""
    return _shapes(handed.strengths(_zeros(activation_shapes(channels_of(module, at))[0])))


def learning_problem(handed: Law, module: nn.Module, at: str) -> str | None:
    """Why a law cannot learn on the activations of ``module``, or None."""
    shapes = activation_shapes(channels_of(module, at))
    found = [handed.strengths(_zeros(shape)) for shape in shapes]
    if not (found[0] or handed.given(_zeros(shapes[0]))):
        return None
    if handed.says("kl_divergence"):
        return "its divergence is that of weights"
    if any(_shapes(one) != _shapes(found[0]) for one in found):
        return (
            "it learns a strength for each weight, or for a dimension that it counts from the front, and "
            "activations have no fixed shape. ParametricNoise and Converter learn one for the tensor or for each "
            "channel: per='tensor', per='output' or per='input', or the dimension from the end, such as per=-1"
        )
    others = handed.strengths(
        torch.arange(math.prod(shapes[0]), dtype=torch.float32, device="cpu").reshape(shapes[0])
    )
    if any(not torch.equal(value.nan_to_num(), others[name].nan_to_num()) for name, value in found[0].items()):
        return "its first values are those of a weight, which is there. Use Converter, whose range comes from data"
    groups = [one for _, one in converters(handed) if one.group]
    if groups and len({**found[0], **handed.given(_zeros(shapes[0]))}) > 1 + groups[0].from_data:
        return (
            "it has a range of a group, and learns or measures something of its own besides. Put one of the two "
            "at the other side"
        )
    if isinstance(module, _CONTAINERS):
        return (
            f"what it learns is kept in a submodule, and a {type(module).__name__} calls or lists all of its "
            "submodules. Name one of its parts instead"
        )
    if ACTIVATION_NOISE in vars(module) or (
        ACTIVATION_NOISE in module._modules and not isinstance(module._modules[ACTIVATION_NOISE], ActivationStates)
    ):
        return f"the module has an attribute {ACTIVATION_NOISE!r} of its own"
    return None


def _zeros(shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(shape, dtype=torch.float32, device="cpu")


def _shapes(strengths: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Their shapes without the dimensions of length 1 in front."""
    shapes = {}
    for name, value in strengths.items():
        shape = list(value.shape)
        while shape and shape[0] == 1:
            del shape[0]
        shapes[name] = tuple(shape)
    return shapes


def group_problem(laws: Iterable[Law]) -> str | None:
    """Why the layers of a group cannot have one range, or None."""
    first: dict[str, Converter] = {}
    for law in laws:
        for _, one in converters(law):
            if one.group and first.setdefault(one.group, one).range_rule() != one.range_rule():
                return (
                    f"The layers of group {one.group!r} have one range, and {first[one.group]!r} and {one!r} have "
                    "different ones. Give them equal options (bits, levels and range_gradient may differ), or two "
                    "groups"
                )
    return None
