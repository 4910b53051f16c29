"""Strengths for each element from outside: a tensor, tensors by name, or the name of a file of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from weightnoise._errors import OptionError


class Given:
    """What stands in the place of a number where each element has one of its own; equal by its tensors.

    Attributes:
        tensors: one tensor, or tensors by the names of parameters.
        file: the file that they come from.
    """

    def __init__(self, tensors: Tensor | dict[str, Tensor], file: str | None = None) -> None:
        self.tensors = tensors
        self.file = file

    def of(self, names: Sequence[str]) -> Given:
        """The tensor of a parameter with these names, if there is one."""
        if isinstance(self.tensors, dict):
            for name in names:
                if name in self.tensors:
                    return Given(self.tensors[name], self.file)
        return self

    def tensor(self) -> Tensor:
        """The tensor, where one parameter is meant."""
        if isinstance(self.tensors, dict):
            raise OptionError("Strengths by name are known where a parameter is: use them in add_weight_noise.")
        return self.tensors

    def problem(self, option: str, weight: Tensor) -> str | None:
        """Why they do not fit a parameter, or None."""
        if isinstance(self.tensors, dict):
            names = ", ".join(map(repr, list(self.tensors)[:4]))
            return f"{option} has no tensor under its name, but for {names}. Leave it clean with None, or add one"
        if self.tensors.shape != weight.shape:
            return (
                f"{option} has the shape {tuple(self.tensors.shape)}, the parameter {tuple(weight.shape)}; expand "
                "it if its numbers are to be repeated"
            )
        return f"{option} has numbers, and it has none yet (meta device)" if weight.is_meta else None

    def __repr__(self) -> str:
        if self.file is not None:
            return repr(self.file)
        if isinstance(self.tensors, dict):
            return f"<{len(self.tensors)} tensors by name>"
        return f"<tensor of shape {tuple(self.tensors.shape)}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Given) and _same(self.tensors, other.tensors)

    def __hash__(self) -> int:
        return hash((Given, isinstance(self.tensors, dict)))


def as_given(law: str, option: str, value: Any) -> Any:
    """A `Given` for a tensor, a mapping of tensors or the name of a file; any other value as it is."""
    file = None
    if isinstance(value, str):
        file = value
        try:
            value = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # Of many kinds: no such file, no archive, an object that is not allowed.
            raise OptionError(
                f"{law}({option}=...) must be a finite number >= 0, a tensor, tensors by name, or the name of a "
                f"file of torch.save, got {file!r}: {error}"
            ) from None
        if not isinstance(value, (Tensor, Mapping)):
            raise OptionError(f"{law}({option}={file!r}) must be a file of a tensor, or of tensors by name.")
    if not isinstance(value, (Tensor, Mapping)):
        return value
    named = {"": value} if isinstance(value, Tensor) else dict(value)
    for name, tensor in named.items():
        where = f"{law}({option}=...)" + (f" of {name!r}" if name else "")
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise OptionError(f"{where} must be a floating-point tensor, or such tensors by name, got {tensor!r}.")
        if tensor.requires_grad:
            raise OptionError(
                f"{where} must be a finite number without a gradient: std.detach(), or LearnedGaussian."
            )
        if not bool(((tensor >= 0) & tensor.isfinite()).all()):
            raise OptionError(
                f"{where} must be a finite number >= 0 for each element: deviations, not logarithms."
            )
    return Given(named[""] if isinstance(value, Tensor) else named, file)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
