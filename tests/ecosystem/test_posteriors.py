"""Standard deviations from IVON, SWAG, Adam and laplace-torch: closed forms, and the packages' own predictions.

laplace-torch and torch-uncertainty require torchvision, and with it a build of torch that may be another one, so
that they are in no extra. For the first ``pip install --no-deps`` does: laplace-torch asdfghjkl
backpack-for-pytorch curvlinops-for-pytorch einconv einops linear_operator opt_einsum unfoldNd.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import weightnoise as wn
from tests.ecosystem.posteriors import (
    DRAWS,
    PAGE,
    PRIOR,
    SIGMA,
    Linear,
    N,
    X,
    assert_same_predictions,
    assert_spread,
    code,
    network,
    noisy,
    recipe,
)

SIZES = [8, 64]


def train_ivon(model: nn.Module, loss: Callable[[], Tensor], steps: int, **options: Any) -> Any:
    ivon = pytest.importorskip("ivon", reason="needs ivon-opt")
    optimizer = ivon.IVON(model.parameters(), **options)
    for _ in range(steps):
        with optimizer.sampled_params(train=True):
            optimizer.zero_grad()
            loss().backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("size", SIZES)
def test_ivon_finds_the_posterior_of_a_linear_model(size: int) -> None:
    task = Linear(size)
    model = task.solve()
    # h remembers 1 / (1 - beta2) = 100 steps, of which each gives z^2 times its mean for a standard normal z.
    optimizer = train_ivon(
        model, lambda: task.loss(model), 500, lr=1e-3, ess=N, beta2=0.99, weight_decay=PRIOR / N, hess_init=20.0
    )
    stds = recipe("by_name")(model, recipe("of_ivon")(optimizer))
    ratio = stds["weight"] / task.std
    assert abs(ratio.mean() - 1) < 0.03  # Its update is right up to 1 - beta2.
    assert (
        ratio - 1
    ).abs().max() < 0.05 * 5.5  # Half the relative error of h, (2 (1 - beta2) / 2)^(1/2), at most.
    assert_spread(model, stds)


@pytest.mark.parametrize("size", SIZES)
def test_ivon_predicts_the_same(size: int) -> None:
    model = network(size)
    inputs = torch.randn(32, 3)
    targets = inputs[:, :2].sin()
    optimizer = train_ivon(
        model, lambda: nn.functional.mse_loss(model(inputs), targets), 20, lr=0.1, ess=300, hess_init=0.1
    )
    found = wn.predict(noisy(model, recipe("by_name")(model, recipe("of_ivon")(optimizer))), X, draws=DRAWS)
    outputs = []
    for _ in range(DRAWS):
        with torch.no_grad(), optimizer.sampled_params():
            outputs.append(model(X))
    assert_same_predictions(torch.stack(outputs), found)


@pytest.mark.parametrize("size", SIZES)
def test_swag_on_the_path_of_a_linear_model(size: int) -> None:
    """Descent on a quadratic: w_t - w* = r^t (w_0 - w*) with r = 1 - lr a_j^2 / SIGMA^2, a geometric series."""
    task = Linear(size)
    best, model, epochs, lr = task.solve(), copy.deepcopy(task.model), 20, 0.02
    nn.init.normal_(model.weight)
    start = (model.weight - best.weight).detach().double()

    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        task.loss(model).backward()
        optimizer.step()

    stds = recipe("by_name")(
        model, recipe("of_swag", train=train)(model, torch.optim.SGD(model.parameters(), lr=lr), epochs)
    )
    r = 1 - lr * task.scale.double().square() / SIGMA**2
    first = r * (1 - r**epochs) / (1 - r) / epochs
    second = r**2 * (1 - r ** (2 * epochs)) / (1 - r**2) / epochs
    assert_close(model.weight.detach().double(), best.weight + first * start, rtol=1e-4, atol=1e-5)
    assert_close(
        stds["weight"].double(), (second - first**2).sqrt().expand(size, size) * start.abs(), rtol=1e-3, atol=1e-5
    )
    assert_spread(model, stds)


def test_swag_is_that_of_torch_uncertainty() -> None:
    try:
        from torch_uncertainty.methods.swag import SWAG
    except (ImportError, RuntimeError):  # A torchvision for another build of torch is a RuntimeError.
        pytest.skip("needs torch-uncertainty, torchvision and timm")
    model = network(8)
    options = {"diag_covariance": True, "var_clamp": 0.0, "num_estimators": 1}
    theirs = SWAG(model, cycle_start=0, cycle_length=1, **options)

    def train(model: nn.Module, optimizer: Any) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
        theirs.update_wrapper(1)

    std = recipe("of_swag", train=train)(model, None, 5)
    for (name, mean), deviation in zip(
        model.named_parameters(), recipe("by_name")(model, std).values(), strict=True
    ):
        kept = [theirs.swag_stats[f"model.swag_stats.{name}_{part}"] for part in ("mean", "sq_mean")]
        assert_close(mean.detach(), kept[0], rtol=1e-5, atol=1e-6)
        assert_close(deviation.square(), kept[1] - kept[0].square(), rtol=1e-3, atol=1e-5)
    outputs = torch.stack([theirs.sample(1.0)(X).detach() for _ in range(DRAWS)])
    assert_same_predictions(outputs, wn.predict(noisy(model, recipe("by_name")(model, std)), X, draws=DRAWS))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [1, 4])
def test_second_moments_of_adam_on_a_linear_model(batch: int, size: int) -> None:
    """One pass without moving: v is the weighted mean of the squares of (X W - y)_i x_j / SIGMA^2."""
    task = Linear(size)
    model, beta2 = task.model, 0.999
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0, betas=(0.9, beta2))
    batches = torch.randperm(N).split(batch)
    moment = torch.zeros(size, size)
    for rows in batches:
        optimizer.zero_grad()
        task.loss(model, rows).backward()
        optimizer.step()
        gradient = (model(task.x[rows]) - task.y[rows]).detach().T @ task.x[rows] / (batch * SIGMA**2)
        moment += (1 - beta2) * (gradient.square() - moment)
    stds = recipe("of_adam", N=N)(optimizer, model, batch, PRIOR)
    expected = (batch * N * moment / (1 - beta2 ** len(batches)) + PRIOR).rsqrt()
    assert_close(stds["weight"], expected)
    # Where the model is right, the mean square is the curvature; the error of a mean over N / batch squares of
    # each of `size` independent outputs.
    precision = stds["weight"] ** -2 - PRIOR
    error = (2 * 3 * batch / N / size) ** 0.5  # Products of two normal numbers: at most three times that of one.
    assert abs((precision / task.precision).mean() - 1) < 4.5 * error
    assert_spread(model, stds)


def laplace(model: nn.Module, x: Tensor, y: Tensor, sigma: float) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("laplace", reason="needs laplace-torch")
        options = {"subset_of_weights": "all", "hessian_structure": "diag"}
        la = package.Laplace(
            copy.deepcopy(model), "regression", sigma_noise=sigma, prior_precision=PRIOR, **options
        )
        la.fit(torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=64))
    return la


@pytest.mark.parametrize("size", SIZES)
def test_laplace_finds_the_posterior_of_a_linear_model(size: int) -> None:
    task = Linear(size)
    model = task.solve()
    la = laplace(model, task.x, task.y, SIGMA)
    stds = recipe("by_name")(model, la.posterior_scale)
    assert_close(stds["weight"], task.std, rtol=1e-3, atol=1e-6)
    assert_spread(model, stds)
    mean, variance = la(task.x[:3])
    found = wn.predict(noisy(model, stds), task.x[:3], draws=DRAWS, antithetic=True)
    assert_close(found.mean, mean, rtol=1e-4, atol=1e-4)  # Exact in mirrored pairs.
    assert (found.std.square() / variance.diagonal(dim1=1, dim2=2)).log().mean().abs() < 0.1


@pytest.mark.parametrize("size", SIZES)
def test_laplace_predicts_the_same(size: int) -> None:
    model = network(size)
    x = torch.randn(64, 3)
    la = laplace(model, x, x[:, :2].sin(), 1.0)
    found = wn.predict(noisy(model, recipe("by_name")(model, la.posterior_scale)), X, draws=DRAWS)
    outputs = la.predictive_samples(X, pred_type="nn", n_samples=DRAWS)
    assert_same_predictions(outputs, found)


@pytest.mark.slow
def test_the_page_runs_with_laplace() -> None:
    pytest.importorskip("ivon", reason="needs ivon-opt")
    space: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("laplace", reason="needs laplace-torch")
        for block in code("python|py"):
            exec(compile(block, str(PAGE), "exec"), space)
    assert "Laplace, prior 30" in space["found"]
