"""What code has hung on a Parameter is on the noisy weight, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import weightnoise as wn

SIZES = [8, 64]


class Scaled(nn.Module):
    """A layer of somebody's own, that asks its weight for a multiplier, as mup and others do."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, size))
        self.other = nn.Parameter(torch.randn(size, size))

    def forward(self, x: Tensor) -> Tensor:
        assert not hasattr(self.other, "multiplier")
        if hasattr(self.weight, "multiplier"):
            x = x * self.weight.multiplier
        output: Tensor = x @ self.weight @ self.other
        return output


def in_checkpoint(model: nn.Module, x: Tensor) -> Tensor:
    output: Tensor = checkpoint(model, x.requires_grad_(), use_reentrant=False)
    return output


WAYS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "plain": lambda model, x: model(x),
    "no_grad": lambda model, x: torch.no_grad()(model)(x),
    "inference": lambda model, x: torch.inference_mode()(model)(x),
    "checkpoint": in_checkpoint,
    "autocast": lambda model, x: torch.autocast("cpu", torch.bfloat16)(model)(x),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("memory", ["keep", "recompute"])
@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_attributes_are_carried(way: str, late: bool, held: bool, memory: Any, size: int) -> None:
    model = Scaled(size)
    if not late:
        model.weight.multiplier = 0.0  # type: ignore[attr-defined]
    wn.add_weight_noise(model, 0.1, memory=memory)
    x = torch.randn(2, size)
    with wn.hold_noise(model, seed=1) if held else wn.force_noise(model):
        if late:
            assert WAYS[way](model, x).any()
            dict(model.named_parameters())["weight"].multiplier = 0.0  # type: ignore[attr-defined]
        assert not WAYS[way](model, x).any()
        del dict(model.named_parameters())["weight"].multiplier  # type: ignore[attr-defined]
        assert WAYS[way](model, x).any()


@pytest.mark.parametrize("size", SIZES)
def test_what_a_forward_hangs_on_the_weight_is_on_the_parameter(size: int) -> None:
    class Counts(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.weight.calls = getattr(self.weight, "calls", 0) + 1  # type: ignore[attr-defined]
            return super().forward(x)

    model = Counts(size, size)
    model.weight.calls = 0  # type: ignore[attr-defined]
    wn.add_weight_noise(model, 0.1)
    for _ in range(3):
        model(torch.randn(2, size))
    assert vars(model.weight) == {"calls": 3}


@pytest.mark.compile
@pytest.mark.parametrize("size", SIZES)
def test_compiled_code_sees_them(size: int) -> None:
    model = Scaled(size)
    model.weight.multiplier = 0.0  # type: ignore[attr-defined]
    wn.add_weight_noise(model, 0.1)
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    assert not compiled(torch.randn(2, size)).any()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("call", [lambda weight: torch.optim.SGD([weight], lr=0.1)], ids=["optimizer"])
def test_outside_of_a_hold_tools_get_the_parameter(call: Callable[[Any], Any], size: int) -> None:
    model = wn.add_weight_noise(nn.Linear(size, size), 0.1)
    optimizer = call(model.weight)
    assert optimizer.param_groups[0]["params"][0] is dict(model.named_parameters())["weight"]
    model(torch.randn(2, size)).sum().backward()
    norm = nn.utils.clip_grad_norm_([model.weight], 1e-3)
    assert norm > 1e-3
    assert model.weight.grad is not None
    torch.testing.assert_close(model.weight.grad.norm(), torch.tensor(1e-3), rtol=1e-3, atol=0.0)
    with wn.hold_noise(model), pytest.raises(ValueError, match="non-leaf"):
        call(model.weight)
