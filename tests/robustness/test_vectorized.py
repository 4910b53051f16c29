"""Robustness with the draws of a level evaluated together."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import weightnoise as wn
from weightnoise._robustness import vectorized as _vectorized


def small() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    return model, torch.randn(40, 8), torch.randint(3, (40,))


class Counted:
    """A metric without gradients that counts its calls."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.calls = 0

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> Any:
        self.calls += 1
        return self.function(model)


@pytest.mark.parametrize("options", [{}, {"antithetic": True}, {"by_parameter": True}], ids=str)
@pytest.mark.parametrize(
    "law",
    [
        wn.Gaussian(1.0, relative_to="absmax"),
        wn.ProgrammingNoise(time=3600.0),
        wn.StuckAt(zero=0.5, high=0.2),
        [wn.DropConnect(0.5), wn.QuantizationNoise(4)],
        wn.LearnedGaussian(0.5, factorised=True),
    ],
    ids=str,
)
def test_vectorized_draws_are_those_one_by_one(law: Any, options: Any) -> None:
    model, x, y = small()

    def both(model: nn.Module) -> dict[str, Tensor]:
        logits = model.eval()(x)
        return {"loss": nn.functional.cross_entropy(logits, y), "wrong": (logits.argmax(1) != y).float().mean()}

    metric = Counted(both)
    found = wn.evaluate_robustness(
        model, metric, levels=[0.0, 0.2, 0.5], law=law, draws=6, vectorize=True, **options
    )
    together, metric.calls = metric.calls, 0
    expected = wn.evaluate_robustness(model, metric, levels=[0.0, 0.2, 0.5], law=law, draws=6, **options)
    assert together < metric.calls / 2
    assert found.curves.keys() == expected.curves.keys()
    for name, values in found.curves.items():
        assert_close(values, expected.curves[name], rtol=1e-4, atol=1e-5)
        assert values[2].std() > 0


# 227 parameters: pieces of 1, of 8 and of all 10 draws, with a run for each sign in them.
@pytest.mark.parametrize(("size", "runs"), [(1, 10), (8 * 227, 4), (2**24, 2)])
def test_vectorized_in_pieces(size: int, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, _ = small()
    monkeypatch.setattr(_vectorized, "_ELEMENTS", size)
    metric = Counted(lambda model: model.eval()(x).square().mean())
    options: Any = {"levels": [0.3], "law": wn.Gaussian(1.0), "draws": 10, "antithetic": True}
    found = wn.evaluate_robustness(model, metric, vectorize=True, **options)
    assert metric.calls == runs + 2  # Two to see whether it is deterministic.
    assert_close(found.values, wn.evaluate_robustness(model, metric, **options).values, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        (lambda model, x: model.eval()(x).mean().item(), "item"),
        (lambda model, x: model.train()(x).mean(), "(?i)batch norm"),
        (lambda model, x: 1.0 if model.eval()(x).mean() > 0 else 0.0, "(?i)data-dependent"),
        (lambda model, x: 1.0, "vmap"),
    ],
    ids=["item", "batch norm", "decision", "constant"],
)
def test_what_vmap_cannot_do_goes_one_by_one_and_says_so(metric: Any, reason: str) -> None:
    model, x, _ = small()
    before = copy.deepcopy(model.state_dict())
    options: Any = {"levels": [0.0, 0.3], "law": wn.Gaussian(1.0), "draws": 3}
    with pytest.warns(wn.NotVectorizedWarning, match=reason) as caught:
        found = wn.evaluate_robustness(model, lambda model: metric(model, x), vectorize=True, **options)
    assert caught[0].filename == __file__
    assert torch.equal(
        found.values, wn.evaluate_robustness(model, lambda model: metric(model, x), **options).values
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not wn.has_weight_noise(model)


def test_noise_on_activations_is_not_vectorized() -> None:
    model, x, _ = small()
    wn.add_activation_noise(model, 0.1)
    with pytest.warns(wn.NotVectorizedWarning, match="drawn within the metric"):
        wn.evaluate_robustness(
            model, lambda model: model.eval()(x).mean().detach(), levels=[1.0], draws=3, vectorize=True
        )


def test_an_error_of_the_metric_comes_through() -> None:
    model, _, _ = small()
    calls = 0

    def metric(model: nn.Module) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise RuntimeError("mine")
        return torch.zeros(())

    with pytest.warns(wn.NotVectorizedWarning, match="mine"), pytest.raises(RuntimeError, match="mine"):
        wn.evaluate_robustness(model, metric, levels=[1.0], law=wn.Gaussian(1.0), draws=3, vectorize=True)
    assert not wn.has_weight_noise(model)
