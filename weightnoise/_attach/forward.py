"""The forward of a noisy module: all reads of its parameters in one call see one draw."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from weightnoise._attach.embedding import LOOKUPS, forward_looked_up
from weightnoise._attach.module_noise import ModuleNoise, goes_on, in_frame, resumed
from weightnoise._attach.per_example import forward_per_example
from weightnoise._errors import UnsupportedParameterError
from weightnoise._noise.frames import opens_frame
from weightnoise._noise.resting import weight_at_rest
from weightnoise._noise.weight_noise import WeightNoise
from weightnoise._torch.layers import WITH_WEIGHT


def noisy_forward(base: type[nn.Module]) -> Callable[..., Any]:
    """The forward of a noisy module of class ``base``: all its reads see one draw."""
    own = base.forward
    looks_up, goes_on_later = own in LOOKUPS, goes_on(own)
    with_weight: Any = WITH_WEIGHT.get(own)

    @functools.wraps(base.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        holder: Any = self._modules.get("parametrizations")
        if holder is None:  # Where user code says type(module)(...).
            return base.forward(self, *args, **kwargs)
        module_noise: ModuleNoise = holder.module_noise
        # What follows is spelt out, as a forward of a small layer takes no longer than a few calls.
        on_weight = with_weight and module_noise.on_weight
        if on_weight and not torch.is_grad_enabled() and (rest := on_weight.control.rest):
            weight = weight_at_rest(self, rest[0])
            if weight is not None and base.forward is own:
                return with_weight(self, weight, *args, **kwargs)
        waits = False
        for one in module_noise._noises:
            if not one.control.off and (not one.control.gated or self.training):
                break
            waits |= not one.control.off  # For training: a context or a mode within the forward may switch it on.
        else:
            if not waits or (with_weight and base.forward is own):
                return base.forward(self, *args, **kwargs)
        if goes_on_later:
            return resumed(module_noise, functools.partial(base.forward, self))(*args, **kwargs)
        noise = module_noise.per_example
        effective = None if noise is None else noise.effective()
        if noise is not None and effective is not None:
            _check_patched(base, own, noise)
            return forward_per_example(noise, effective, base.forward, self, *args, **kwargs)
        if looks_up and base.forward is own:
            only = getattr(holder._modules.get("weight"), "only_noise", None)
            if (found := forward_looked_up(only, self, *args, **kwargs)) is not None:
                return found
        if module_noise.recomputes:
            return in_frame(module_noise, base.forward, self, *args, **kwargs)
        running = module_noise.frames.running
        running.append({})
        try:
            return base.forward(self, *args, **kwargs)
        finally:
            running.pop()

    return opens_frame(forward)


def _check_patched(base: type[nn.Module], own: Any, noise: WeightNoise) -> None:
    if base.forward is not own:
        raise UnsupportedParameterError(_PATCHED.format(name=noise.name, estimator=noise.estimator))


_PATCHED = (
    "The class of the module of parameter '{name}' was given another forward after noise with "
    "estimator={estimator!r} was added, which needs the forward of the torch layer. Use estimator='shared', or "
    "put the forward in its place before the noise is added."
)
