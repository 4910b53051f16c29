"""Linear and convolutional layers as functions of another weight."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from weightnoise._torch.autograd import autocast_of

PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def precise_products(like: Tensor) -> AbstractContextManager[None]:
    """Layers compute in the dtype that they are handed, also under autocast: sums of squares leave float16."""
    device, enabled, _ = autocast_of(like)
    return torch.autocast(device, enabled=False) if enabled else nullcontext()


def layer_product(layer: nn.Module, inputs: Tensor, weight: Tensor) -> Tensor:
    """Compute the output of a Linear or Conv layer for another input and weight, without its bias.

    Stride, padding and its mode, dilation and groups are those of the layer.
    """
    if isinstance(layer, nn.Linear):
        return F.linear(inputs, weight)
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    return convolve(layer, inputs, weight)


def convolve(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: Tensor, weight: Tensor) -> Tensor:
    """The convolution of a layer, its padding included, with another weight and no bias."""
    product: Tensor = layer._conv_forward(inputs, weight, None)
    return product


def _linear(layer: nn.Linear, weight: Tensor, input: Tensor) -> Tensor:  # noqa: A002  # As torch names it.
    return F.linear(input, weight, layer.bias)


def _convolution(layer: nn.Conv1d, weight: Tensor, input: Tensor) -> Tensor:  # noqa: A002
    output: Tensor = layer._conv_forward(input, weight, layer.bias)
    return output


# The forwards of torch that read one weight and do no more: each as a function of the weight too.
WITH_WEIGHT: dict[Any, Callable[..., Tensor]] = {nn.Linear.forward: _linear} | {
    kind.forward: _convolution for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)
}


@dataclass(frozen=True)
class Layout:
    """How a layer stores a tensor.

    Attributes:
        output: the dimension that counts its outputs, those of one group where a group has the first dimension.
        input: the one that counts its inputs, likewise; None where there is none, or more than one.
        groups: how many groups lie one after the other in dimension 0.
    """

    output: int | None
    input: int | None
    groups: int = 1


_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_OUTPUT_FIRST = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


def layout_of(layer: nn.Module, name: str) -> Layout | None:
    """How ``layer`` stores the tensor of that name, if that is known."""
    if name == "bias":
        known = (nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
        return Layout(0, None) if isinstance(layer, known) or _is_conv1d_of_gpt(layer) else None
    if isinstance(layer, _OUTPUT_FIRST):
        if name.startswith("bias_") and isinstance(layer, nn.MultiheadAttention):
            return Layout(2, None)
        return Layout(0, None if "bias" in name else 1)
    if name != "weight":
        return None
    if isinstance(layer, nn.Linear):
        return Layout(0, 1)
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return Layout(0, 1, layer.groups)
    if isinstance(layer, nn.Bilinear):
        return Layout(0, None)
    if isinstance(layer, _TRANSPOSED):
        return Layout(1, 0, layer.groups)
    # An embedding is a linear layer of tokens that are 1 at one place.
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) or _is_conv1d_of_gpt(layer):
        return Layout(1, 0)
    return None


def channels_of(layer: nn.Module, at: str) -> tuple[int, int] | None:
    """The dimension of the channels of what a layer takes in or puts out, from the end, and how many there are."""
    inwards = at == "input"
    if isinstance(layer, nn.Linear):
        found = -1, layer.in_features if inwards else layer.out_features
    elif isinstance(layer, nn.modules.conv._ConvNd):
        found = -1 - len(layer.kernel_size), layer.in_channels if inwards else layer.out_channels
    elif isinstance(layer, nn.Embedding) and not inwards:
        found = -1, layer.embedding_dim
    elif _is_conv1d_of_gpt(layer):
        weight: Tensor = layer.weight  # type: ignore[assignment]
        found = -1, weight.shape[0 if inwards else 1]
    else:
        return None
    return found if found[1] else None  # A lazy layer has none yet.


def activation_shapes(channels: tuple[int, int] | None) -> list[tuple[int, ...]]:
    """Some shapes that an activation may have: first the one of fewest dimensions, with 1 for what varies."""
    if channels is None:
        return [(1,), (2, 3), (4, 5, 6)]
    dim, size = channels
    if dim == -1:
        return [(size,), (2, size), (2, 3, size)]
    return [
        (size, *[length] * (-1 - dim)) if length == 1 else (2, size, *[length] * (-1 - dim))
        for length in (1, 3, 4)
    ]


def _is_conv1d_of_gpt(layer: nn.Module) -> bool:
    """Whether it is the linear layer of Transformers' GPT-2, which is not imported for the question."""
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(layer).__mro__}
    return bool(names & {"transformers.pytorch_utils.Conv1D", "transformers.modeling_utils.Conv1D"})
