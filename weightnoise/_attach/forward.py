"""The forward of a noisy module: all reads of its parameters in one call see one draw."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from weightnoise._attach.embedding import LOOKUPS, forward_looked_up
from weightnoise._attach.module_noise import ModuleNoise, in_frame
from weightnoise._attach.per_example import forward_per_example
from weightnoise._noise.frames import opens_frame


def noisy_forward(base: type[nn.Module]) -> Callable[..., Any]:
    """The forward of a noisy module of class ``base``: all its reads see one draw."""
    looks_up = base.forward in LOOKUPS

    @functools.wraps(base.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        holder: Any = self._modules.get("parametrizations")
        if holder is None:  # Where user code says type(module)(...).
            return base.forward(self, *args, **kwargs)
        module_noise: ModuleNoise = holder.module_noise
        # What follows is spelt out, as a forward of a small layer takes no longer than a few calls.
        for one in module_noise._noises:
            if not one.control.off and (not one.control.gated or self.training):
                break
        else:
            return base.forward(self, *args, **kwargs)
        noise = module_noise.per_example
        effective = None if noise is None else noise.effective()
        if noise is not None and effective is not None:
            return forward_per_example(noise, effective, base.forward, self, *args, **kwargs)
        if looks_up:
            found = forward_looked_up(
                getattr(holder._modules.get("weight"), "only_noise", None), self, *args, **kwargs
            )
            if found is not None:
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
