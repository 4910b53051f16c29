"""Where rare events happen, at a cost that grows with their number and not with that of the places.

All of it is a function of a key, so that nothing has to be kept. Of one key the events of a lower rate are among
those of a higher one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from weightnoise._random import philox as _engine
from weightnoise._random import seeds as _seeds

_SHUFFLED = 2**16  # Up to so many places, all of them are put in an order.
_BATCH = 4096


def event_places(key: int, size: int, base: float, rate: float) -> Tensor:
    """The places, of ``size``, where an event of probability ``rate`` happens, independently at each.

    Args:
        key: that they are a function of.
        size: how many places there are.
        base: the probability that makes the first layer of events; the others come in layers on top, of which
            each doubles it.
        rate: the probability.
    """
    found = _layer(_seeds.derive_seed(key, "0"), size, base, rate / base if base else 0.0)
    low, layer = base, 0
    while low < rate:
        high, layer = min(2 * low, 1.0), layer + 1
        share = (rate - low) / (high - low)
        more = _layer(_seeds.derive_seed(key, str(layer)), size, (high - low) / (1 - low), share)
        found = torch.cat((found, more[~torch.isin(more, found)]))
        low = high
    return found


def first_places(key: int, size: int, count: int) -> Tensor:
    """The first ``count`` of all places in a random order."""
    if size <= _SHUFFLED:
        return _uniform(key, size).argsort()[:count]
    drawn = found = torch.empty(0, dtype=torch.int64, device="cpu")
    batch = 0
    while len(found) < count:
        for _ in range(max(1, (count - len(found)) // _BATCH)):
            new = (_uniform(_seeds.derive_seed(key, str(batch)), _BATCH) * size).long().clamp(max=size - 1)
            drawn, batch = torch.cat((drawn, new)), batch + 1
        values, order = torch.sort(drawn, stable=True)
        first = torch.ones_like(values, dtype=torch.bool)
        first[1:] = values[1:] != values[:-1]
        found = drawn[order[first].sort().values]
    return found[:count]


def _layer(key: int, size: int, rate: float, share: float) -> Tensor:
    """Places of independent events, each kept with probability ``share``: their gaps are geometric."""
    if rate >= 1:
        found = torch.arange(size, dtype=torch.int64, device="cpu")
    elif rate <= 0 or size == 0:
        return torch.empty(0, dtype=torch.int64, device="cpu")
    else:
        found = _gaps(key, size, rate)
    if share >= 1:
        return found
    return found[_uniform(_seeds.derive_seed(key, "kept"), len(found)) < share]


def _gaps(key: int, size: int, rate: float) -> Tensor:
    scale, parts, last, block = 1.0 / math.log1p(-rate), [], -1.0, 0
    while last < size:
        expected = (size - last) * rate
        count = int(expected + 6 * math.sqrt(expected)) + 16
        uniform = _uniform(key if block == 0 else _seeds.derive_seed(key, f"block {block}"), count)
        gaps = torch.rsub(uniform, 1.0).log_().mul_(scale).floor_().add_(1.0)
        ends = gaps.cumsum_(0).add_(last)
        parts.append(ends)
        last, block = float(ends[-1]), block + 1
    places = parts[0] if len(parts) == 1 else torch.cat(parts)
    return places[: int(torch.searchsorted(places, float(size)))].long()


def _uniform(key: int, count: int) -> Tensor:
    """Float64 numbers uniform on [0, 1), of 48 bits or more, on the CPU."""
    if _engine._LIBRARY is not None and count:
        high, low = _engine._filled(key, (2, count), True).double()
        uniform: Tensor = high.add_(low, alpha=2.0**-24)
        return uniform
    with _seeds.seeded(key, torch.device("cpu")):
        return torch.rand(count, dtype=torch.float64, device="cpu")
