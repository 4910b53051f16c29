"""The models and laws that tests run over. A new model or law is one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from weightnoise import Custom, DropConnect, Gaussian, Noise, Uniform


class ReadsTwice(nn.Module):
    """Owns a parameter and reads it twice in one forward, as a tied autoencoder does."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(4, 6) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.matrix) @ self.matrix.T


class LanguageModel(nn.Module):
    """An embedding tied to the output head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.body = nn.Linear(5, 5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.head(torch.tanh(self.body(self.embed(tokens))))
        return output


class SharedModule(nn.Module):
    """One layer, used twice and reached under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.second(torch.tanh(self.first(x)))
        return output


class First(nn.Module):
    """The output of a recurrent layer without its state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(x)[0]
        return output


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` of an input with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.attention(x, x, x)[0]
        return output


def frozen_first(model: nn.Sequential) -> nn.Sequential:
    """Freeze the first layer."""
    model[0].requires_grad_(False)
    return model


@dataclass(frozen=True)
class Case:
    """A model and an input for it."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]

    def model(self, seed: int = 0) -> nn.Module:
        """A fresh model, always with the same weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make()

    def batch(self) -> Tensor:
        """The same batch each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return self.inputs()


def single_loss(model: nn.Module, x: Tensor) -> Tensor:
    """A smooth scalar of one forward."""
    y = model(x)
    return (y.square() + y.tanh()).to(torch.promote_types(y.dtype, torch.float32)).mean()


CASES = {
    "mlp": Case(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), lambda: torch.randn(5, 4)),
    "conv": Case(
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 2)
        ),
        lambda: torch.randn(3, 2, 4, 4),
    ),
    "lstm": Case(lambda: First(nn.LSTM(4, 3, num_layers=2, bidirectional=True)), lambda: torch.randn(5, 2, 4)),
    "gru": Case(lambda: First(nn.GRU(4, 3)), lambda: torch.randn(5, 2, 4)),
    "attention": Case(SelfAttention, lambda: torch.randn(2, 5, 4)),
    "transformer": Case(
        lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), lambda: torch.randn(2, 5, 4)
    ),
    "tied": Case(LanguageModel, lambda: torch.randint(7, (3, 4))),
    "shared": Case(SharedModule, lambda: torch.randn(5, 4)),
    "reads_twice": Case(ReadsTwice, lambda: torch.randn(5, 4)),
    "frozen": Case(
        lambda: frozen_first(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))),
        lambda: torch.randn(5, 4),
    ),
    "weight_norm": Case(
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3)),
        lambda: torch.randn(5, 4),
    ),
    "float64": Case(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double(),
        lambda: torch.randn(5, 4, dtype=torch.float64),
    ),
    "bfloat16": Case(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).bfloat16(),
        lambda: torch.randn(5, 4, dtype=torch.bfloat16),
    ),
}


def shrink(weight: Tensor) -> Tensor:
    """A differentiable random transformation of a weight."""
    return torch.tanh(weight) * (1 + 0.3 * torch.rand(weight.shape, dtype=weight.dtype))


LAWS: dict[str, Noise | list[Noise]] = {
    "gaussian": Gaussian(0.2),
    "gaussian_absmax": Gaussian(0.2, relative_to="absmax"),
    "gaussian_absmax_exact": Gaussian(0.2, relative_to="absmax", gradient="exact"),
    "gaussian_std_per_channel": Gaussian(0.2, relative_to="std", per=0, gradient="exact"),
    "gaussian_rms_per_channel": Gaussian(0.2, relative_to="rms", per=-1),
    "gaussian_value": Gaussian(0.2, relative_to="value"),
    "gaussian_value_exact": Gaussian(0.2, relative_to="value", gradient="exact"),
    "uniform": Uniform(0.2),
    "uniform_rms_exact": Uniform(0.2, relative_to="rms", gradient="exact"),
    "drop_connect": DropConnect(0.3),
    "drop_connect_blocks": DropConnect(0.3, block=2, rescale=False),
    "drop_connect_straight": DropConnect(0.3, gradient="straight-through"),
    "custom": Custom(shrink),
    "custom_straight": Custom(shrink, gradient="straight-through"),
    "chain": [DropConnect(0.3), Gaussian(0.2)],
}
