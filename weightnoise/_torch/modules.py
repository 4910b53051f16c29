"""Walking a model: every module once, with the names it goes by; and putting back what a look may change."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

ACTIVATION_NOISE = "activation_noise"  # The name of the submodule with what noise on activations has learned.
MOST_NAMES = 1000  # Of one module. Modules that are shared level by level have exponentially many.


class ActivationStates(nn.ModuleDict):
    """What noise on the activations of a module has learned, by the side that it is on."""

    def count(self) -> None:
        """Let each side read its buffers again."""
        for state in self.values():
            state.count()  # type: ignore[operator]


@dataclass(eq=False)
class Node:
    """A module of the model, and the prefixes under which the model reaches it: `MOST_NAMES` of them at most."""

    module: nn.Module
    prefixes: list[str] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        """The full names of the module; "" for the model itself."""
        return tuple(prefix.removesuffix(".") for prefix in self.prefixes)

    @property
    def owner(self) -> nn.Module:
        """The module."""
        return self.module


def children(module: nn.Module) -> dict[str, nn.Module]:
    """The direct submodules, by name.

    Read from the instance: wrappers with a delegating ``__getattr__`` show attributes that are
    not their own.
    """
    return {name: child for name, child in module.__dict__["_modules"].items() if child is not None}


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside a `torch.compile` wrapper, or the model itself."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    while dynamo is not None and isinstance(model, dynamo.OptimizedModule):
        model = children(model)["_orig_mod"]
    return model


def distributed_wrapper(model: nn.Module) -> str | None:
    """The class of a wrapper around a part of ``model`` that keeps a list of the Parameters it synchronises."""
    ddp, fsdp = sys.modules.get("torch.nn.parallel.distributed"), sys.modules.get("torch.distributed.fsdp")
    kinds = [getattr(ddp, "DistributedDataParallel", None), getattr(fsdp, "FSDPModule", None)]
    wrappers = tuple(kind for kind in kinds if kind is not None)
    return next((type(module).__name__ for module in model.modules() if isinstance(module, wrappers)), None)


def is_fully_sharded(owner: nn.Module) -> bool:
    """Whether `fully_shard` makes the parameters of ``owner`` whole for its forward."""
    return bool(owner.__dict__.get("_is_fsdp_managed_module", False))


def is_replica(module: nn.Module) -> bool:
    """Whether DataParallel has made a module for one forward."""
    return bool(getattr(module, "_is_replica", False))


def flattened(model: nn.Module) -> set[nn.Module]:
    """The modules whose parameters `FullyShardedDataParallel` keeps in one flat tensor."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", None)
    wrappers = (module for module in model.modules() if kind is not None and isinstance(module, kind))
    return {inside for wrapper in wrappers for inside in wrapper.modules()}


def is_dtensor(weight: object) -> bool:
    """Whether it is a tensor over several processes."""
    # By its interface: importing torch.distributed.tensor takes long, and its place has moved.
    return hasattr(weight, "device_mesh") and hasattr(weight, "placements")


def empties(function: Callable[..., object]) -> bool:
    """Whether a function that modules apply to their tensors is that of `nn.Module.to_empty`."""
    return getattr(function, "__code__", None) in nn.Module.to_empty.__code__.co_consts


def parametrizations(module: nn.Module) -> dict[str, nn.Module]:
    """The parametrization lists that torch has registered on ``module``, by tensor name."""
    holder = children(module).get("parametrizations")
    return children(holder) if isinstance(holder, nn.ModuleDict) else {}


def walk(model: nn.Module, most_names: int = MOST_NAMES) -> list[Node]:
    """Every module once, in the order of `nn.Module.modules`, without the parametrizations.

    What noise has learned on activations is left out too.
    A model of d levels that each hold the next one twice has 2^d names for the last. So a module is looked
    into once for each of its first ``most_names`` names, and no further: the time is linear in the modules.
    """
    nodes: dict[int, Node] = {}
    _visit(unwrap(model), "", nodes, most_names)
    return list(nodes.values())


def _visit(
    module: nn.Module, prefix: str, nodes: dict[int, Node], most: int, path: tuple[nn.Module, ...] = ()
) -> None:
    node = nodes.setdefault(id(module), Node(module))
    if len(node.prefixes) >= most:
        return
    node.prefixes.append(prefix)
    for name, child in children(module).items():
        ours = isinstance(child, ActivationStates)
        if (name != "parametrizations" or not parametrizations(module)) and not ours and child not in path:
            _visit(child, f"{prefix}{name}.", nodes, most, (*path, module))


def forward_of(model: Any, batch: Any) -> Any:
    """The outputs for a batch: a tensor, a mapping by name, or the first item of what a loader gives."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (list, tuple)) and batch:
        return forward_of(model, batch[0])
    return model(batch)


@contextmanager
def state_kept(model: nn.Module) -> Iterator[None]:
    """Put training modes and buffers back, such as the statistics of a batch normalisation."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for module in model.modules():
            if isinstance(module, ActivationStates):
                module.count()
