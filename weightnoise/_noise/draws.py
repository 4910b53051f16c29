"""The forms of a draw, the random part of a noisy weight: the one file that tells them apart.

- What ``law.draw`` has returned: numbers, or whatever the law takes for them.
- A `Key`, of which the numbers of a large weight are a function: they are made while they are added.
- A `Seed`, from which the law draws the same again whenever it has to: ``memory="recompute"``.
- `PER_EXAMPLE`: none, as the reads are clean and the noise goes on the output of the layer.

A draw is fresh, or that of a chip (`PENDING` until its weight has numbers), or held by a context (`HeldDraw`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from weightnoise._random import seeds as _seeds
from weightnoise._torch.autograd import CleanRow
from weightnoise._torch.modes import runs_eagerly
from weightnoise.laws._law import apply_law

if TYPE_CHECKING:
    from weightnoise._noise.weight_noise import WeightNoise

PER_EXAMPLE = "per example"
PENDING = "pending"


class Key(tuple[Any]):
    """One number of 64 bits; on a GPU a tensor there, which a CUDA graph draws anew at every replay.

    A tuple, since Python makes one without calling a function of ours.
    """

    __slots__ = ()


class Seed(int):
    """63 bits for torch's generator."""


def moved(draw: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """A frozen draw on the device to which ``fn`` moves tensors; its dtype and its numbers stay."""
    if isinstance(draw, tuple):
        return tuple(moved(part, fn) for part in draw)
    return draw.to(fn(draw.new_empty(0)).device) if isinstance(draw, Tensor) else draw


def is_pending(chip_draw: Any) -> bool:
    """Whether the draw of a chip waits for a weight that has numbers."""
    return isinstance(chip_draw, str)


def is_keyed(draw: Any) -> bool:
    """Whether the numbers are made while they are added, so that a graph keeps nothing of them."""
    return type(draw) is Key


def bare(draw: Any) -> Any:
    """The number of a key; any other draw as it is."""
    return draw[0] if type(draw) is Key else draw


def apply_draw(noise: WeightNoise, weight: Tensor, draw: Any, factor: float, spent: bool = False) -> Tensor:
    """The noisy weight that the law makes of a draw, with the padding row of an embedding left clean.

    ``spent``: the result may take the memory of the draw, which nobody else has; without a gradient.
    """
    clean, exact = weight, noise.padding_row is not None and noise.handed.gradient != "straight-through"
    if exact:  # No gradient by way of statistics of the weight: the row is a constant of the law.
        weight = CleanRow.apply(weight, weight.detach(), noise.padding_row, True)  # type: ignore[no-untyped-call]
    if type(draw) is Key:
        noisy: Tensor = noise.handed.apply_key(weight, draw[0], factor)
    else:
        if type(draw) is Seed:
            draw = noise.seeded_draw(weight, draw)
        if noise.strength_names:
            noisy = apply_law(noise.handed, weight, draw, factor, noise.strengths())
        else:
            noisy = (noise.handed.apply_over if spent else noise.handed.apply)(weight, draw, factor)
        if noisy.dtype is not weight.dtype:  # The weight was converted within a hold.
            noisy = noisy.to(weight.dtype)
    if noise.padding_row is not None:
        own = clean if exact else clean.detach()
        noisy = CleanRow.apply(noisy, own, noise.padding_row, exact)  # type: ignore[no-untyped-call]
    if noise.attributes and not runs_eagerly():  # Else the read hands them on.
        carry(noise.attributes, clean, noisy)
    return noisy


def carry(names: Iterable[str], weight: Tensor, noisy: Tensor) -> None:
    """Give a noisy weight the attributes that code has hung on the Parameter."""
    for name in names if type(noisy) is Tensor else ():
        if noisy is not weight and hasattr(weight, name):
            setattr(noisy, name, getattr(weight, name))


def drawing_alone() -> AbstractContextManager[Any]:
    """One thread at a time makes a draw that is kept. Dynamo cannot trace a lock."""
    # The one that seeded draws wait for: with another one, two threads could each have what the other waits for.
    return nullcontext() if torch.compiler.is_compiling() else _seeds.SEEDING


@contextmanager
def drawing_apart(numbers: AbstractContextManager[None]) -> Iterator[None]:
    """Draw without a gradient, from the generator that ``numbers`` sets, what can be used with gradients later."""
    # A tensor that is made in inference mode could not.
    inference = not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
    normal = torch.inference_mode(False) if inference else nullcontext()
    with normal, numbers, torch.no_grad():
        yield
