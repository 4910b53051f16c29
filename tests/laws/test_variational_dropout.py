"""Variational dropout: its noise, its divergence against the integral, and what learning makes of it."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightnoise as wn
from tests.helpers import seen
from tests.laws.test_identities import DRAWS, assert_mean

ALPHAS = torch.logspace(-4, 3, 29, dtype=torch.float64)


def divergence(alpha: float) -> float:
    """-(ln alpha) / 2 + E ln|1 + sqrt(alpha) e|, plus the constant that makes it go to 0, by the midpoint rule."""
    step = 1e-5
    e = torch.arange(-10 + step / 2, 10, step, dtype=torch.float64)
    density = torch.exp(-e.square() / 2) / math.sqrt(2 * math.pi)
    mean_log = ((1 + math.sqrt(alpha) * e).abs().log() * density).sum().item() * step
    return -math.log(alpha) / 2 + mean_log + (0.5772156649 + math.log(2)) / 2


def approximate(law: wn.VariationalDropout, alpha: float) -> float:
    return law.kl_divergence(torch.ones(1), {"log_alpha": torch.tensor([math.log(alpha)]).double()}).item()


def log_alpha(model: nn.Module) -> Tensor:
    (found,) = wn.learned_strengths(model).values()
    return found


@pytest.mark.slow
def test_molchanovs_divergence_is_the_integral_for_every_alpha() -> None:
    for alpha in ALPHAS.tolist():
        assert approximate(wn.VariationalDropout(), alpha) == pytest.approx(divergence(alpha), abs=0.01)


@pytest.mark.slow
def test_kingmas_divergence_is_the_integral_up_to_one_and_stays_there() -> None:
    law = wn.VariationalDropout(approximation="kingma")
    for alpha in ALPHAS[ALPHAS <= 1].tolist():
        assert approximate(law, alpha) == pytest.approx(divergence(alpha), abs=0.04)
    assert approximate(law, 50.0) == approximate(law, 1.0)


@pytest.mark.parametrize(
    ("per", "shape"), [("element", (4, 3)), ("tensor", (1, 1)), (0, (4, 1)), (1, (1, 3))], ids=str
)
def test_an_alpha_for_each_weight_layer_or_unit(per: Any, shape: tuple[int, ...]) -> None:
    layer = wn.add_weight_noise(nn.Linear(3, 4).double(), wn.VariationalDropout(0.3, per=per))
    assert log_alpha(layer).numel() == math.prod(shape)
    strengths = torch.linspace(-3, 1, math.prod(shape), dtype=torch.float64).reshape(shape)
    with torch.no_grad():
        log_alpha(layer).copy_(strengths.reshape(log_alpha(layer).shape))
        with wn.no_noise(layer):
            clean = layer.weight
        draws = torch.stack([seen(layer) for _ in range(DRAWS)])
    scaled = (draws / clean - 1) / (strengths / 2).exp()
    assert_mean(scaled.flatten(1).mean(dim=1), 0.0)
    for row in range(4):
        for column in range(3):
            assert_mean(scaled[:, row, column].square(), 1.0)
    # Once for each weight that has the alpha.
    each = [
        approximate(wn.VariationalDropout(), math.exp(value))
        for value in strengths.expand(4, 3).flatten().tolist()
    ]
    assert wn.kl_divergence(layer).item() == pytest.approx(sum(each))


def test_the_divergence_of_a_model_adds_up_and_moves_the_strengths_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Conv1d(2, 3, 2), nn.Linear(3, 2))
    wn.add_weight_noise(model, {"0.weight": wn.VariationalDropout(), "1.weight": wn.VariationalDropout(per=0)})
    total = wn.kl_divergence(model)
    assert total.item() == pytest.approx((12 + 12) * approximate(wn.VariationalDropout(), 0.25), rel=1e-5)
    total.backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert moved == set(wn.learned_strengths(model))
    # More noise is closer to the prior.
    assert all(bool((strength.grad < 0).all()) for strength in wn.learned_strengths(model).values())


def test_kingmas_alpha_is_held_at_one_and_comes_back() -> None:
    law = wn.VariationalDropout(1.0, per="tensor", approximation="kingma")
    layer = wn.add_weight_noise(nn.Linear(3, 4, bias=False), law)
    with torch.no_grad():
        log_alpha(layer).fill_(2.0)
    with wn.hold_noise(layer, seed=0):
        high = layer.weight
        with torch.no_grad():
            log_alpha(layer).fill_(0.0)
        assert torch.equal(high, layer.weight)
    with torch.no_grad():
        log_alpha(layer).fill_(2.0)
    wn.kl_divergence(layer).backward()  # Asks for more noise, which there is none of.
    assert log_alpha(layer).grad.abs().max() == 0
    log_alpha(layer).grad = None
    optimizer = torch.optim.SGD([log_alpha(layer)], lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        layer(torch.eye(3)).square().sum().backward()  # Asks for less.
        optimizer.step()
    assert log_alpha(layer).max() < 0


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["shared", "flipout", "local"])
def test_the_divergence_sparsifies_and_without_it_the_noise_dies(estimator: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 10)
    y = x[:, :2] @ torch.tensor([[1.0], [-1.0]]) + 0.5 * torch.randn(256, 1)
    plain = nn.Linear(10, 1, bias=False)
    final = {}
    for weight in (0.0, 1.0):
        model = wn.add_weight_noise(copy.deepcopy(plain), wn.VariationalDropout(), estimator=estimator)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(400):
            optimizer.zero_grad()
            # The log likelihood of 256 examples with noise of variance 0.25, and the divergence.
            loss = 2 * (model(x) - y).square().sum() + weight * wn.kl_divergence(model)
            loss.backward()
            optimizer.step()
        final[weight] = log_alpha(model).detach().flatten()
    needed, useless = final[1.0][:2], final[1.0][2:]
    assert needed.max() < -2
    assert useless.min() > needed.max() + 2
    assert final[0.0].mean() < final[1.0].mean() - 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": 0.0}, "must be positive"),
        ({"init": -1.0}, "init"),
        ({"init": 1.5, "approximation": "kingma"}, r"in \(0, 1\] with approximation='kingma'"),
        ({"per": "row"}, "per"),
        ({"approximation": "exact"}, "must be one of 'molchanov', 'kingma'"),
    ],
)
def test_options_that_make_no_sense(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wn.VariationalDropout(**options)
