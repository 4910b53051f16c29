"""A model with a peer's noise on it: its layers in the place of torch's, and how much of the model they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Maker: TypeAlias = Callable[..., nn.Module]


@dataclass(frozen=True)
class Noisy:
    """A model with a peer's noise on it.

    Attributes:
        model: what is called and trained.
        around: entered for each forward and backward.
        in_place: whether the noise is on the Parameters of the model itself.
    """

    model: nn.Module
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    in_place: bool = False


def replace(model: nn.Module, makers: Mapping[type[nn.Module], Maker]) -> nn.Module:
    """Put another layer in the place of each one of these classes.

    Not of a class that inherits from them: attention reads the weight of a Linear of its own, past its forward.
    """
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) in makers:
                setattr(parent, name, makers[type(layer)](layer))
    return model


@torch.no_grad()
def means(layer: nn.Module, of: Any, weight: str = "weight_mu", bias: str = "bias_mu") -> nn.Module:
    """The layer with the weight and bias of another as its means."""
    getattr(layer, weight).copy_(of.weight)
    if of.bias is not None:
        getattr(layer, bias).copy_(of.bias)
    return layer


def with_layers(model: nn.Module, linear: Maker, conv: Maker | None = None, lstm: Maker | None = None) -> Noisy:
    """The model with a peer's layers: made as torch's are, but of an LSTM of its two sizes, examples first."""

    def of_linear(old: Any) -> nn.Module:
        return means(linear(old.in_features, old.out_features, bias=old.bias is not None), old)

    def of_conv(old: Any) -> nn.Module:
        assert conv is not None
        sizes = old.in_channels, old.out_channels, old.kernel_size
        return means(conv(*sizes, stride=old.stride, padding=old.padding, bias=old.bias is not None), old)

    makers: dict[type[nn.Module], Maker] = {nn.Linear: of_linear}
    makers |= {nn.Conv2d: of_conv} if conv else {}
    makers |= {nn.LSTM: lambda old: TimeFirst(lstm(old.input_size, old.hidden_size))} if lstm else {}
    return Noisy(replace(model, makers))


class TimeFirst(nn.Module):
    """A recurrent layer of a peer, which has the examples first, for sequences that have the time first."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.inner(x.transpose(0, 1))[0].transpose(0, 1), None


def share(noisy: Noisy, plain: nn.Module) -> float:
    """The share of the numbers in matrices that carry noise: those that layers of torch itself hold are clean."""
    if noisy.in_place:
        return 1.0
    own = [m for m in noisy.model.modules() if type(m).__module__.startswith("torch.nn.modules")]
    clean = sum(p.numel() for m in own for p in m.parameters(recurse=False) if p.ndim >= 2)
    return 1.0 - clean / sum(p.numel() for p in plain.parameters() if p.ndim >= 2)
