"""Two processes average their gradients whether noise came before or after; checkpoint names are plain."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel

import weightnoise as wn

WORLD = 2


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters()]


def train_on_a_rank(rank: int, before: bool, same_seed: bool, law: Any, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    init = f"file://{folder}/store"
    dist.init_process_group("gloo", init, rank=rank, world_size=WORLD, timeout=timedelta(seconds=200))
    model = make()
    if before:
        wn.add_weight_noise(model, law)
    wrapped = DistributedDataParallel(model)
    if not before:
        wn.add_weight_noise(wrapped, law)
    torch.manual_seed(5 if same_seed else 5 + rank)
    output = wrapped(torch.ones(1, 3))
    output.square().sum().backward()
    torch.save((output.detach(), gradients(model)), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("before", "same_seed", "law"),
    [
        pytest.param(True, True, 0.3, marks=pytest.mark.quick),
        (False, True, 0.3),
        (False, False, 0.3),
        (True, False, wn.LearnedGaussian(0.3)),
    ],
)
def test_gradients_are_averaged_over_the_ranks(before: bool, same_seed: bool, law: Any, tmp_path: Path) -> None:
    mp.spawn(train_on_a_rank, args=(before, same_seed, law, str(tmp_path)), nprocs=WORLD)  # type: ignore[attr-defined]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]
    assert torch.equal(found[0][0], found[1][0]) is same_seed  # Equal seeds draw equal noise.
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
    expected = []
    for rank in range(WORLD):
        model = wn.add_weight_noise(make(), law)
        torch.manual_seed(5 if same_seed else 5 + rank)
        model(torch.ones(1, 3)).square().sum().backward()
        expected.append(gradients(model))
    for mean, first, second in zip(found[0][1], *expected, strict=True):
        torch.testing.assert_close(mean, (first + second) / 2)


def test_distributed_checkpoints_have_the_names_of_the_plain_model() -> None:
    states: list[Any] = []
    for noisy in (False, True):
        model = wn.add_weight_noise(make(), 0.1) if noisy else make()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        states.append(get_state_dict(model, optimizer))
    (plain_model, plain_optimizer), (noisy_model, noisy_optimizer) = states
    assert list(noisy_model) == list(plain_model)
    assert list(noisy_optimizer["state"]) == list(plain_optimizer["state"])
    assert noisy_optimizer["param_groups"][0]["params"] == plain_optimizer["param_groups"][0]["params"]
    fresh = make()
    set_state_dict(
        fresh,
        torch.optim.Adam(fresh.parameters(), lr=0.1),
        model_state_dict=noisy_model,
        optim_state_dict=noisy_optimizer,
    )
    assert all(torch.equal(p, noisy_model[name]) for name, p in fresh.named_parameters())


def test_learned_strengths_come_before_the_wrapper() -> None:
    store = torch._C._distributed_c10d.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = DistributedDataParallel(make())
        with pytest.raises(wn.UnsupportedParameterError, match="Add the noise before the model is wrapped"):
            wn.add_weight_noise(model, [wn.Clip(), wn.LearnedGaussian()])
        assert not wn.has_weight_noise(model)
        wn.add_weight_noise(model, 0.1)
    finally:
        dist.destroy_process_group()
