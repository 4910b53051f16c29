"""Distributed checkpoints between sharded and whole, noisy and plain models; a run that is resumed."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ExponentialLR

import weightnoise as wn
from tests.torch.distributed_worker_common import (
    GAUSSIAN,
    RANKS,
    assert_all_close,
    batch,
    fully_shard,
    loss_of,
    make,
    own,
    weights,
    whole,
)


@functools.cache
def data_parallel() -> DeviceMesh:
    return init_device_mesh("cpu", (RANKS,))


@contextmanager
def shared_folder() -> Iterator[str]:
    """One temporary folder for all processes."""
    names: list[Any] = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(names)
    try:
        yield names[0]
    finally:
        dist.barrier()
        if dist.get_rank() == 0:
            shutil.rmtree(names[0])


def build(kind: str, spec: Any, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model of another start than `make` gives, where a seed is given, and its optimizer."""
    model: nn.Module = make()
    if seed:
        torch.manual_seed(seed)
        for parameter in model.parameters():
            nn.init.normal_(parameter)
    if spec is not None:
        wn.add_weight_noise(model, spec)
    if kind == "fsdp":
        for place in (0, 2, 4):
            fully_shard(model.get_submodule(str(place)), mesh=data_parallel())
        fully_shard(model, mesh=data_parallel())
    elif kind == "ddp":
        model = DistributedDataParallel(model)
    return model, torch.optim.AdamW(model.parameters(), lr=0.05)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        # Whole models know nothing of one another, and stay equal on the same examples without noise.
        loss_of(model, own() if wn.has_weight_noise(model) else batch(0)).backward()
        optimizer.step()
        optimizer.zero_grad()


def save(model: nn.Module, optimizer: torch.optim.Optimizer, folder: str) -> None:
    with wn.no_noise(
        model
    ):  # get_state_dict reads every weight, and a read draws: it would move the random state.
        states = get_state_dict(model, optimizer)
    dcp_save(dict(zip(("model", "optimizer"), states, strict=True)), checkpoint_id=folder)


def load(model: nn.Module, optimizer: torch.optim.Optimizer, folder: str) -> None:
    with wn.no_noise(model):
        states: dict[str, Any] = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp_load(states, checkpoint_id=folder)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=states["model"],
        optim_state_dict=states["optimizer"],
        options=StateDictOptions(strict=True),
    )


def moments(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    states = [optimizer.state[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    return [whole(state[name]) for state in states for name in ("exp_avg", "exp_avg_sq", "step")]


def check_names_are_those_of_the_plain_model() -> None:
    states = []
    for spec in (GAUSSIAN, None):
        model, optimizer = build("fsdp", spec)
        train(model, optimizer, 1)
        states.append(get_state_dict(model, optimizer))
    (noisy, noisy_optimizer), (plain, plain_optimizer) = states
    assert list(noisy) == list(plain)
    assert list(noisy_optimizer["state"]) == list(plain_optimizer["state"])
    assert noisy_optimizer["param_groups"] == plain_optimizer["param_groups"]


def check_noisy_and_plain_in_every_direction() -> None:
    # DCP leaves out the "module." of DistributedDataParallel, so that all four kinds read one another.
    kinds = [("fsdp", GAUSSIAN), ("fsdp", None), ("ddp", GAUSSIAN), ("whole", None)]
    for source in kinds:
        model, optimizer = build(*source)
        train(model, optimizer, 2)
        expected = weights(model) + moments(optimizer)
        with shared_folder() as folder:
            save(model, optimizer, folder)
            for target in kinds:
                fresh, fresh_optimizer = build(*target, seed=9)
                load(fresh, fresh_optimizer, folder)
                found = weights(fresh) + moments(fresh_optimizer)
                assert_all_close(found, expected, rtol=0, atol=0)


def check_learned_strengths() -> None:
    spec = wn.LearnedGaussian(0.3)
    model, optimizer = build("fsdp", spec)
    train(model, optimizer, 2)
    with shared_folder() as folder:
        save(model, optimizer, folder)
        for kind in ("fsdp", "ddp"):
            fresh, fresh_optimizer = build(kind, spec, seed=9)
            load(fresh, fresh_optimizer, folder)
            assert_all_close(weights(fresh), weights(model), rtol=0, atol=0)
            assert_all_close(moments(fresh_optimizer), moments(optimizer), rtol=0, atol=0)


def run(folder: str, kind: str, until: int, resume: bool) -> list[torch.Tensor]:
    model, optimizer = build(kind, GAUSSIAN)
    rate, noise = ExponentialLR(optimizer, 0.9), wn.NoiseScheduler(model, wn.linear_ramp(6))
    mine = Path(folder, f"{dist.get_rank()}.pt")  # Each rank has random numbers of its own.
    torch.manual_seed(50 + dist.get_rank())
    done = 0
    if resume:
        load(model, optimizer, f"{folder}/3")
        saved = torch.load(mine, weights_only=True)
        rate.load_state_dict(saved["rate"])
        noise.load_state_dict(saved["noise"])
        torch.set_rng_state(saved["random"])
        done = noise.steps
    for _ in range(done, until):
        train(model, optimizer, 1)
        rate.step()
        noise.step()
    save(model, optimizer, f"{folder}/{until}")
    state = {"rate": rate.state_dict(), "noise": noise.state_dict(), "random": torch.get_rng_state()}
    torch.save(state, mine)
    return weights(model)


def check_a_resumed_run_has_the_same_bits() -> None:
    for kind in ("fsdp", "ddp"):
        with shared_folder() as folder:
            uninterrupted = run(folder, kind, 6, resume=False)
        with shared_folder() as folder:
            run(folder, kind, 3, resume=False)
            torch.manual_seed(999)
            resumed = run(folder, kind, 6, resume=True)
        assert_all_close(resumed, uninterrupted, rtol=0, atol=0)
