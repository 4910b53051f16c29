"""Reads of a weight that are in no forward of the module that owns it.

Noise is there for forwards. In the forward of another module a read is noisy as well; what reads, edits, copies,
saves or initialises a weight elsewhere gets the Parameter itself, and needs to know nothing of the noise.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from weightnoise._errors import CleanReadWarning, UnsupportedParameterError
from weightnoise._random.common import Make, Take, layer_of
from weightnoise._torch.forwards import has_own_forward, is_reader, method_that_reads, of_this_call, place
from weightnoise._torch.modules import children, parametrizations
from weightnoise._torch.tracing import leave_to_python, trace_again, traced_frames, traced_object, while_tracing

if TYPE_CHECKING:
    from weightnoise._noise.drawing import Drawing
    from weightnoise._noise.weight_noise import WeightNoise

# Names of methods that edit weights or hand them on begin with these.
_EDITS: tuple[str, ...] = (
    "init",
    "reset",
    "merge",
    "unmerge",
    "fuse",
    "unfuse",
    "load",
    "save",
    "tie",
    "resize",
    "prune",
    "copy",
)
_EDITS += ("quantize", "convert", "export", "configure", "clip", "clamp", "normalize", "update")


CLEAN = "clean"


def is_noisy_outside(noise: WeightNoise) -> bool:
    """Whether a read is noisy that is in no forward of the owner; inside a hold there is one draw to show."""
    if torch.compiler.is_compiling():  # Dynamo cannot look at the stack: compiled code counts as a forward.
        return True
    where = place().place
    return where == "forward" or (where == "neither" and noise.control.held is not None)


def kept_outside(noise: WeightNoise) -> Any:
    """What is kept of a read that is in no forward of the owner, so that others like it have the same draw.

    A list of Parameters, or any module without a forward of its own, is used by the forward of another one: what
    is drawn is kept for that call. So is what a forward reads that was set on the instance later on.

    Returns:
        `CLEAN` for a read that is to be clean; None where each read draws.
    """
    if torch.compiler.is_compiling():
        if noise.control.held is None:
            _leave_second_reads()
        return None
    where, frame = place()
    if where == "neither" and noise.control.held is None and noise.live():
        _warn(noise.tensor_name)
    if where != "forward" or frame is None:
        return None if where == "neither" and noise.control.held is not None else CLEAN
    owner = None if noise.owner is None else noise.owner()
    if owner is None or has_own_forward(owner):
        return None
    if noise.estimator != "shared":
        raise UnsupportedParameterError(_SET_LATER.format(name=noise.name, estimator=noise.estimator))
    return of_this_call(frame).setdefault(noise.frames, {})


def taken_outside(noise: Drawing) -> Take | None:
    """The numbers that a layer has in common where the forward of another module reads it, each time with a draw.

    Of one call of that, the first draw of the bias has those of the first of the weight, the second of the second.
    None where nobody else has them.
    """
    if torch.compiler.is_compiling():
        _leave_pairs()
        return None
    frame = place().frame if _has_partner(noise) else None
    if frame is None:
        return None
    kept: dict[str, Any] = of_this_call(frame).setdefault((noise.frames, "pairs"), {})

    def take(name: str, make: Make, device: torch.device) -> Tensor:
        pair = f"{layer_of(noise.tensor_name)}: {name} on {device}"
        numbers: Tensor
        numbers, of = kept.pop(pair, (None, noise.tensor_name))
        if of == noise.tensor_name:
            numbers = make()
            kept[pair] = numbers, of
        return numbers

    return take


def _has_partner(noise: Drawing) -> bool:
    """Whether another noise on its module has numbers in common with it."""
    owner = None if noise.owner is None else noise.owner()
    layer = layer_of(noise.tensor_name)
    return owner is not None and any(
        name != noise.tensor_name and layer_of(name) == layer and getattr(one, "shares", False)
        for name, stack in parametrizations(owner).items()
        for one in children(stack).values()
    )


@while_tracing
def _leave_pairs() -> None:
    """Leave to Python the reads of a weight and of its bias by another module: Dynamo keeps nothing for a call."""
    noise = next(filter(None, (traced_object(traced, "self") for traced in traced_frames())), None)
    if noise is None or _has_partner(noise):
        leave_to_python(_PAIR)


@while_tracing
def _leave_second_reads() -> None:
    """Leave to Python the reads of a weight that a forward of another module reads more than once.

    Dynamo keeps nothing for the length of a call. It hands nothing over here, or it would compile anew for each
    noise. A second read is found when the first is traced already: the trace begins again.
    """
    noise: Any = None
    package = ""
    for traced in traced_frames():
        package = str(traced.f_globals.get("__name__")).partition(".")[0]
        if traced.f_code.co_name != "forward":
            continue
        if noise is None:
            noise = traced_object(traced, "self")
            if vars(noise).get(_TWICE):
                leave_to_python(_READ_TWICE.format(name=noise.name))
        elif not is_reader(traced.f_code):
            known: set[int] = vars(traced).setdefault(_TWICE, set())
            owner = None if noise.owner is None else noise.owner()
            if id(noise) in known and owner is not None and not has_own_forward(owner):
                vars(noise)[_TWICE] = True
                trace_again()
            known.add(id(noise))
            return
    if package in ("weightnoise", "torch"):  # A part of a read, which Python does.
        leave_to_python("It reads a weight for a forward that is run by Python.")


def _warn(name: str) -> None:
    """Warn, once for each line of code, of a read by a method that does not look as if it edited weights."""
    reading = method_that_reads("weightnoise", _EDITS)
    if reading is None:
        return
    frame = reading.frame
    warnings.warn_explicit(
        _CLEAN.format(name=name, method=reading.method),
        CleanReadWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


_TWICE = "__weightnoise_twice__"
_READ_TWICE = (
    "Parameter '{name}' is read twice in one forward of another module: compiled code would draw for each read, "
    "so they are left to Python. Read it once, or compile what runs inside `with weightnoise.hold_noise(model):`."
)
_PAIR = (
    "A weight and its bias have noise in common, and the forward of another module reads them: compiled code "
    "would draw for each, so they are left to Python. Compile it for use inside "
    "`with weightnoise.hold_noise(model):`."
)

_CLEAN = (
    "Parameter '{name}' is read in {method}, which is no forward: it is clean there although noise is on. If it "
    "is used as in a forward, call it inside `with weightnoise.hold_noise(model):`, or by way of the "
    "module's forward. If it is to be clean, call it inside `with weightnoise.no_noise(model):`."
)

_SET_LATER = (
    "Parameter '{name}' is read by a forward that was set on its module after noise with estimator={estimator!r} "
    "was added, which needs the forward of the torch layer. Use estimator='shared', or take that forward off."
)
