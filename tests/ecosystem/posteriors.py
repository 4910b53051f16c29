"""What the tests of posteriors share: the functions of their guide, a regression with a closed form, a comparison.

Linear regression with y = X W + noise, of standard deviation SIGMA, where X has orthogonal columns of mean square
a_j^2: the log-likelihood of N examples has the second derivative -N a_j^2 / SIGMA^2 by each weight of column j,
and none across weights. With a prior of precision PRIOR each weight has its own normal posterior, of precision
N a_j^2 / SIGMA^2 + PRIOR.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import weightnoise as wn

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "posteriors.md"
N, SIGMA, PRIOR, DRAWS = 512, 0.5, 100.0, 200
X = torch.linspace(-1, 1, 3)[:, None] + torch.eye(3)  # The first columns of what is predicted.


def code(kinds: str = "python") -> list[str]:
    return re.findall(rf"^```(?:{kinds})\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)


def recipe(name: str, **names: Any) -> Callable[..., Any]:
    """A function of the page, with the names that it finds there."""
    functions = [one for one in ast.parse("".join(code())).body if isinstance(one, ast.FunctionDef)]
    space: dict[str, Any] = {"torch": torch, "nn": nn, **names}
    body: list[ast.stmt] = [one for one in functions if one.name == name]
    exec(compile(ast.Module(body, []), str(PAGE), "exec"), space)
    function: Callable[..., Any] = space[name]
    return function


class Linear:
    """The linear regression, its closed form and its gradients."""

    def __init__(self, size: int) -> None:
        torch.manual_seed(0)
        self.scale = torch.linspace(0.5, 1.5, size)
        self.x = torch.linalg.qr(torch.randn(N, size))[0] * N**0.5 * self.scale
        self.model = nn.Linear(size, size, bias=False)
        self.y = (self.model(self.x) + SIGMA * torch.randn(N, size)).detach()
        self.precision = (N * self.scale.square() / SIGMA**2).expand(size, size)
        self.std = (self.precision + PRIOR).rsqrt()

    def loss(self, model: nn.Module, rows: Any = slice(None)) -> Tensor:
        """The negative log-likelihood of an example, but for a constant."""
        return (model(self.x[rows]) - self.y[rows]).square().sum(dim=1).mean() / (2 * SIGMA**2)

    def solve(self) -> nn.Linear:
        """The most likely weights."""
        weight = (self.x.T @ self.y / (N * self.scale.square())[:, None]).T
        model = copy.deepcopy(self.model)
        model.load_state_dict({"weight": weight})
        return model


def noisy(model: nn.Module, stds: Any) -> nn.Module:
    return wn.add_weight_noise(copy.deepcopy(model), wn.Gaussian(stds), min_ndim=1)


def assert_spread(model: nn.Linear, stds: dict[str, Tensor]) -> None:
    """Predictions of a linear model deviate by (sum_j x_j^2 s_j^2)^(1/2)."""
    size = model.in_features
    x = torch.cat([X, torch.ones(3, size - 3)], dim=1)
    spread = wn.predict(noisy(model, stds), x, draws=DRAWS).std
    expected = (x.square() @ stds["weight"].square().T).sqrt()
    # A standard deviation of n normal numbers has a relative error of (2 n)^(-1/2); outputs are independent.
    error = (2 * DRAWS) ** -0.5
    assert (spread / expected - 1).abs().max() < 4.5 * error
    assert abs((spread / expected).mean() - 1) < 4.5 * error / size**0.5


def assert_same_predictions(outputs: Tensor, found: wn.Prediction) -> None:
    """Outputs of the package's draws have the mean and the deviation of `predict`'s."""
    mean, std = outputs.mean(dim=0), outputs.std(dim=0)
    scale = (std.square() / len(outputs) + found.std.square() / DRAWS).sqrt()
    assert ((mean - found.mean) / scale).abs().max() < 4.5
    error = (1 / (2 * len(outputs)) + 1 / (2 * DRAWS)) ** 0.5
    assert (std / found.std).log().abs().max() < 5 * error  # Not quite normal, so a little more.


def network(size: int) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, size), nn.Tanh(), nn.Linear(size, size), nn.Tanh(), nn.Linear(size, 2))
