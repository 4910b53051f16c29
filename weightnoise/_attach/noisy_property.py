"""The property of a noisy class that reads a noisy tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from weightnoise._attach.stack import InPlaceList
from weightnoise._torch.modules import is_dtensor, parametrizations


def noisy_property(name: str) -> property:
    """A property that reads the parametrized tensor ``name``, or the plain one where there is none."""
    return property(_reader(name), _writer(name))


def _reader(name: str) -> Callable[[nn.Module], Any]:
    def read(self: nn.Module) -> Any:
        own = self.__dict__
        try:
            stack = own["_modules"]["parametrizations"]._modules[name]
            in_place = type(stack) is InPlaceList
            # What stands there under the name hides a Parameter: tensordict and functional code put tensors there.
            weight = None if not in_place else own[name] if name in own else own["_parameters"][name]
        except KeyError:
            if name in own:
                return own[name]
            # Python goes on to nn.Module.__getattr__, which finds a plain Parameter or says what is missing.
            raise AttributeError(name) from None
        try:
            if not in_place:
                return stack()
            only_noise = stack.only_noise
            if only_noise is None or type(weight) is not nn.Parameter:
                return stack.read(weight)
            control = only_noise.control  # Spelt out, as below.
            if control.off or (control.gated and not self.training):
                return weight
            if not torch.is_grad_enabled() and (at_rest := control.rest):
                rested = only_noise.rested(weight, at_rest)
                if rested is not None:
                    return rested
            return only_noise.forward(weight)
        except AttributeError as error:
            # Python would take it for a missing attribute, and nn.LSTM for a missing weight (pytorch#49726).
            raise RuntimeError(f"The noise on '{name}' raised AttributeError: {error}") from error

    return read


def _writer(name: str) -> Callable[[nn.Module, Any], None]:
    def write(self: nn.Module, value: Any) -> None:
        stack: Any = parametrizations(self).get(name)
        if getattr(self, "_is_replica", False):
            self._parameters[name] = value
        elif name in self.__dict__:
            self.__dict__[name] = value
        elif stack is not None and not isinstance(stack, InPlaceList):
            stack.right_inverse(value)
        elif is_dtensor(value) and name not in self._parameters:
            self.__dict__[name] = value  # As DDP does it over tensor parallelism, for its first forward.
        else:
            raise TypeError(
                f"cannot assign '{torch.typename(value)}' as parameter '{name}' "
                "(torch.nn.Parameter or None expected). What recomputes a weight from other parameters, as "
                "torch.nn.utils.weight_norm, spectral_norm and prune do, has to be registered before the noise. "
                "In place of FullyShardedDataParallel, which cuts weights out of a flat tensor, use fully_shard."
            )

    return write
