"""The parts of a weight that have a scale, a range or a step each: tensor, channels, tiles of a crossbar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from weightnoise._checks import check_count
from weightnoise._errors import OptionError
from weightnoise._torch.layers import Layout

Per: TypeAlias = "Literal['tensor', 'output', 'input'] | int | Regions"
Tile: TypeAlias = "tuple[int, int] | None"
LawT = TypeVar("LawT")

_NAMED = ("output", "input")


@dataclass(frozen=True)
class Regions:
    """Tiles of the matrix W in y = W x, or channels that are no dimension of the tensor.

    Attributes:
        per: ``"tensor"``, ``"output"`` or ``"input"``: within a tile, what has a statistic of its own.
        tile: rows and columns of a tile, or None for the whole matrix.
        layout: where the tensor has its outputs and its inputs; None where nobody has said.
    """

    per: Literal["tensor", "output", "input"]
    tile: Tile
    layout: Layout | None = None

    def __repr__(self) -> str:
        return repr(self.per) if self.tile is None else f"{self.per!r}, tile={self.tile}"


def check_tile(law: str, tile: object, per: object) -> None:
    """Raise `OptionError` unless ``tile`` is None or the rows and the columns of a tile."""
    if tile is None:
        return
    if not isinstance(tile, (tuple, list)) or len(tile) != 2:
        raise OptionError(f"{law}(tile=...) must be (rows, columns), such as (512, 512), or None, got {tile!r}.")
    for size in tile:
        check_count(law, "tile", size, 1)
    if isinstance(per, int) or per == "element":
        raise OptionError(
            f"{law}(tile={tuple(tile)!r}, per={per!r}): a tile is cut out of outputs and inputs. Give "
            "per='output' or per='input' with it, or 'tensor' for one scale in each tile."
        )


def regions_of(law: Any) -> Per:
    """``per`` and ``tile`` of a law as one."""
    tile, per = law.tile, law.per
    if tile is None and per not in _NAMED:
        named: Per = per
        return named
    return Regions(per, None if tile is None else tuple(tile))


def laid_out(law: LawT, layout: Layout | None) -> LawT:
    """The law for a tensor that is stored like this: with a dimension, where one says the same as a name."""
    regions = law.regions  # type: ignore[attr-defined]
    if not isinstance(regions, Regions) or regions.layout is not None or layout is None:
        return law
    per: Per = Regions(regions.per, regions.tile, layout)
    if regions.tile is None:
        own = layout.output if regions.per == "output" else layout.input
        if own is not None and (layout.groups == 1 or own == 0):  # Groups lie one after the other in dimension 0.
            per = own
    options = {"per": per, "tile": None} if any(one.name == "tile" for one in fields(law)) else {"per": per}  # type: ignore[arg-type]
    return replace(law, **options)  # type: ignore[type-var]


def layout_note(law: Any, layout: Layout | None) -> str | None:
    """Where ``per`` of a law is another dimension than it is in most layers, which store outputs before inputs."""
    per = law.per
    if layout is None or (layout.output, layout.input) != (1, 0):
        return None
    if per in _NAMED and law.tile is None:
        return f"per={per!r} is dimension {1 if per == 'output' else 0}"
    if per in (0, 1) and not isinstance(per, bool):
        return f"per={per} is the {'inputs' if per == 0 else 'outputs'}"
    return None


def regions_problem(regions: Any, weight: Tensor) -> str | None:
    """Why these regions do not fit ``weight``, or None."""
    if not isinstance(regions, Regions):
        if regions in ("tensor", "element") or -weight.ndim <= regions < weight.ndim:
            return None
        return f"per={regions} names a dimension that a tensor of shape {tuple(weight.shape)} does not have"
    layout, (rows, columns) = regions.layout, regions.tile or (1, 1)
    if layout is None:
        if regions.per == "tensor" and rows == columns and weight.ndim <= 2:
            return None  # The tiles of a matrix and of its transpose are the same.
        what = f"per={regions.per!r}" if regions.per in _NAMED else f"tile={regions.tile}"
        return (
            f"{what} needs a layer whose layout is known (Linear, Conv, Embedding, recurrent, MultiheadAttention, "
            "Bilinear, or GPT-2's Conv1D), and there it is not. Give the dimension: per=0, say"
        )
    if regions.per in _NAMED and getattr(layout, regions.per) is None:
        return f"per={regions.per!r}: it has no single dimension of {regions.per}s"
    kernel = _canonical(weight, layout)[0, 0, 0].numel() if weight.numel() else 1
    if regions.per == "input" and regions.tile and kernel > 1:
        return "per='input' with tile: a column of the unrolled matrix is one place of a kernel. Use per='output'"
    return None


def regional(weight: Tensor, regions: Regions, reduce: Callable[[Tensor, tuple[int, ...]], Tensor]) -> Tensor:
    """What ``reduce(part, dims)`` makes of each region, at every place of the weight.

    Args:
        weight: a tensor with elements.
        regions: its parts.
        reduce: keeps the dimensions that it reduces.
    """
    layout = regions.layout
    if layout is None:
        if problem := regions_problem(regions, weight):
            raise OptionError(f"{problem}.")
        layout = Layout(0 if weight.ndim else None, 1 if weight.ndim > 1 else None)
    parts = _canonical(weight, layout)
    if regions.tile is None:
        kept = 1 if regions.per == "output" else 2
        made = reduce(parts, tuple(dim for dim in (1, 2, 3) if dim != kept))
        return _stored(made.expand(parts.shape), weight, layout)
    rows, columns = regions.tile
    dims = {"tensor": (2, 4), "output": (4,), "input": (2,)}[regions.per]
    strips = []
    for strip in _cut(parts.flatten(2), 1, rows):
        blocks = _cut(strip, 3, columns)
        made_of = [reduce(block, dims).expand(block.shape).flatten(3) for block in blocks]
        strips.append(torch.cat(made_of, dim=3).flatten(1, 2))
    return _stored(torch.cat(strips, dim=1).reshape(parts.shape), weight, layout)


def _order(layout: Layout, ndim: int) -> list[int]:
    """The dimensions of the weight in the order outputs, inputs, kernel; -1 for one that it does not have."""
    named = [-1 if dim is None else dim for dim in (layout.output, layout.input)]
    return named + [dim for dim in range(ndim) if dim not in named]


def _canonical(weight: Tensor, layout: Layout) -> Tensor:
    """A view or a copy of the weight as (groups, outputs, inputs, kernel)."""
    grouped = weight.reshape(1) if weight.ndim == 0 else weight.reshape(layout.groups, -1, *weight.shape[1:])
    order = _order(layout, weight.ndim)
    for missing in (place for place, dim in enumerate(order) if dim == -1):
        grouped = grouped.unsqueeze(-1)
        order[missing] = grouped.ndim - 2
    sizes = [grouped.shape[dim + 1] for dim in order]
    return grouped.permute(0, *[dim + 1 for dim in order]).reshape(layout.groups, *sizes[:2], -1)


def _stored(parts: Tensor, weight: Tensor, layout: Layout) -> Tensor:
    """What `_canonical` has arranged, in the shape of the weight."""
    order = _order(layout, weight.ndim)
    there = [dim for dim in order if dim != -1]
    inside = [weight.shape[dim] // (layout.groups if dim == 0 else 1) for dim in there]
    back = [there.index(dim) + 1 for dim in range(weight.ndim)]
    return parts.reshape(layout.groups, *inside).permute(0, *back).reshape(weight.shape)


def _cut(tensor: Tensor, dim: int, size: int) -> list[Tensor]:
    """Dimension ``dim`` in two, as tiles and places in a tile: the whole tiles, and the smaller one at the end."""
    length = tensor.shape[dim]
    whole = length - length % size
    cut = [(0, whole, size)] * (whole > 0) + [(whole, length - whole, length - whole)] * (whole < length)
    before, after = tensor.shape[:dim], tensor.shape[dim + 1 :]
    return [
        tensor.narrow(dim, start, count).reshape(*before, count // each, each, *after)
        for start, count, each in cut
    ]
