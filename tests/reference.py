"""Naive implementations that the library is compared with."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from weightnoise import hold_noise, no_noise, noisy_parameters, remove_weight_noise


def naive_scale(weight: Tensor, relative_to: str | None, per: int | str) -> Tensor:
    """The scale of each weight, with a loop over channels."""
    if relative_to is None:
        return torch.ones_like(weight)
    if relative_to == "value":
        return weight.clone()
    if per == "tensor":
        flat = weight.flatten().tolist()
        return torch.full_like(weight, _statistic(flat, relative_to))
    assert isinstance(per, int)
    channels = [naive_scale(channel, relative_to, "tensor") for channel in weight.unbind(per)]
    return torch.stack(channels, dim=per)


def _statistic(values: list[float], relative_to: str) -> float:
    mean = sum(values) / len(values)
    if relative_to == "absmax":
        return max(abs(value) for value in values)
    if relative_to == "rms":
        return math.sqrt(sum(value**2 for value in values) / len(values))
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def held_weights(noisy: nn.Module, seed: int, sign: int = 1) -> dict[str, Tensor]:
    """The noisy weights at a held draw, read one by one, by full name."""
    weights = {}
    with hold_noise(noisy, seed=seed, sign=sign):
        for name in noisy_parameters(noisy):
            prefix, _, tensor_name = name.rpartition(".")
            weights[name] = getattr(noisy.get_submodule(prefix), tensor_name).detach()
    return weights


def clean_weights(noisy: nn.Module) -> dict[str, Tensor]:
    """The clean weights under the same names."""
    weights = {}
    with no_noise(noisy):
        for name in noisy_parameters(noisy):
            prefix, _, tensor_name = name.rpartition(".")
            weights[name] = getattr(noisy.get_submodule(prefix), tensor_name).detach()
    return weights


def plain_copy_with(noisy: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """A copy without noise whose Parameters hold the given weights."""
    plain = remove_weight_noise(copy.deepcopy(noisy))
    with torch.no_grad():
        for name, weight in weights.items():
            plain.get_parameter(name).copy_(weight)
    return plain
