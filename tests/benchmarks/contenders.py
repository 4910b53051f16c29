"""Ways to train with Gaussian noise on every matrix, each as a function that makes one step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parametrize

import weightnoise as wn
from tests.benchmarks.workloads import Workload

Step: TypeAlias = Callable[[], None]
Contender: TypeAlias = Callable[[Workload, nn.Module, float], Step]


def plain_step(workload: Workload, model: nn.Module, forward: Callable[[Tensor], Tensor] | None = None) -> Step:
    """Forward, backward, optimizer, zero_grad; or a forward alone."""
    x, y = workload.batch()
    call = model if forward is None else forward
    optimizer = workload.optimizer(model.parameters())

    def train() -> None:
        F.cross_entropy(call(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def evaluate() -> None:
        call(x)

    return train if workload.trains else evaluate


def plain(workload: Workload, model: nn.Module, std: float) -> Step:
    """No noise."""
    return plain_step(workload, model)


def ours_on(workload: Workload, model: nn.Module, std: float) -> Step:
    """weightnoise."""
    return plain_step(workload, wn.add_weight_noise(model, std))


def ours_recomputed(workload: Workload, model: nn.Module, std: float) -> Step:
    """weightnoise, with the noisy weights made again in the backward."""
    return plain_step(workload, wn.add_weight_noise(model, std, memory="recompute"))


def ours_off(workload: Workload, model: nn.Module, std: float) -> Step:
    """weightnoise, switched off for all steps."""
    wn.no_noise(wn.add_weight_noise(model, std)).__enter__()
    return plain_step(workload, model)


def ours_removed(workload: Workload, model: nn.Module, std: float) -> Step:
    """weightnoise, added and removed before."""
    return plain_step(workload, wn.remove_weight_noise(wn.add_weight_noise(model, std)))


def with_noise(state: Mapping[str, Tensor], std: float) -> dict[str, Tensor]:
    """A state_dict with noise on every matrix."""
    return {
        name: value + std * torch.randn_like(value) if value.ndim >= 2 else value for name, value in state.items()
    }


def copy_and_restore(workload: Workload, model: nn.Module, std: float) -> Step:
    """Load a noisy state_dict, run forward and backward, load the clean one, step."""
    x, y = workload.batch()
    optimizer = workload.optimizer(model.parameters())

    def step() -> None:
        clean = copy.deepcopy(model.state_dict())
        model.load_state_dict(with_noise(clean, std))
        if workload.trains:
            F.cross_entropy(model(x), y).backward()
        else:
            with torch.no_grad():
                model(x)
        model.load_state_dict(clean)
        if workload.trains:
            optimizer.step()
            optimizer.zero_grad()

    return step


def data_add_and_restore(workload: Workload, model: nn.Module, std: float) -> Step:
    """Add noise to ``.data``, run forward and backward, copy the clean values back, step."""
    x, y = workload.batch()
    optimizer = workload.optimizer(model.parameters())
    matrices = [p for p in model.parameters() if p.ndim >= 2]

    def step() -> None:
        clean = [p.data.clone() for p in matrices]
        for p in matrices:
            p.data.add_(torch.randn_like(p), alpha=std)
        if workload.trains:
            F.cross_entropy(model(x), y).backward()
        else:
            with torch.no_grad():
                model(x)
        for p, value in zip(matrices, clean, strict=True):
            p.data.copy_(value)
        if workload.trains:
            optimizer.step()
            optimizer.zero_grad()

    return step


class NaiveNoise(nn.Module):
    """What one writes by hand on `torch.nn.utils.parametrize`."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.std * torch.randn_like(weight)


class StoredNoise(nn.Module):
    """The same with numbers from a stored table: what is left when random numbers are free."""

    def __init__(self, std: float, table: Tensor) -> None:
        super().__init__()
        self.std, self.table = std, [table]

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.std * self.table[0][: weight.numel()].view_as(weight)


def _register(model: nn.Module, make: Callable[[], nn.Module]) -> None:
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.ndim >= 2:
                parametrize.register_parametrization(module, name, make())


def naive(model: nn.Module, std: float) -> nn.Module:
    """The model, with what one writes by hand on every matrix."""
    _register(model, lambda: NaiveNoise(std))
    return model


def naive_parametrization(workload: Workload, model: nn.Module, std: float) -> Step:
    """A dozen lines on torch's parametrize."""
    return plain_step(workload, naive(model, std))


def free_random_numbers(workload: Workload, model: nn.Module, std: float) -> Step:
    """torch's parametrize with stored random numbers."""
    table = torch.randn(max(p.numel() for p in model.parameters()))
    _register(model, lambda: StoredNoise(std, table))
    return plain_step(workload, model)


def functional(workload: Workload, model: nn.Module, std: float) -> Step:
    """`torch.func.functional_call` on weights plus noise."""
    matrices = {name: p for name, p in model.named_parameters() if p.ndim >= 2}

    def forward(x: Tensor) -> Tensor:
        noisy = {name: p + std * torch.randn_like(p) for name, p in matrices.items()}
        output: Tensor = functional_call(model, noisy, (x,))
        return output

    return plain_step(workload, model, forward)


CONTENDERS: dict[str, Contender] = {
    "plain": plain,
    "weightnoise on": ours_on,
    "weightnoise, recompute": ours_recomputed,
    "weightnoise off": ours_off,
    "weightnoise removed": ours_removed,
    "copy and restore": copy_and_restore,
    ".data add and restore": data_add_and_restore,
    "naive parametrization": naive_parametrization,
    "functional_call": functional,
    "free random numbers": free_random_numbers,
}
