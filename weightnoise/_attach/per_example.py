"""Weight noise that differs from example to example: Flipout and the local reparameterization.

The forward of the layer reads its weight clean, and the noise goes on its output. So a batch shares no draw,
which leaves each example's distribution as it is and makes the gradient's variance fall with the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from weightnoise._errors import WeightNoiseError
from weightnoise._noise.checkpoints import EffectiveControl, fresh
from weightnoise._noise.draws import PER_EXAMPLE, apply_draw
from weightnoise._noise.frames import opens_frame
from weightnoise._noise.held import HeldDraw
from weightnoise._noise.weight_noise import Estimator, WeightNoise
from weightnoise._random import draws as _random
from weightnoise._random import keyed as _keyed
from weightnoise._torch.layers import PRODUCTS, layer_product, precise_products
from weightnoise.laws import Law
from weightnoise.laws._scale import wide

_FORWARDS = {kind.forward for kind in PRODUCTS}


@opens_frame
def forward_per_example(
    noise: WeightNoise,
    effective: EffectiveControl,
    forward: Callable[..., Any],
    layer: nn.Module,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """The clean forward of a layer, plus what the noise of its weight adds to each example."""
    running = noise.frames.running
    kept: dict[str, Any] = {noise.tensor_name: (PER_EXAMPLE, None, None, None)}
    running.append(kept)
    try:
        output: Tensor = forward(layer, *args, **kwargs)
    finally:
        running.pop()
    inputs: Tensor = args[0] if args else kwargs["input"]
    weight: Tensor = kept[noise.tensor_name][1]  # As the forward read it.
    if noise.handed.gradient == "straight-through":
        weight = weight.detach()
    add = _add_flipout if noise.estimator == "flipout" else _add_local
    return add(noise, effective, layer, inputs, weight, output)


def _add_flipout(
    noise: WeightNoise,
    effective: EffectiveControl,
    layer: nn.Module,
    inputs: Tensor,
    weight: Tensor,
    output: Tensor,
) -> Tensor:
    """``output + r * layer(s * inputs; dw)``: an example with signs r and s has the weight ``w + dw * r s^T``."""
    factor = noise.factor(effective)
    if isinstance(factor, Tensor):
        size, mirrored = factor.abs(), torch.where(factor < 0, -1.0, 1.0).to(factor.dtype)
    else:
        size, mirrored = abs(factor), -1.0 if factor < 0 else 1.0
    noisy = apply_draw(noise, weight, noise.draw(weight, effective), size)
    noise.lookout.note(noise, weight, noisy, size)
    moved = noisy - weight
    held = effective.held
    key = None if held is None else held.key

    def signs(like: Tensor, stream: int) -> Tensor:
        shape = _per_channel(layer, like, noise.batch_dim)
        if held is None or key is None:
            return fresh(effective, noise, lambda: _random.signs(like, shape))
        return _keyed.signs(key, like, shape, stream, _turns(held, layer, like, noise.batch_dim))

    added = layer_product(layer, inputs * signs(inputs, 0), moved)
    return output + added * (signs(added, 1) * mirrored)


def _add_local(
    noise: WeightNoise,
    effective: EffectiveControl,
    layer: nn.Module,
    inputs: Tensor,
    weight: Tensor,
    output: Tensor,
) -> Tensor:
    """``output + factor * sqrt(layer(inputs^2; deviation^2)) * e`` with ``e ~ N(0, 1)`` for each output."""
    deviation = noise.handed.deviation(weight, noise.strengths())
    assert deviation is not None
    if noise.padding_row is not None:  # Of an embedding that is tied to the layer.
        row = torch.tensor([noise.padding_row], dtype=torch.int64, device=weight.device)
        deviation = deviation.expand_as(weight).index_fill(0, row, 0.0)
    with precise_products(inputs):  # In float32: a square of float16 is infinite from 256 on.
        variance = output_variance(layer, wide(inputs).square(), wide(deviation).square(), weight)
    # sqrt has no slope at 0, where the noise is 0 whatever the weight; a convolution may round to below 0.
    there = variance > 0
    std = torch.where(there, variance, 1.0).sqrt() * there
    held = effective.held
    if held is None or held.key is None:
        normal = fresh(effective, noise, lambda: _random.normal(output))
    else:
        normal = _keyed.normal(held.key, output, _turns(held, layer, output, noise.batch_dim))
    return output + (std * normal * noise.factor(effective)).to(output.dtype)  # As autocast has it.


def output_variance(layer: nn.Module, squares: Tensor, variance: Tensor, weight: Tensor) -> Tensor:
    """``layer(squares; variance)``; where an output's weights have one variance, times the sum of its squares."""
    if variance.numel() == variance.shape[:1].numel() and getattr(layer, "groups", 1) == 1:
        ones = torch.ones((1, *weight.shape[1:]), dtype=variance.dtype, device=weight.device)
        return layer_product(layer, squares, ones) * variance.reshape(-1, *[1] * (weight.ndim - 2))
    return layer_product(layer, squares, variance.expand_as(weight))


def _examples(layer: nn.Module, values: Tensor, batch_dim: int) -> int:
    """The dimension of the examples in what a layer takes in or puts out."""
    # Examples without positions come first: what is put out of the last step of a sequence.
    return batch_dim if isinstance(layer, nn.Linear) and batch_dim < values.ndim - 1 else 0


def _turns(held: HeldDraw, layer: nn.Module, values: Tensor, batch_dim: int) -> _keyed.Turns | None:
    """The turns of the rows of a batch, where some have been reset."""
    if held.turns is None:
        return None
    single = values.ndim == 1 + len(getattr(layer, "kernel_size", ()))
    if single:
        raise WeightNoiseError(
            "Some rows were reset in this hold, and a layer with estimator='flipout' or 'local' got an input "
            f"without a batch, of shape {tuple(values.shape)}. Give it rows, or call reset() without rows."
        )
    return _keyed.Turns(held.turns, _examples(layer, values, batch_dim))


def _per_channel(layer: nn.Module, values: Tensor, batch_dim: int) -> tuple[int, ...]:
    """The shape of one number for each example and channel of what a layer takes in or puts out."""
    if isinstance(layer, nn.Linear):
        examples, last = _examples(layer, values, batch_dim), values.ndim - 1
        return tuple(size if dim in (examples, last) else 1 for dim, size in enumerate(values.shape))
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    space = len(layer.kernel_size)
    return (*values.shape[: values.ndim - space], *[1] * space)


def estimator_problem(
    estimator: Estimator, owner: nn.Module, tensor_name: str, law: Law, weight: Tensor
) -> str | None:
    """Why noise of the law on this tensor cannot differ from example to example; None where it can."""
    if estimator == "shared":
        return None
    kind = type(owner).__name__
    if not isinstance(owner, PRODUCTS) or tensor_name != "weight":
        return (
            f"belongs to {kind}; estimator={estimator!r} is for the weight of nn.Linear, nn.Conv1d, nn.Conv2d and "
            "nn.Conv3d. Cover this one in another call with estimator='shared', or leave it clean"
        )
    if isinstance(owner, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return (
            f"is read by nn.MultiheadAttention, past the forward of its layer, which estimator={estimator!r} "
            "needs. Cover it in another call with estimator='shared', or leave it clean"
        )
    own = type(owner).forward
    if "forward" in vars(owner) or getattr(own, "__wrapped__", own) not in _FORWARDS or _own_convolution(owner):
        return (
            f"belongs to {kind}, which has a forward of its own; estimator={estimator!r} needs that of the torch "
            "layer. Use estimator='shared'"
        )
    if estimator == "flipout" and not law.sign_symmetric:
        return (
            f"has {law!r}, which does not declare that its signs may flip (sign_symmetric = True), as "
            "estimator='flipout' needs. Use a law such as Gaussian or Uniform, or estimator='shared'"
        )
    if estimator == "local" and law.deviation(weight, {}) is None:
        return (
            f"has {law!r}, which is not independent Gaussian noise on each weight, as estimator='local' needs. "
            "Use estimator='flipout' for symmetric noise, or 'shared'"
        )
    return None


def _own_convolution(owner: nn.Module) -> bool:
    return all(
        getattr(type(owner), "_conv_forward", None) is not getattr(kind, "_conv_forward", None)
        for kind in PRODUCTS
    )
