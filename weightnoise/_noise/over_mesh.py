"""The noise on a weight of which each process has a part: a DTensor in a forward, as tensor parallelism has it.

It is the noise of the whole weight, whatever the parts: bit for bit what one process would make of it. All
processes of the weight's mesh draw the numbers of the whole weight, from the random state of the first of them,
and each takes its own. A law that goes by element needs the own part of the weight, and of its scale the largest
number of all parts. For any other law the processes gather the weight, make all of it noisy, and keep their parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from weightnoise._errors import NO_LAYOUT, UnsupportedParameterError
from weightnoise._noise.checkpoints import EffectiveControl
from weightnoise._noise.draws import Key, apply_draw
from weightnoise._noise.frames import NOT_DRAWN, NOTHING
from weightnoise._noise.recipe import version_of
from weightnoise._random import seeds as _seeds
from weightnoise._torch import dtensors
from weightnoise._torch.autograd import handing_on
from weightnoise._torch.export import refuse_export
from weightnoise._torch.modules import is_dtensor

if TYPE_CHECKING:
    from weightnoise._noise.held import HeldDraw
    from weightnoise._noise.weight_noise import WeightNoise


def is_over_mesh(name: str, weight: Tensor) -> bool:
    """Whether each process has a part of a weight that is no plain one; an error where it can carry no noise."""
    if weight.layout is not torch.strided:
        raise UnsupportedParameterError(f"Parameter '{name}' has layout {weight.layout} now, {NO_LAYOUT}")
    return is_dtensor(weight)


def noisy_over_mesh(noise: WeightNoise, weight: Tensor, effective: EffectiveControl, kept: Any) -> Tensor:
    """The noisy weight in the parts of the clean one; compiled code is interrupted for it.

    Args:
        noise: that is on the weight.
        weight: the DTensor.
        effective: what holds for this read.
        kept: what the running forward has drawn, or None.
    """
    refuse_export("weight", noise.name)
    if torch.compiler.is_compiling():
        interrupted: Any = torch.compiler.disable(noisy_over_mesh)  # type: ignore[no-untyped-call]
        made: Tensor = interrupted(noise, weight, effective, kept)
        return made
    if kept is None and noise.is_managed():
        return weight  # FSDP2 looks at its sharded Parameter between forwards.
    if problem := mesh_problem(weight, noise.estimator, noise.memory):
        raise UnsupportedParameterError(f"Parameter '{noise.name}' {problem}")
    factor = noise.factor(effective)
    state = (version_of(weight), torch.is_grad_enabled(), factor)
    noisy: Tensor
    draw, noisy, of, before = NOTHING if kept is None else kept.get(noise.tensor_name, NOTHING)
    if draw is NOT_DRAWN:
        draw = drawn_over_mesh(noise, weight, effective, kept)
    elif of is weight and before == state:
        return noisy
    noisy = apply_over_mesh(noise, weight, draw, factor)
    if kept is not None:
        kept[noise.tensor_name] = draw, noisy, weight, state
    return noisy


def mesh_problem(weight: Any, estimator: str, memory: str) -> str | None:
    """Why this noise cannot be on a DTensor, with the way out; None where it can."""
    why = None
    if estimator != "shared":
        why = f"estimator={estimator!r} is not supported: its noise goes on the output. Use estimator='shared'."
    elif memory != "keep":
        why = f"memory={memory!r} is not supported. Use memory='keep', and torch.utils.checkpoint to save memory."
    elif dtensors.is_partial(weight):
        why = "noise is not supported on a sum over processes (Partial). Redistribute it to Shard or Replicate."
    return why and f"is a DTensor (tensor parallelism), where {why}"


def drawn_over_mesh(noise: WeightNoise, weight: Any, effective: EffectiveControl, kept: Any) -> Any:
    """The draw for the whole weight, the same in all processes of its mesh."""
    held = effective.held
    if held is not None:
        make_over_mesh(noise, held, weight)
    fresh = held is None and not weight.is_meta
    with _state_of_first(weight) if fresh else nullcontext():
        return noise.draw(_to_draw_for(noise, weight), effective, kept=kept)


def make_held(noise: Any, held: HeldDraw, weight: Any) -> None:
    """Make the draw that a context holds, now, where the first read could not make the same.

    That may be in a checkpointed region or in compiled code.

    Where `fully_shard` is over tensor parallelism it is made by that read: only the forward shows which processes
    are of one replica.
    """
    if not is_dtensor(weight):
        if not held.wait(noise.handed, weight):
            held.make(noise.handed, weight)
    elif not noise.is_managed():
        make_over_mesh(noise, held, weight)
    elif not waits_for_forward(noise, weight):
        held.make(noise.handed, weight)


def waits_for_forward(noise: Any, weight: Any) -> bool:
    """Whether a draw that is held has to wait for a forward, and so needs a seed."""
    return bool(weight.is_meta or (is_dtensor(weight) and noise.is_managed() and weight.device_mesh.ndim > 1))


def make_over_mesh(noise: WeightNoise, held: HeldDraw, weight: Any) -> None:
    """Make the draw that a context holds; the processes of the mesh take the seed that the first of them has."""
    if held.kept or weight.is_meta:
        return
    if held.past is not None:
        make_over_mesh(noise, held.past[0], weight)
    held.seed, held.die, held.layer = dtensors.values_of_first([held.seed, held.die, held.layer], weight)
    with _state_of_first(weight) if held.seed is None else nullcontext():
        held.make(noise.handed, _to_draw_for(noise, weight))


def _to_draw_for(noise: WeightNoise, weight: Any) -> Tensor:
    """The whole weight to draw for. Laws of users may look at the numbers."""
    return dtensors.stand_in(weight) if noise.rests else dtensors.gathered(weight.detach())


def _state_of_first(weight: Any) -> AbstractContextManager[Any]:
    """A context in which torch's generators are in the state of the first process of the weight's mesh.

    A process whose state is the same draws on; another one has its own state back afterwards.
    """
    own = _seeds.states(weight.device)
    told = dtensors.of_first(own, weight)
    return nullcontext() if torch.equal(told, own) else _seeds.in_states(told, weight.device)


def apply_over_mesh(noise: WeightNoise, weight: Any, draw: Any, factor: float) -> Any:
    """The noisy weight that the law makes of a draw for the whole weight, in the parts of the clean one."""
    part = _noisy_part(noise, weight, draw, factor)
    if part is not None:
        return dtensors.from_part(part, weight)
    if noise.handed.gradient == "straight-through" and not noise.strength_names:
        with torch.no_grad():
            noisy = dtensors.spread(_whole(noise, weight, draw, factor), weight)
        return handing_on(weight, noisy)
    return dtensors.spread(_whole(noise, weight, draw, factor), weight)


def _whole(noise: WeightNoise, weight: Any, draw: Any, factor: float) -> Tensor:
    whole = dtensors.gathered(weight).contiguous()
    noisy = apply_draw(noise, whole, draw, factor)
    noise.lookout.note(noise, whole, noisy, factor)
    return noisy


def _noisy_part(noise: WeightNoise, weight: Any, draw: Any, factor: float) -> Tensor | None:
    """The own part of the noisy weight, made of that of the clean one; None where the law needs more of it."""
    law, cut = noise.handed.plain(), dtensors.cuts(weight)
    if weight.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float16):
        return None  # There torch rounds a number by its place in memory.
    own = _own(draw, weight, cut) if cut is not None and law.apply_part else None
    if cut is None or own is None:
        return None
    # One channel is in one part where the parts are cut between channels.
    channels = law.regions % weight.ndim if isinstance(law.regions, int) else None
    across = [place for place, dim in enumerate(cut) if dim is not None and dim != channels]
    part = weight.to_local()
    noisy: Tensor | None = law.apply_part(
        part, own, factor, lambda largest: dtensors.largest_of(largest, weight, across)
    )
    if noisy is None:
        return None
    noise.lookout.note(noise, part, noisy, factor)
    if noise.padding_row is None:
        return noisy
    clean = dtensors.places(weight, 0) == noise.padding_row
    return torch.where(clean.reshape(-1, *[1] * (part.ndim - 1)), part, noisy)


def _own(draw: Any, weight: Any, cut: Sequence[int | None]) -> Any:
    """What belongs to the own part of a weight of a draw for the whole weight; None where that cannot be said."""
    if isinstance(draw, Tensor):
        return dtensors.local_part(draw, weight) if draw.shape == weight.shape else None
    if type(draw) is not Key or any(dim is not None and dim > 1 for dim in cut):
        return None
    rows, whole, own = dtensors.places(weight, 0), weight.shape[1:].numel(), weight.to_local().shape[1:].numel()
    if own == whole:
        return draw[0], rows
    # Of rows that are cut, each part counts as a row: all are of one length.
    parts = whole // own
    return draw[0], rows * parts + dtensors.places(weight, 1)[0] * parts // weight.shape[1]
