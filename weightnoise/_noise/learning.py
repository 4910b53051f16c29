"""What a law learns on one weight: Parameters that are made, moved, emptied, saved and loaded with the model."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weightnoise._errors import LearnedStrengthWarning, UnsupportedParameterError
from weightnoise._torch.autograd import storage_of
from weightnoise._torch.modes import PLAIN
from weightnoise._torch.modules import empties, is_dtensor
from weightnoise.laws import Law


class Ties:
    """What uses of one tied weight, or of one range, have to tell each other, so that they go on sharing.

    torch makes a Parameter anew for each use when it is emptied from the meta device or loaded with
    ``assign=True``, and a buffer whenever it is converted. The first use notes what it has replaced, and the
    others take the same.

    Attributes:
        uses: how many there are, where that matters.
        replaced: of each strength, the tensor before and after it was last replaced.
        loaded: what torch hands to all modules in one call of ``load_state_dict``: the last that brought values.
    """

    def __init__(self, uses: int = 0) -> None:
        self.uses = uses
        self.replaced: dict[str, tuple[weakref.ref[Any], weakref.ref[Any]]] = {}
        self.loaded: object = None

    def __reduce__(self) -> tuple[type[Ties], tuple[int]]:
        return Ties, (self.uses,)


class Learning(nn.Module):
    """A module whose Parameters are what a law has learned on the weight of another module.

    Its buffers are the strengths that a law was given from outside.

    Attributes:
        owner: the module of the weight; no copy and no pickle has it.
        tensor_name: the attribute of the owner.
        handed: the law.
        strength_names: the names of the Parameters and buffers.
        built_for: the shape of the weight, where something is learned or frozen.
        ties: what the uses of a tied weight, or the layers of a group, share; None where there is one use.
        emptied: whether the memory of the Parameters lost its numbers, and nothing has been loaded since.
    """

    owner: weakref.ref[nn.Module] | None
    tensor_name: str
    handed: Law
    built_for: torch.Size | None
    strength_names: tuple[str, ...] = ()
    ties: Ties | None = None
    emptied: bool = False

    def learn(
        self, strengths: Mapping[str, nn.Parameter], given: Mapping[str, Tensor], ties: Ties | None = None
    ) -> None:
        """Register what the law learns on a weight and was given for it, and what other uses of it share."""
        for name, parameter in strengths.items():
            self.register_parameter(name, parameter)
        for name, tensor in given.items():
            self.register_buffer(name, tensor)
        self.strength_names = (*strengths, *given)
        self.ties = ties

    def given(self, weight: Tensor) -> dict[str, Tensor]:
        """What the law was given for a weight: copies on its device."""
        return {name: _as_weight(tensor, weight) for name, tensor in self.handed.given(weight).items()}

    def _own(self) -> dict[str, Tensor | None]:
        """All of it by name, as it stands in the module."""
        return {**self._parameters, **self._buffers}

    def _strengths(self) -> list[Tensor]:
        return [one for one in (*self._parameters.values(), *self._buffers.values()) if one is not None]

    def strengths(self) -> dict[str, Tensor]:
        """What the law has learned, by name."""
        return {name: getattr(self, name) for name in self.strength_names}

    def reset_parameters(self) -> None:
        """Give the law its first values on the weight; on zeros where that has no numbers yet."""
        before, weight = self._own(), self._weight()
        if not self.strength_names or weight is None:
            return
        with torch.no_grad():
            for name, value in self.handed.strengths(weight).items():
                own = self._parameters[name]
                assert own is not None
                if own.is_meta or own.shape != value.shape:
                    self._parameters[name] = nn.Parameter(value, own.requires_grad)
                elif is_dtensor(own):
                    own.fill_(_the_one_of(value, f"{self.tensor_name}: {name}"))
                else:
                    own.copy_(value)
            for name, value in self.given(weight).items():
                there = self._buffers[name]
                if self.ties is None or there is None or there.is_meta:
                    self._buffers[name] = value
                else:  # The others have it too.
                    there.copy_(value)
        self._note(before)

    def parameter(self) -> Tensor | None:
        """What the owner has under the name; None without an owner, and for what a transformation has wrapped."""
        owner = None if self.owner is None else self.owner()
        weight = None if owner is None else owner._parameters.get(self.tensor_name)
        return weight if type(weight) is nn.Parameter else None

    def _weight(self) -> Tensor | None:
        """The weight, or zeros in its place; None where neither it nor what is learned has a place for numbers."""
        owner = None if self.owner is None else self.owner()
        weight = None if owner is None else owner._parameters.get(self.tensor_name)
        if weight is not None and not weight.is_meta and not is_dtensor(weight):
            return weight
        like = [*self._strengths(), *([] if owner is None else owner._parameters.values())]
        there = (one for one in like if one is not None and not one.is_meta and one.is_floating_point())
        places = {one.device: one.dtype for one in there}
        if not places or self.built_for is None:
            return None
        device, dtype = next(iter(places.items()))
        return torch.zeros(self.built_for, dtype=dtype, device=device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        followed = self._follow()
        if len(followed) == len(self.strength_names):
            return self
        before = self._own()
        on_meta = any(one.is_meta for one in self._strengths())

        def others(one: Tensor) -> Tensor:
            return one if any(one is new for new in followed) else fn(one)

        super()._apply(others if followed else fn, recurse)  # type: ignore[no-untyped-call]
        self._note(before)
        still = any(one.is_meta for one in self._strengths())
        if self.strength_names and not still and (on_meta or empties(fn)):
            self.emptied = True
            self.reset_parameters()
        return self

    def _follow(self) -> list[Tensor]:
        """Take what another use has put in the place of what both had; what that is."""
        followed: list[Tensor] = []
        for name, (before, after) in ({} if self.ties is None else self.ties.replaced).items():
            new, own = after(), self._parameters if name in self._parameters else self._buffers
            if new is not None and own[name] is not None and before() is own[name]:
                own[name] = new
                followed.append(new)
        return followed

    def _note(self, before: Mapping[str, Tensor | None]) -> None:
        for name, new in {} if self.ties is None else self._own().items():
            old = before[name]
            if self.ties is not None and old is not None and new is not None and old is not new:
                self.ties.replaced[name] = weakref.ref(old), weakref.ref(new)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        before = [value for value in destination.values() if isinstance(value, Tensor)] if self.ties else []
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, own in self._own().items() if self.ties else ():
            if _stands_in(before, own):
                del destination[prefix + name]  # Once: formats without shared memory refuse it twice.

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        self._follow()
        if self.ties is not None and self.ties.loaded is error_msgs:
            self.emptied = False
            return
        missing: list[str] = []
        before = self._own()
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing, unexpected_keys, error_msgs
        )
        self._note(before)
        if len(missing) == len(self.strength_names) > 0:
            first = self.emptied or any(one.is_meta for one in self._strengths())
            if first:
                self.reset_parameters()
            # One text for all of them, so that Python shows it once.
            warnings.warn(_FIRST if first else _KEPT, LearnedStrengthWarning, stacklevel=2)
            return
        missing_keys += missing
        self.emptied = False
        if self.ties is not None:
            self.ties.loaded = error_msgs


def _as_weight(given: Tensor, weight: Tensor) -> Tensor:
    """A copy with the device of the weight, and its dtype unless it counts something."""
    return given.detach().to(weight.device, weight.dtype if given.is_floating_point() else given.dtype, copy=True)


def _stands_in(values: Iterable[Tensor], one: Tensor | None) -> bool:
    """Whether a tensor has the memory of one of several values."""
    if type(one) not in PLAIN or one is None or one.numel() == 0:
        return any(value is one for value in values)
    own = storage_of(one)
    return any(type(value) in PLAIN and value.shape == one.shape and storage_of(value) == own for value in values)


def _the_one_of(value: Tensor, what: str) -> float:
    """The number that all elements are: to write into a sharded Parameter."""
    if value.numel() == 0 or bool((value == value.flatten()[0]).all()):
        return value.flatten()[0].item() if value.numel() else 0.0
    raise UnsupportedParameterError(
        f"The learned strength of {what} lost its numbers while it is sharded, and its first values differ from "
        "element to element. Load a checkpoint that holds them, or add the noise before the model is emptied."
    )


_PLAIN = "The checkpoint holds no learned noise strengths, as one of the plain model: they "
_NAMES = " weightnoise.learned_strengths(model) has their names."
_KEPT = _PLAIN + "keep the values they have." + _NAMES
_FIRST = _PLAIN + "have no numbers of their own yet, and get the first values of their laws." + _NAMES
