"""The class of a noisy module."""

from __future__ import annotations

import copy
import threading
import types
import warnings
import weakref
from abc import ABCMeta
from typing import Any

import torch
from torch import nn

from weightnoise._attach.containers import container_overrides
from weightnoise._attach.find import module_noise
from weightnoise._attach.forward import noisy_forward
from weightnoise._attach.module_noise import clean_reads
from weightnoise._attach.noisy_property import noisy_property
from weightnoise._attach.recurrent import recurrent_overrides
from weightnoise._attach.stack import InPlaceList
from weightnoise._errors import ExportError, LeftCleanWarning, UnsupportedParameterError
from weightnoise._noise.weight_noise import WeightNoise
from weightnoise._torch.modules import parametrizations

SCRIPT_MESSAGE = (
    "torch.jit.script cannot compile a module with weight noise, on or off. Call "
    "`weightnoise.remove_weight_noise(model)` first."
)


# The classes that somebody uses. Weak, and no key refers to a class strongly: a class may belong to one module,
# as those do that torch makes for weight_norm, and holds on to all that hangs on it. An id is that of one base
# alone, since a noisy class keeps its base.
_NOISY: weakref.WeakValueDictionary[tuple[int, tuple[str, ...]], type[nn.Module]] = weakref.WeakValueDictionary()
_ON_TOP: weakref.WeakKeyDictionary[type[nn.Module], weakref.ref[type[nn.Module]]] = weakref.WeakKeyDictionary()
_MAKING = threading.RLock()  # Two threads must not make a class each.


class NoisyMeta(ABCMeta):
    """Keeps a noisy class whole, which modules share and torch edits as its own; abstract classes mix in."""

    def __delattr__(cls, name: str) -> None:
        if not isinstance(cls.__dict__.get(name), property):
            super().__delattr__(name)

    def __setattr__(cls, name: str, value: object) -> None:
        # torch installs a property for a sibling parameter; ours knows about the draw of a forward.
        super().__setattr__(name, noisy_property(name) if isinstance(value, property) else value)


def noisy_class(base: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """The class of a noisy module of class ``base``, shared by all of the same names.

    Shared, so that a model of equal blocks is compiled once and not once per block; never edited
    to take noise off, so that one module's removal cannot break another.
    """
    key = id(base), names
    with _MAKING:
        made = _NOISY.get(key)
        if made is None:
            made = _NOISY[key] = make_noisy_class(base, names)
    return made


def make_noisy_class(base: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """A new class of noisy modules of class ``base`` whose tensors ``names`` are parametrized."""

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        # nn.LSTM reads its weights for its state; without a gradient, so that they can be copied.
        if not parametrizations(self):
            return blank, (base,), self.__getstate__()  # type: ignore[no-untyped-call]
        _ask_for_copies(base, self, protocol)
        with clean_reads(self), torch.no_grad():
            return rebuild, (base, tuple(parametrizations(self))), self.__getstate__()  # type: ignore[no-untyped-call]

    def set_state(self: nn.Module, state: Any) -> None:
        own = type(self)
        set_class(self, base)  # nn.LSTM reads its weights here, which would draw.
        self.__setstate__(state)  # type: ignore[no-untyped-call]
        set_class(self, own)
        adopt(self)

    def refuse_scripting(self: nn.Module) -> None:
        raise ExportError(SCRIPT_MESSAGE)

    def delete(self: nn.Module, name: str) -> None:
        # torch does this when it registers a parametrization, and then edits the class of the module.
        set_class(self, make_noisy_class(clean_class(type(self)), tuple(parametrizations(self))))
        base.__delattr__(self, name)

    def register(self: nn.Module, name: str, param: Any) -> None:
        if param is not None:
            _look_at_new(self, name, param)
        base.register_parameter(self, name, param)

    body: dict[str, Any] = {name: noisy_property(name) for name in names}
    body |= {
        "forward": noisy_forward(base),
        "__reduce_ex__": reduce,
        "__setstate__": set_state,
        "__delattr__": delete,
        "register_parameter": register,
        "__prepare_scriptable__": refuse_scripting,
        "_clean_class": base,
    }
    body |= {
        shown: getattr(base, shown) for shown in ("__module__", "__qualname__", "__doc__")
    }  # Tools go by them.
    body |= recurrent_overrides(base, clean_reads) if issubclass(base, nn.RNNBase) else {}
    body |= container_overrides(base, clean_reads)
    meta: Any = NoisyMeta if issubclass(NoisyMeta, type(base)) else type("NoisyMeta", (NoisyMeta, type(base)), {})
    return meta(base.__name__, (base,), body)  # type: ignore[no-any-return]


def clean_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The class without noise; what `fully_shard` has put on top of a noisy class stays on top."""
    if "_clean_class" in vars(cls):
        return clean_class(cls._clean_class)  # type: ignore[attr-defined]
    if not isinstance(cls, NoisyMeta):
        return cls
    with _MAKING:
        found = _ON_TOP.get(cls)
        made = None if found is None else found()
        if made is None:
            made = _make_clean_class(cls)
            _ON_TOP[cls] = weakref.ref(made)
    return made


def _make_clean_class(cls: type[nn.Module]) -> type[nn.Module]:
    bases = tuple(map(clean_class, cls.__bases__))
    body = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    return types.new_class(cls.__name__, bases, exec_body=lambda namespace: namespace.update(body))


def set_class(module: nn.Module, cls: type[nn.Module]) -> None:
    """Change the class of ``module`` past whatever its ``__setattr__`` has against it."""
    object.__setattr__(module, "__class__", cls)


def _ask_for_copies(base: type[nn.Module], module: nn.Module, protocol: Any) -> None:
    """Let a class refuse copies with noise as it does without."""
    if any(getattr(base, own) is not getattr(nn.Module, own) for own in ("__reduce__", "__reduce_ex__")):
        base.__reduce_ex__(module, protocol)


def _look_at_new(owner: nn.Module, name: str, param: nn.Parameter) -> None:
    """Refuse a Parameter that is registered, where it would lose the noise or hold it for good."""
    if name.endswith("_orig") and owner._parameters.get(name[:-5]) is param:
        # torch's pruning keeps the Parameter it has read under another name, and then assigns to its own.
        noisy_property(name[:-5]).__set__(owner, param)
    carried = module_noise(owner)
    gone = (
        [] if carried is None else [one.name for one in carried.noises if _is_gone(owner, one.tensor_name, name)]
    )
    if gone:
        warnings.warn(_GONE.format(name=gone[0], other=name), LeftCleanWarning, stacklevel=4)
    running = [] if carried is None else carried.frames.running
    kept = running[-1] if running else None
    if carried is not None and kept and name in kept and param is not owner._parameters.get(name):
        named = {noise.tensor_name: noise.name for noise in carried.noises}
        raise UnsupportedParameterError(_REPLACES.format(name=named.get(name, name)))


def _is_gone(owner: nn.Module, name: str, other: str) -> bool:
    """Whether a tool has deleted the Parameter of that name, past this class, while it registers another one."""
    deleted = name.startswith(f"{other}_") and name not in owner._parameters and name not in owner.__dict__
    return deleted and isinstance(parametrizations(owner).get(name), InPlaceList)


_GONE = (
    "Parameter '{name}' was deleted while '{other}' is put in its place, and its noise is gone with it. Call "
    "weightnoise.remove_weight_noise(model) before such a tool (prune.remove, remove_weight_norm, ...), and add "
    "noise to '{other}' after it."
)

_REPLACES = (
    "The forward that reads parameter '{name}' noisy puts another Parameter in its place, which would hold the "
    "noise for good. Make it inside `with weightnoise.no_noise(model):`, or outside of forwards, where reads are "
    "clean."
)


def blank(cls: type[nn.Module]) -> nn.Module:
    """An empty module, for `copy` and `pickle` to fill."""
    return cls.__new__(cls)


def rebuild(base: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    """An empty noisy module, for `copy` and `pickle` to fill."""
    return blank(noisy_class(base, names))


def adopt(owner: nn.Module) -> None:
    """Make the parametrizations of a module that was copied or unpickled its own."""
    holder: Any = owner._modules["parametrizations"]
    if holder.module_noise.owner is not None:
        # A shallow copy shares them with the original. It goes on sharing the Parameters alone.
        shared = {id(tensor): tensor for tensor in (*holder.parameters(), *holder.buffers())}
        holder = copy.deepcopy(holder, shared)
        owner.__dict__["_modules"] = {**owner._modules, "parametrizations": holder}
    holder.module_noise.owner = weakref.ref(owner)
    for part in holder.modules():
        if isinstance(part, (InPlaceList, WeightNoise)):
            part.owner = weakref.ref(owner)
