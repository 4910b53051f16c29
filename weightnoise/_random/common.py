"""Numbers that draws of several parameters have in common: those of a specimen of hardware, those of a layer.

A law asks for them while it draws. Who lets it draw has said where they come from: a seed, or what the running
forward has drawn. Where nobody has said it, they are the law's own.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from weightnoise._random.seeds import derive_seed, seeded

Make: TypeAlias = Callable[[], Tensor]
Take: TypeAlias = Callable[[str, Make, torch.device], Tensor]


@dataclass
class Common:
    """Where the numbers come from that a draw has in common with others.

    Attributes:
        die: the seed of what all parameters of a group have.
        layer: gives the numbers of the layer that belong to a name, and makes those that are not there yet.
        asked: how often the draw has asked the layer: its first numbers are the first of the layer, and so on.
    """

    die: int | None = None
    layer: Take | None = None
    asked: int = 0


class _Running(threading.local):
    def __init__(self) -> None:
        # A reference that ends with the draw, even one that is interrupted before it puts back what was there.
        self.common: Common | weakref.ref[Common] | None = None

    def now(self) -> Common | None:
        return self.common() if isinstance(self.common, weakref.ref) else self.common


_RUNNING = _Running()


def drawn_with(common: Common | None, draw: Callable[..., Any], *args: Any) -> Any:
    """What ``draw`` returns, with the numbers in common from there."""
    before = _RUNNING.common
    # Dynamo puts back what it has traced by itself.
    _RUNNING.common = common if common is None or torch.compiler.is_compiling() else weakref.ref(common)
    try:
        return draw(*args)
    finally:
        _RUNNING.common = before


def of_seed(seed: int) -> Take:
    """The numbers of a layer as functions of a seed and their name."""

    def take(name: str, make: Make, device: torch.device) -> Tensor:
        with seeded(derive_seed(seed, name), device):
            return make()

    return take


def of_group(name: str, make: Make, device: torch.device) -> Tensor:
    """What ``make`` draws for a group of parameters."""
    common = _RUNNING.now()
    return make() if common is None or common.die is None else of_seed(common.die)(f"group {name}", make, device)


def of_layer(count: int, make: Make, device: torch.device) -> Tensor:
    """What ``make`` draws for the outputs of a layer, as many as there are."""
    common = _RUNNING.now()
    if common is None or common.layer is None:
        return make()
    common.asked += 1
    return common.layer(f"numbers {common.asked} of {count} outputs", make, device)


def layer_of(name: str) -> str:
    """The name of the weight that a bias belongs to by its own name, as torch gives it; of others, itself."""
    module, dot, tensor = name.rpartition(".")
    return module + dot + tensor.replace("bias", "weight")
