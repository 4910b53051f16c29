"""Noise of rank one on a layer: a number for each output times a number for each input."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from weightnoise._random import common as _common
from weightnoise._random import draws as _random
from weightnoise._torch.layers import Layout

Factors: TypeAlias = tuple[Tensor, ...]


def draw_factors(weight: Tensor, layout: Layout | None) -> Factors:
    """``f(e)`` for the outputs of a layer, and for its inputs, with ``f(x) = sign(x) sqrt(|x|)``.

    A vector has outputs alone. Those are the layer's, if it is known where they lie: drawn in float32, so that
    weight and bias have the same in any dtype.
    """
    count = _outputs(weight, layout)
    if layout is None or layout.output is None:
        outputs = _signed_root(_random.normal(weight.new_empty(count)))
    else:
        like = weight.new_empty(count, dtype=torch.float32)
        outputs = _common.of_layer(count, lambda: _signed_root(_random.normal(like)), weight.device)
        outputs = outputs.to(weight.dtype)
    if weight.ndim < 2:
        return (outputs,)
    inputs = weight.numel() * (1 if layout is None else layout.groups) // max(count, 1)
    return outputs, _signed_root(_random.normal(weight.new_empty(inputs)))


def product(factors: Factors, weight: Tensor, layout: Layout | None) -> Tensor:
    """The factor of its output times that of its input for each weight; of a vector, that of its output."""
    if weight.ndim < 2:
        return factors[0].reshape(weight.shape)
    outputs, inputs = factors
    groups, output = (1, 0) if layout is None else (layout.groups, layout.output or 0)
    if groups == 1 and output == 0:
        return torch.outer(outputs, inputs).reshape(weight.shape)
    # As (groups, what is in one of them, the other dimensions).
    sizes = [weight.shape[0] // groups, *weight.shape[1:]]
    own = [size if dim == output else 1 for dim, size in enumerate(sizes)]
    rest = [1 if dim == output else size for dim, size in enumerate(sizes)]
    return (outputs.reshape(groups, *own) * inputs.reshape(groups, *rest)).reshape(weight.shape)


def _outputs(weight: Tensor, layout: Layout | None) -> int:
    if weight.ndim < 2:
        return weight.numel()
    output = 0 if layout is None else layout.output or 0
    # Groups lie one after the other in the first dimension.
    return weight.shape[output] * (1 if layout is None or output == 0 else layout.groups)


def _signed_root(normal: Tensor) -> Tensor:
    return torch.copysign(normal.abs().sqrt(), normal)
