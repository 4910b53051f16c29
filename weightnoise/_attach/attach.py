"""Putting noise on the parameters of one module, and taking it off again.

torch registers the noise, but the Parameter stays where it is, in ``owner._parameters``: torch
would move it into the parametrization, which renames it, reorders it, and so breaks checkpoints,
optimizer states matched by index, and more. This file and `noisy_class.py` alone know
`torch.nn.utils.parametrize`.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from weightnoise._attach.find import module_noise
from weightnoise._attach.module_noise import InstanceForward, ModuleNoise, own_noises
from weightnoise._attach.noisy_class import clean_class, noisy_class, set_class
from weightnoise._attach.stack import InPlaceList, Stacks
from weightnoise._noise.weight_noise import WeightNoise
from weightnoise._torch.modules import children, parametrizations


def attach(owner: nn.Module, noises: Mapping[str, WeightNoise]) -> None:
    """Register each noise on the tensor of its name; on any failure leave ``owner`` as it was."""
    stacked = parametrizations(owner)
    stock_class = type(owner)
    base: Any = _base(stock_class) if stacked else clean_class(stock_class)
    parameters, modules = dict(owner._parameters), dict(owner._modules)
    try:
        noisy = noisy_class(base, tuple(dict.fromkeys([*stacked, *noises])))
        if stacked:
            # torch edits the class of a module that it has parametrized before; give it one to edit.
            set_class(owner, type(base)("Scratch", (base,), {}))
        else:
            # A wrapper with a delegating __getattr__ would show torch the parametrizations of its inner module.
            owner._modules["parametrizations"] = nn.ModuleDict()
        for name, noise in noises.items():
            _register(owner, name, noise)
        _refill(owner._parameters, parameters)
        stacks = owner.__dict__["_modules"]["parametrizations"]
        stacks.__class__ = Stacks
        holder = stacks.__dict__
        frames = next(iter(noises.values())).frames
        if "module_noise" not in holder:
            holder["module_noise"] = ModuleNoise(frames, [], stock_class if stacked else None)
            holder["module_noise"].stock_names = set(stacked)
        found = holder["module_noise"]
        found.owner = weakref.ref(owner)
        found.noises += noises.values()
        for noise in noises.values():
            noise.owner = found.owner
        made_by_torch = type(owner)
        set_class(owner, noisy)
        for name in _properties(made_by_torch):
            # They hold on to the owner, and a class is freed by the cycle collector alone.
            delattr(made_by_torch, name)
        forward = vars(owner).get("forward")
        if forward is not None and not isinstance(forward, InstanceForward):
            vars(owner)["forward"] = InstanceForward(forward, found)
    except BaseException:
        set_class(owner, stock_class)
        _refill(owner._parameters, parameters)
        _refill(owner._modules, modules)
        for name, noise in noises.items():
            _take_out(owner, name, noise)
        raise


def detach(owner: nn.Module, noises: Mapping[str, WeightNoise]) -> None:
    """Take these noises off ``owner`` and leave what else is registered on it."""
    found = module_noise(owner)  # None where torch transferred the noise here from another module.
    noisy = type(owner)
    try:
        _detach(owner, noises, found, noisy)
    except BaseException:
        # Interrupted half-way: what is half off is neither noisy nor plain. Each step may be done twice.
        _detach(owner, noises, found, noisy)
        raise


def _detach(
    owner: nn.Module, noises: Mapping[str, WeightNoise], found: ModuleNoise | None, noisy: type[nn.Module]
) -> None:
    for name, noise in noises.items():
        _take_out(owner, name, noise)
        noise.control.remove(noise.name)
    left = [noise for _, noise in own_noises(owner)]
    rest = parametrizations(owner)
    base = _base(noisy)
    if found is not None and left:
        found.noises = left
        set_class(owner, noisy_class(base, tuple(rest)))
        return
    forward = vars(owner).get("forward")
    if isinstance(forward, InstanceForward):
        vars(owner)["forward"] = forward.inner
    if not rest:
        owner._modules.pop("parametrizations", None)
        set_class(owner, base)
        return
    holder = owner.__dict__["_modules"]["parametrizations"]
    holder.__class__ = nn.ModuleDict
    holder.__dict__.pop("module_noise", None)
    if (
        found is not None
        and found.stock_class is not None
        and "_clean_class" in vars(noisy)  # Else fully_shard has put a class of its own on top since.
        and rest.keys() == found.stock_names
    ):
        set_class(owner, found.stock_class)
    else:
        set_class(owner, base)
        parametrize._inject_new_class(owner)
        for name in rest:
            parametrize._inject_property(owner, name)


def _register(owner: nn.Module, name: str, noise: WeightNoise) -> None:
    if name not in owner._parameters:
        before: Any = parametrizations(owner)[name]
        unsafe = before.unsafe
        parametrize.register_parametrization(owner, name, noise, unsafe=True)
        before.unsafe = unsafe
        return
    # torch takes this placeholder out of the owner, sets it in place, and keeps it as the original.
    owner._parameters[name] = nn.Parameter(torch.empty(0, dtype=torch.float32, device="cpu"), requires_grad=False)
    parametrize.register_parametrization(owner, name, noise, unsafe=True)
    stack: Any = parametrizations(owner)[name]
    del stack._parameters["original"]
    stack.__class__ = InPlaceList
    stack.tensor_name = name
    stack.owner = weakref.ref(owner)
    stack.__dict__["only_noise"] = noise  # Past nn.Module.__setattr__, which would make it a submodule twice.


def _take_out(owner: nn.Module, name: str, noise: WeightNoise) -> None:
    stack: Any = parametrizations(owner).get(name)
    if stack is None:
        return
    parts = list(children(stack).values())
    if noise in parts:
        del stack[parts.index(noise)]
    if len(stack) == 0:
        if not isinstance(stack, InPlaceList):
            owner._parameters[name] = stack.original
        del owner._modules["parametrizations"]._modules[name]  # type: ignore[union-attr]
    elif isinstance(stack, InPlaceList):
        # Somebody stacked a parametrization on the noise: leave what torch would have made of it.
        stack.__class__ = parametrize.ParametrizationList  # type: ignore[assignment]
        del stack.owner, stack.tensor_name, stack.__dict__["only_noise"]
        stack.register_parameter("original", owner._parameters.pop(name))


def _refill(target: dict[str, Any], content: dict[str, Any]) -> None:
    target.clear()
    target.update(content)


def _base(cls: type[nn.Module]) -> Any:
    """The class under the one that noise, or torch for other parametrizations, has made."""
    clean = clean_class(cls)
    return cls.__bases__[0] if clean is cls and len(cls.__bases__) == 1 else clean


def _properties(cls: type) -> set[str]:
    return {name for name, value in vars(cls).items() if isinstance(value, property)}
