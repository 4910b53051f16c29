"""Reads of a weight that are in no forward of the module that owns it.

Noise is there for forwards. In the forward of another module a read is noisy as well; what reads, edits, copies,
saves or initialises a weight elsewhere gets the Parameter itself, and needs to know nothing of the noise.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

from weightnoise._errors import CleanReadWarning
from weightnoise._torch.forwards import method_that_reads, place

if TYPE_CHECKING:
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


def is_noisy_outside(noise: WeightNoise, *, warn: bool = False) -> bool:
    """Whether a read is noisy that is in no forward of the owner; inside a hold there is one draw to show.

    Args:
        noise: one that is on.
        warn: warn where a method of a module may use the weight as a forward would.
    """
    if torch.compiler.is_compiling():  # Dynamo cannot look at the stack: compiled code counts as a forward.
        return True
    where = place()
    if where == "neither" and noise.control.held is None and warn and noise.live():
        _warn(noise.tensor_name)
    return where == "forward" or (where == "neither" and noise.control.held is not None)


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


_CLEAN = (
    "Parameter '{name}' is read in {method}, which is no forward: it is clean there although noise is on. If it "
    "is used as in a forward, call it inside `with weightnoise.hold_noise(model):`, or by way of the "
    "module's forward. If it is to be clean, call it inside `with weightnoise.no_noise(model):`."
)
