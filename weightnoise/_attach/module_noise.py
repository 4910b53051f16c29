"""The noise of one module, and the scope of its forward."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from weightnoise._noise.decorating import decorated
from weightnoise._noise.frames import Frames, opens_frame
from weightnoise._noise.memory_recompute import Recomputed, can_recompute
from weightnoise._noise.weight_noise import WeightNoise
from weightnoise._torch.modules import children, parametrizations


class ModuleNoise:
    """The state that one noisy module carries beside its parametrizations.

    Attributes:
        owner: the module; None in a copy until the copied module adopts it.
        frames: what was drawn in the running forwards.
        noises: the noises on the module's own tensors.
        recomputes: whether the backward makes the noisy weight of any of them again.
        on_weight: that on the weight, if there is no other.
        per_example: the one of them that differs from example to example; None for most modules.
        stock_class: the class that torch had made for other parametrizations, put back on removal.
            A copy gets none: torch edits such a class, so two modules must not share it.
        stock_names: the tensors that it was made for.
    """

    def __init__(
        self, frames: Frames, noises: Sequence[WeightNoise], stock_class: type[nn.Module] | None = None
    ) -> None:
        self.owner: weakref.ref[nn.Module] | None = None
        self.frames = frames
        self.noises = list(noises)
        self.stock_class = stock_class
        self.stock_names: set[str] = set()

    @property
    def noises(self) -> list[WeightNoise]:
        """The noises on the module's own tensors."""
        return self._noises

    @noises.setter
    def noises(self, noises: list[WeightNoise]) -> None:
        self._noises = noises
        self.recomputes = any(noise.memory == "recompute" for noise in noises)
        self.per_example = next((noise for noise in noises if noise.estimator != "shared"), None)
        self.on_weight = noises[0] if [noise.tensor_name for noise in noises] == ["weight"] else None

    def live(self) -> bool:
        """Whether a read of any of the tensors is noisy now."""
        return any(noise.live() for noise in self._noises)

    def may_come(self) -> bool:
        """Whether a forward may read any of them noisy: what is off in eval mode can be switched on within it."""
        return not all(noise.control.off for noise in self._noises)

    def __reduce__(self) -> tuple[type[ModuleNoise], tuple[Frames, list[WeightNoise]]]:
        return ModuleNoise, (self.frames, self.noises)


def own_noises(owner: nn.Module) -> list[tuple[str, WeightNoise]]:
    """The noises on the tensors of ``owner`` itself, in the order of its parameters."""
    stacks = parametrizations(owner)
    order = dict.fromkeys([*owner.__dict__["_parameters"], *stacks])
    return [
        (name, part)
        for name in order
        if name in stacks
        for part in children(stacks[name]).values()
        if isinstance(part, WeightNoise)
    ]


@opens_frame
def in_frame(module_noise: ModuleNoise, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a forward so that all its reads see one draw."""
    if module_noise.recomputes and can_recompute():
        return _in_recomputing_frame(module_noise.frames.running, call, *args, **kwargs)
    running = module_noise.frames.running
    running.append({})
    try:
        return call(*args, **kwargs)
    finally:
        running.pop()


@opens_frame
def _in_recomputing_frame(
    running: list[dict[str, Any] | None], call: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    kept = Recomputed()
    running.append(kept)
    try:
        with saved_tensors_hooks(*kept.hooks):
            return call(*args, **kwargs)
    finally:
        running.pop()
        kept.close()


class _ScopeOfCall:
    """The scope of one call, opened whenever its body goes on, and closed while that waits."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._kept: dict[str, Any] = {}

    def __enter__(self) -> None:
        self._frames.running.append(self._kept)

    def __exit__(self, *_: object) -> None:
        self._frames.running.pop()


def goes_on(call: Callable[..., Any]) -> bool:
    """Whether the body of a function runs after it has returned: a generator, or asynchronous."""
    return any(
        kind(call)
        for kind in (inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    )


def resumed(module_noise: ModuleNoise, call: Callable[..., Any]) -> Callable[..., Any]:
    """Such a function with all reads of one call seeing one draw."""
    return decorated(call, lambda: _ScopeOfCall(module_noise.frames))


class InstanceForward:
    """A forward that was set on the instance, as accelerate does it, in the scope of its module."""

    opens_scope = True

    def __init__(self, inner: Callable[..., Any], module_noise: ModuleNoise) -> None:
        functools.update_wrapper(self, inner)
        self.inner = inner
        self.module_noise = module_noise

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The inner forward's result."""
        if not self.module_noise.may_come():
            return self.inner(*args, **kwargs)
        if goes_on(self.inner):
            return resumed(self.module_noise, self.inner)(*args, **kwargs)
        return in_frame(self.module_noise, self.inner, *args, **kwargs)


@contextmanager
def clean_reads(owner: nn.Module) -> Iterator[None]:
    """In this thread, reads of the owner's own tensors are clean inside."""
    holder: Any = owner._modules.get("parametrizations")
    if holder is None:
        yield
        return
    running = holder.module_noise.frames.running
    running.append(None)
    try:
        yield
    finally:
        running.pop()
