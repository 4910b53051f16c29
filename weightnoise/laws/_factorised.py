"""Noise of rank one on a layer: a number for each output times a number for each input."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

from weightnoise._random import common as _common
from weightnoise._random import draws as _random
from weightnoise._torch.layers import Layout

Factors: TypeAlias = tuple[Tensor, Tensor]
_UNKNOWN = Layout(0, None)


def draw_factors(weight: Tensor, layout: Layout | None) -> Factors:
    """``f(e)`` for the outputs and the inputs of a layer, with ``f(x) = sign(x) sqrt(|x|)``.

    Those of the outputs are the layer's, if it is known where these lie. They are drawn in float32, so that weight
    and bias have the same in any dtype.
    """
    of_outputs, of_inputs = (math.prod(shape) for shape in _factor_shapes(weight, layout))
    if layout is None or layout.output is None:
        outputs = _random.normal(weight.new_empty(of_outputs))
    else:
        like = weight.new_empty(of_outputs, dtype=torch.float32)
        outputs = _common.of_layer(of_outputs, lambda: _random.normal(like), weight.device).to(weight.dtype)
    return _signed_root(outputs), _signed_root(_random.normal(weight.new_empty(of_inputs)))


def product(factors: Factors, weight: Tensor, layout: Layout | None) -> Tensor:
    """The factor of its output times that of its input for each weight; of a vector, that of its output."""
    outputs, inputs = (
        factor.reshape(one) for factor, one in zip(factors, _factor_shapes(weight, layout), strict=True)
    )
    return (outputs if weight.ndim < 2 else outputs * inputs).reshape(weight.shape)


def _factor_shapes(weight: Tensor, layout: Layout | None) -> tuple[list[int], list[int]]:
    """The shapes in which the two factors broadcast to the weight, with the groups of its layer as a dimension."""
    if weight.ndim < 2:
        return [weight.numel()], [1]
    at = layout if layout is not None and layout.output is not None else _UNKNOWN
    sizes = [weight.shape[0] // at.groups, *weight.shape[1:]]
    outputs = [size if dim == at.output else 1 for dim, size in enumerate(sizes)]
    inputs = [1 if dim == at.output else size for dim, size in enumerate(sizes)]
    return [at.groups, *outputs], [at.groups, *inputs]


def _signed_root(normal: Tensor) -> Tensor:
    return normal.sign() * normal.abs().sqrt()
