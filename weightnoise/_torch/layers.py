"""Linear and convolutional layers as functions of another weight."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

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
