"""Steps along the draws of seeds: each process evaluates its own, and numbers alone travel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import weightnoise as wn
from tests.torch.distributed_worker_common import RANKS, assert_all_close, assert_ranks_agree, loss_of, weights

STD, RATE, EACH, GENERATIONS = 0.1, 0.05, 4, 3


def noisy_model(width: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width))
    return wn.add_weight_noise(model, STD)


def batch() -> Tensor:
    return torch.linspace(-1, 1, 20).reshape(5, 4)


def losses(model: nn.Module, seeds: range) -> list[float]:
    """Those of each draw and of its mirror."""
    found = []
    for seed in seeds:
        for sign in (1, -1):
            with torch.no_grad(), wn.hold_noise(model, seed=seed, sign=sign):
                found.append(loss_of(model, batch()).item())
    return found


def update(model: nn.Module, found: list[float], first: int) -> None:
    for place, (plus, minus) in enumerate(zip(found[::2], found[1::2], strict=True)):
        wn.step_along(model, first + place, -RATE * (plus - minus) / (len(found) * STD**2))


@contextmanager
def counted() -> Iterator[list[int]]:
    """How many numbers each collective sends from here; every other way to talk is an error."""
    sent: list[int] = []

    def gather(into: Tensor, own: Tensor, *args: Any, **options: Any) -> Any:
        sent.append(own.numel())
        return all_gather(into, own, *args, **options)

    def refused(*args: Any, **options: Any) -> Any:
        raise AssertionError("Nothing but the losses is to travel.")

    all_gather = dist.all_gather_into_tensor
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_gather_into_tensor", gather)
        for name in ("all_reduce", "broadcast", "all_gather", "send", "reduce", "scatter", "all_gather_object"):
            patch.setattr(dist, name, refused)
        yield sent


def train(width: int) -> tuple[nn.Module, list[int]]:
    model = noisy_model(width)
    with counted() as sent:
        for generation in range(GENERATIONS):
            first = generation * RANKS * EACH
            mine = first + dist.get_rank() * EACH
            own = torch.tensor(losses(model, range(mine, mine + EACH)), dtype=torch.float64)
            everyone = torch.empty(RANKS * len(own), dtype=torch.float64)
            dist.all_gather_into_tensor(everyone, own)
            update(model, everyone.tolist(), first)
    return model, sent


def check_evolution_strategies_send_one_number_for_each_loss() -> None:
    for width in (8, 64):
        model, sent = train(width)
        assert sent == [2 * EACH] * GENERATIONS
        assert_ranks_agree(weights(model))
        single = noisy_model(width)
        for generation in range(GENERATIONS):
            first = generation * RANKS * EACH
            update(single, losses(single, range(first, first + RANKS * EACH)), first)
        assert_all_close(weights(model), weights(single), rtol=0, atol=0)


def check_it_trains() -> None:
    model, _ = train(64)
    with torch.no_grad(), wn.no_noise(model):
        after = loss_of(model, batch())
    start = noisy_model(64)
    with torch.no_grad(), wn.no_noise(start):
        assert after < loss_of(start, batch())
