"""An export while noise is on is an error with the two ways out; off, it is the clean graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightnoise as wn

# torch's own deprecations of the tracing exporter.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit")

X = (torch.ones(2, 3),)


def strict(model: nn.Module) -> Callable[..., Any]:
    return torch.export.export(model, X, strict=True).module()


def non_strict(model: nn.Module) -> Callable[..., Any]:
    return torch.export.export(model, X, strict=False).module()


def trace(model: nn.Module) -> Callable[..., Any]:
    traced: Callable[..., Any] = torch.jit.trace(model, X)
    return traced


def make() -> nn.Module:
    return wn.add_weight_noise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), 0.1)


@pytest.mark.parametrize("export", [strict, non_strict, trace])
def test_noise_on_is_an_error_that_prints_the_ways_out(export: Callable[[nn.Module], Any]) -> None:
    with pytest.raises(Exception, match="Weight noise is on") as caught:
        export(make())
    assert "with weightnoise.no_noise(model):" in str(caught.value)
    assert "weightnoise.remove_weight_noise(model)" in str(caught.value)
    if export is not strict:  # Dynamo wraps what it meets while it traces.
        assert isinstance(caught.value, wn.ExportError)


@pytest.mark.parametrize("export", [strict, non_strict, trace])
@pytest.mark.parametrize("way", ["no_noise", "removed"])
def test_off_or_removed_it_is_the_clean_graph(export: Callable[[nn.Module], Any], way: str) -> None:
    model = make()
    if way == "removed":
        exported: Callable[..., Tensor] = export(wn.remove_weight_noise(model))
        expected = model(*X)
    else:
        with wn.no_noise(model):
            exported, expected = export(model), model(*X)
    assert torch.equal(exported(*X), expected)
    assert torch.equal(exported(*X), exported(*X))


def test_scripting_works_after_removal() -> None:
    model = make()
    with pytest.raises((RuntimeError, ValueError)):
        torch.jit.script(model)
    wn.remove_weight_noise(model)
    assert torch.equal(torch.jit.script(model)(*X), model(*X))
