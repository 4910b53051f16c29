"""The models whose training step is timed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Adam with small steps."""
    return torch.optim.Adam(parameters, lr=1e-4)


@dataclass(frozen=True)
class Workload:
    """A model, a batch and what is done with them.

    Attributes:
        model: makes the model.
        draw_batch: makes inputs and class labels.
        trains: whether a step is forward, backward and optimizer, or a forward without gradients.
        optimizer: makes the optimizer.
    """

    model: Callable[[], nn.Module]
    draw_batch: Callable[[], tuple[Tensor, Tensor]]
    trains: bool = True
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = adam

    def batch(self) -> tuple[Tensor, Tensor]:
        """The same batch for every contender, whatever it has drawn before."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return self.draw_batch()


class Residual(nn.Module):
    """Two 3 x 3 convolutions with batch norm around a shortcut."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(out), nn.BatchNorm2d(out)])
        self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(y)) + self.shortcut(x))


class LanguageModel(nn.Module):
    """A 4-layer Transformer encoder over tokens."""

    def __init__(self, vocabulary: int = 1000, width: int = 256) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.head(self.body(self.embed(tokens)))
        return output.flatten(0, 1)


class SequenceModel(nn.Module):
    """An LSTM and a classifier of its last state."""

    def __init__(self, inputs: int = 128, hidden: int = 512) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden)
        self.head = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.lstm(x)[0][-1])
        return output


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for size, out in itertools.pairwise(sizes):
        layers += [nn.Linear(size, out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def resnet(width: int = 32) -> nn.Sequential:
    """A small residual network for 32 x 32 images."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        Residual(width, width, 1),
        Residual(width, 2 * width, 2),
        Residual(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, 10),
    )


def labels(count: int, classes: int = 10) -> Tensor:
    """Random classes."""
    return torch.randint(classes, (count,))


WORKLOADS = {
    "MLP 784-100-100-10, batch 64": Workload(
        lambda: mlp(784, 100, 100, 10), lambda: (torch.randn(64, 784), labels(64))
    ),
    "MLP 1024 x 3 - 10, batch 128": Workload(
        lambda: mlp(1024, 1024, 1024, 1024, 10), lambda: (torch.randn(128, 1024), labels(128))
    ),
    "small ResNet, 32 x 32, batch 16": Workload(resnet, lambda: (torch.randn(16, 3, 32, 32), labels(16))),
    "4-layer Transformer, d = 256, 8 x 128 tokens": Workload(
        LanguageModel, lambda: (torch.randint(1000, (8, 128)), labels(8 * 128, 1000))
    ),
    "LSTM 128-512, 50 steps, batch 16": Workload(SequenceModel, lambda: (torch.randn(50, 16, 128), labels(16))),
    "24 x Linear(8, 8), forward only": Workload(
        lambda: nn.Sequential(*(nn.Linear(8, 8) for _ in range(24))),
        lambda: (torch.randn(4, 8), labels(4, 8)),
        trains=False,
    ),
}
TRAINED = tuple(name for name, workload in WORKLOADS.items() if workload.trains)
