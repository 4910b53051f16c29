"""Batch statistics that are gathered anew for each chip."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightnoise as wn
from tests.robustness.test_syntax import GAUSSIAN, make


def trained(width: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network with batch normalisation on inputs with a mean, which noise shifts."""
    torch.manual_seed(0)
    x = torch.randn(256, 16) + 2
    y = (x[:, :8].sum(1) > x[:, 8:].sum(1)).long()
    model = nn.Sequential(nn.Linear(16, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x, y


def accuracy(x: Tensor, y: Tensor) -> Any:
    @torch.no_grad()
    def metric(model: nn.Module) -> float:
        return (model.eval()(x).argmax(1) == y).double().mean().item()

    return metric


@pytest.mark.parametrize("width", [8, 64])
def test_it_brings_back_what_the_shift_of_the_statistics_costs(width: int) -> None:
    model, x, y = trained(width)
    before = {name: value.clone() for name, value in model.named_buffers()}
    options: Any = {"levels": [0.0, 0.5], "law": {"0.*": GAUSSIAN}, "draws": 10, "progress": False}
    metric = accuracy(x, y)
    plain = wn.evaluate_robustness(model, metric, **options)
    batches = list(zip(x.split(64), y.split(64), strict=True))
    anew = wn.evaluate_robustness(model, metric, recalibrate=batches, **options)
    gain = anew.compare(anew, plain)
    assert gain.interval()[1, 0] > 0.02
    assert anew.made_by["batch statistics"] == "gathered for each draw"
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert model[1].momentum == 0.1
    assert model.training

    # By hand: plain means over the batches, under the held draw.
    wn.add_weight_noise(model, {"0.*": GAUSSIAN})
    with wn.scale_noise(model, 0.5), wn.hold_noise(model, seed=anew.seed_of(0.5, 3)), torch.no_grad():
        inner = [model[0](batch) for batch, _ in batches]
        model[1].running_mean.copy_(torch.stack([one.mean(0) for one in inner]).mean(0))
        model[1].running_var.copy_(torch.stack([one.var(0) for one in inner]).mean(0))
        assert metric(model) == pytest.approx(anew.values[1, 3].item())
    wn.remove_weight_noise(model)

    def run_some(model: nn.Module) -> None:
        for batch, _ in batches:
            model(batch)

    again = wn.evaluate_robustness(model.eval(), metric, recalibrate=run_some, **options)
    assert torch.equal(again.values, anew.values)


@pytest.mark.parametrize(
    ("recalibrate", "error", "text"),
    [
        (iter([torch.ones(4, 16)]), TypeError, "gone through for each chip"),
        (3, TypeError, "takes a DataLoader or a list"),
        ([], ValueError, "has given no batch"),
    ],
)
def test_what_cannot_recalibrate(recalibrate: Any, error: Any, text: str) -> None:
    model, x, y = trained(8)
    with pytest.raises(error, match=text):
        wn.evaluate_robustness(
            model, accuracy(x, y), levels=[0.1], law=GAUSSIAN, recalibrate=recalibrate, progress=False
        )
    assert model[1].momentum == 0.1
    with pytest.raises(ValueError, match="goes without recalibrate"):
        wn.evaluate_robustness(
            model, accuracy(x, y), levels=[0.1], law=GAUSSIAN, recalibrate=[x], vectorize=True, progress=False
        )
    with pytest.raises(ValueError, match="and the model has none"):
        wn.evaluate_robustness(make()[0], lambda m: 0.0, levels=[0.1], law=0.1, recalibrate=[x], progress=False)
