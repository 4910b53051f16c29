"""What puts other numbers, or nothing, in the place of a noisy weight is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import weightnoise as wn


def _by_data(weight: nn.Parameter, numbers: torch.Tensor) -> None:
    weight.data = numbers


def _as_often_changed(weight: nn.Parameter, numbers: torch.Tensor) -> nn.Parameter:
    """A Parameter that torch has counted as many changes of."""
    other = nn.Parameter(numbers)
    for _ in range(weight._version):
        other.mul_(1)
    return other


WAYS: dict[str, Callable[[nn.Parameter, torch.Tensor], None]] = {
    "data": _by_data,
    "swap_tensors": lambda weight, numbers: torch.utils.swap_tensors(weight, _as_often_changed(weight, numbers)),
}


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("way", WAYS)
def test_a_held_weight_follows_the_numbers_of_its_parameter(way: str, size: int) -> None:
    model: Any = wn.add_weight_noise(nn.Linear(size, size, bias=False), 0.05)
    weight, x = model._parameters["weight"], torch.eye(size)
    with wn.hold_noise(model, seed=0), torch.no_grad():
        noise, version = model(x) - weight.T, weight._version
        WAYS[way](weight, torch.zeros(size, size))
        assert weight._version == version
        torch.testing.assert_close(model(x), noise, rtol=0, atol=1e-6)  # The sum was rounded.


@pytest.mark.parametrize("size", [8, 64])
def test_a_held_weight_follows_a_conversion(size: int) -> None:
    model: Any = wn.add_weight_noise(nn.Linear(size, size), 0.05)
    x = torch.eye(size)
    with wn.hold_noise(model, seed=0), torch.no_grad():
        before = model(x)
        after = model.double()(x.double())
        assert after.dtype == torch.float64
        torch.testing.assert_close(after, before.double(), rtol=0, atol=1e-6)


FOLDED: dict[str, tuple[Callable[[nn.Module], Any], Callable[[nn.Module], Any]]] = {
    "weight_orig": (lambda m: prune.l1_unstructured(m, "weight", 0.5), lambda m: prune.remove(m, "weight")),
    "weight_v": (nn.utils.weight_norm, nn.utils.remove_weight_norm),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("name", FOLDED)
def test_a_noisy_parameter_that_a_tool_deletes_is_named(name: str) -> None:
    fold, unfold = FOLDED[name]
    model = nn.Sequential(nn.Linear(8, 8))
    fold(model[0])
    wn.add_weight_noise(model, {f"0.{name}": 0.05})
    with pytest.warns(wn.LeftCleanWarning, match=rf"'0\.{name}' was deleted while 'weight' is put in its place"):
        unfold(model[0])
    wn.remove_weight_noise(model)
    assert type(model[0]) is nn.Linear
    wn.add_weight_noise(model, 0.05)
    assert not torch.equal(model(torch.eye(8)), model(torch.eye(8)))
