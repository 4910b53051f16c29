"""Weights that are read again in a backward, by code that is no checkpoint of torch's."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import weightnoise as wn


class Again(torch.autograd.Function):
    """Keeps no activation, and runs the layer again: as reversible layers and adjoint methods do."""

    @staticmethod
    def forward(ctx: Any, layer: nn.Module, x: Tensor) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x)
        output: Tensor = layer(x)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            output = ctx.layer(x).tanh()
        output.backward(grads[0])
        return None, x.grad


def step(model: nn.Module, size: int) -> Tensor:
    x = torch.linspace(-1, 1, 2 * size).view(2, size).requires_grad_()
    Again.apply(model, x).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("kind", ["weights", "activations"])
def test_a_fresh_draw_there_warns_and_names_the_parameter(kind: str, size: int) -> None:
    model = nn.Sequential(nn.Linear(size, size))
    if kind == "weights":
        wn.add_weight_noise(model, 0.3)
    else:
        wn.add_activation_noise(model, 0.3)
    with pytest.warns(wn.RecomputedReadWarning, match="The noise on '0(.weight)?' is drawn in a backward"):
        step(model, size)


@pytest.mark.parametrize("size", [8, 64])
def test_held_noise_and_noise_that_is_off_are_right(size: int) -> None:
    model = wn.add_weight_noise(nn.Linear(size, size), 0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with wn.hold_noise(model, seed=1):
            assert_close(step(model, size), step(model, size), rtol=0, atol=0)
        with wn.no_noise(model):
            step(model, size)
