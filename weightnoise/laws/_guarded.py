"""Laws of users, kept from editing the weights that they are handed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weightnoise._errors import WeightNoiseError
from weightnoise.laws._custom import Custom
from weightnoise.laws._law import Noise
from weightnoise.laws._protect import Protect
from weightnoise.laws._spec import Chain

_HANDED = ("draw", "apply", "freeze", "redraw", "strengths", "deviation", "problem", "kl_divergence")


def guarded(law: Any, place: str) -> Any:
    """``law``, or around one of a user a `Guarded` that hands it copies; ``place`` says what of."""
    return law if is_ours(law) else Guarded(law, place)


def is_ours(law: object) -> bool:
    """Whether a law runs code of this library alone, which edits nothing."""
    if isinstance(law, Custom) or not type(law).__module__.startswith(f"{__package__}."):
        return False
    if isinstance(law, Chain):
        return all(map(is_ours, law.laws))
    return is_ours(law.law) if isinstance(law, Protect) else True


class Guarded:
    """A law that gets copies, and an error if it edits them or the draw.

    The clean weight is out of its reach, whatever it does: torch counts no edit through numpy or the attribute
    ``data``, and none of a tensor that was made in inference mode. Those stay in the copy.
    """

    def __init__(self, law: Noise, place: str) -> None:
        self.law = law
        self.place = place

    def draw(self, weight: Tensor) -> Any:
        """The law's draw."""
        return self._call(self.law.draw, weight)

    def apply(self, weight: Tensor, *args: Any) -> Any:
        """The law's noisy weight."""
        return self._call(self.law.apply, weight, *args)

    def __repr__(self) -> str:
        return repr(self.law)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "law":  # `copy` and `pickle` ask before there is a law.
            raise AttributeError(name)
        found = getattr(self.law, name)
        if name == "at":
            return functools.partial(self._call_at, found)
        return functools.partial(self._call, found) if name in _HANDED and callable(found) else found

    def _call(self, method: Callable[..., Any], weight: Tensor, *args: Any) -> Any:
        if torch.compiler.is_compiling():
            return method(weight.clone(), *args)
        own = weight.clone()
        before = _versions(own, args)
        result = method(own, *args)
        after = _versions(own, args)
        if after != before:
            what = self.place if after[0] != before[0] else f"what it drew or learned for {self.place}"
            raise WeightNoiseError(_EDITS.format(law=self.law, what=what))
        return result

    def _call_at(self, method: Callable[..., Any], module: nn.Module, inputs: Any) -> Any:
        own = inputs.clone() if isinstance(inputs, Tensor) else inputs
        if torch.compiler.is_compiling():
            return method(module, own)
        before = _versions(own, list(module.parameters()))
        law = method(module, own)
        if _versions(own, list(module.parameters())) != before:
            raise WeightNoiseError(_LOOKS.format(law=self.law, place=self.place))
        return law


def _versions(*values: Any) -> list[int]:
    """How often each tensor was edited: those that count."""
    return [-1 if tensor.is_inference() else tensor._version for tensor in _tensors(values)]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))


_EDITS = (
    "{law!r} edits {what} in place. A law returns a new tensor and leaves what it is handed as it is: write "
    "weight * 2 for weight.mul_(2), or begin with weight = weight.clone(). It was handed a copy of the weight, so "
    "that no clean weight has changed."
)

_LOOKS = (
    "{law!r} edits the inputs or the Parameters at {place} in place. Its method at(module, inputs) is to look at "
    "them alone: work on a clone() of what it changes. Parameters that it has edited are no longer what they were."
)
