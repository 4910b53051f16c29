"""What a law has learned or measured on the activations of a module: Parameters and buffers of that module.

They stand in a submodule, ``activation_noise``, so that optimizers, checkpoints, copies and DDP see them:
``0.activation_noise.output.range``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weightnoise._errors import UnsupportedActivationError
from weightnoise._noise.learning import Learning, Ties
from weightnoise._torch.groups import group_in_forward, together
from weightnoise._torch.layers import activation_shapes, channels_of
from weightnoise._torch.modes import in_transform, runs_eagerly
from weightnoise._torch.modules import ACTIVATION_NOISE, ActivationStates
from weightnoise.laws import Law
from weightnoise.laws._converter import converters

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class ActivationState(Learning):
    """What one law has learned, and the ranges that it has from the data.

    Attributes:
        measured: the converters whose ranges come from the data, by the ends of the names of their strengths.
        seen: how many batches each of them has seen.
        settled: whether all of them have their ranges.
        counted: the buffers that say so.
    """

    def __init__(self, law: Any, handed: Law, module: nn.Module, at: str) -> None:
        super().__init__()
        self.owner = None
        self.tensor_name = at
        self.law, self.handed = law, handed
        self.measured = {end: one for end, one in converters(handed) if one.from_data}
        self.seen = dict.fromkeys(self.measured, 0)
        self.settled = not self.measured
        self.counted: list[Tensor | None] = []
        self.built_for = torch.Size(activation_shapes(channels_of(module, at))[0])

    def set_up(self, like: Tensor, shared: dict[str, tuple[nn.Parameter, Ties]]) -> None:
        """Make what is learned, of the dtype and on the device of ``like``; ``shared`` has what groups share."""
        stand_in = like.new_zeros(self.built_for or ())
        groups = {f"range{end}": one.group for end, one in converters(self.handed)}
        learned: dict[str, nn.Parameter] = {}
        ties = None
        for name, value in self.handed.strengths(stand_in).items():
            learned[name] = nn.Parameter(value)
            if group := groups.get(name):
                ties = ties or Ties()
                learned[name], ties = shared.setdefault(group, (learned[name], ties))
        self.learn(learned, ties, stand_in)

    def forward(self) -> dict[str, Tensor]:
        """What is learned and measured, by name: a call, so that tools that offload modules bring it in place."""
        return self.strengths()

    def starts(self, value: Tensor, training: bool, place: str) -> dict[str, Tensor]:
        """What the law takes while ranges are being set: copies, which no later batch changes.

        Args:
            value: the activation; in training mode it sets the ranges.
            training: whether the module is in that mode.
            place: what to call it in an error.
        """
        if any(one.is_meta for one in self._strengths()) and not value.is_meta:
            raise UnsupportedActivationError(
                f"The converter on {place} would set a range that is offloaded, and lose it. Call "
                "weightnoise.calibrate_ranges(model, loader) before the model is offloaded."
            )
        self.count()
        if training and value.numel() and not self.settled:
            if in_transform():
                raise UnsupportedActivationError(
                    f"The converter on {place} would set its range inside a transformation of torch.func, which "
                    "cannot write it. Call weightnoise.calibrate_ranges(model, loader) first, or run the first "
                    "batches outside."
                )
            self._look(value, place)
        self.require_ranges(place)
        return {name: getattr(self, name).detach().clone() for name in self.strength_names}

    def require_ranges(self, place: str) -> None:
        """Raise an error while a range has no number."""
        if not self.settled and 0 in self.seen.values():
            raise UnsupportedActivationError(
                f"The converter on {place} takes its range from the data and has seen none, or none of finite "
                "numbers. Run a batch in training mode, or call weightnoise.calibrate_ranges(model, loader)."
            )

    def _look(self, value: Tensor, place: str) -> None:
        found, group = group_in_forward()
        if not found:
            raise UnsupportedActivationError(
                f"The converter on {place} would take its range from the batches of this process alone: forwards "
                "set ranges together in DistributedDataParallel only. Call "
                "weightnoise.calibrate_ranges(model, loader) in all processes before the model is wrapped."
            )
        for end, one in self.measured.items():
            if self.seen[end] < one.batches:
                range_now = one.measured(value)
                finite = range_now.isfinite().all().to(range_now)
                self.note(end, together(range_now, finite, group, one.range == "max"))
        self._see()

    def note(self, end: str, found: Tensor | None) -> None:
        """Take the range that one batch asks for into the range; None for one whose numbers are not finite."""
        if found is None:
            return
        own, count = getattr(self, f"range{end}"), self.seen[end]
        with torch.no_grad():
            most = self.measured[end].range == "max"
            own.copy_(over_batches(own, found.reshape(own.shape).to(own), count, most))
            self.seen[end] = count + 1
            getattr(self, f"batches{end}").fill_(count + 1)

    def settle(self, end: str, found: Tensor) -> None:
        """Set a range for good."""
        own = getattr(self, f"range{end}")
        with torch.no_grad():
            own.copy_(found.reshape(own.shape))
            self.seen[end] = self.measured[end].batches
            getattr(self, f"batches{end}").fill_(self.seen[end])
        self._see()

    def _see(self) -> None:
        self.settled = all(self.seen[end] >= one.batches for end, one in self.measured.items())

    def count(self) -> None:
        """Read from the buffers how many batches were seen."""
        counts = {end: getattr(self, f"batches{end}") for end in self.measured}
        self.counted = self._counts()
        self.seen = {end: 0 if count.is_meta else int(count) for end, count in counts.items()}
        self._see()

    def keep_up(self) -> None:
        """Count again where other buffers are in place of those that were counted, as in `functional_call`."""
        counts = self._counts()
        same = len(counts) == len(self.counted) and all(map(operator.is_, counts, self.counted))
        if not same and runs_eagerly() and not any(one is None or one.is_meta for one in counts):
            self.count()

    def _counts(self) -> list[Tensor | None]:
        return [self._buffers.get(f"batches{end}") for end in self.measured]

    def reset_parameters(self) -> None:
        """Give the law its first values; ranges from data have none then."""
        super().reset_parameters()
        self.count()

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.count()

    def extra_repr(self) -> str:
        """Return the text that `print(model)` shows."""
        return repr(self.law)


def over_batches(before: Tensor, now: Tensor, count: int, most: bool) -> Tensor:
    """The range of some batches and of one more: the largest, or the mean of all.

    Args:
        before: the range so far; any number where the count is 0.
        now: that which the batch asks for.
        count: how many batches there were.
        most: whether the largest is asked for.
    """
    if count == 0:
        return now
    return torch.maximum(before, now) if most else before + (now - before) / (count + 1)


def learned_shapes(handed: Law, module: nn.Module, at: str) -> dict[str, tuple[int, ...]]:
    """The Parameters that a law learns on the activations of ``module``, and their shapes."""
    return _shapes(handed.strengths(_zeros(activation_shapes(channels_of(module, at))[0])))


def learning_problem(handed: Law, module: nn.Module, at: str) -> str | None:
    """Why a law cannot learn on the activations of ``module``, or None."""
    shapes = activation_shapes(channels_of(module, at))
    found = [handed.strengths(_zeros(shape)) for shape in shapes]
    if not (found[0] or handed.given(_zeros(shapes[0]))):
        return None
    if handed.says("kl_divergence"):
        return "its divergence is that of weights"
    if any(_shapes(one) != _shapes(found[0]) for one in found):
        return (
            "it learns a strength for each weight, or for a dimension that it counts from the front, and "
            "activations have no fixed shape. ParametricNoise and Converter learn one for the tensor or for each "
            "channel: per='tensor', per='output' or per='input', or the dimension from the end, such as per=-1"
        )
    others = handed.strengths(
        torch.arange(math.prod(shapes[0]), dtype=torch.float32, device="cpu").reshape(shapes[0])
    )
    if any(not torch.equal(value.nan_to_num(), others[name].nan_to_num()) for name, value in found[0].items()):
        return "its first values are those of a weight, which is there. Use Converter, whose range comes from data"
    if len(found[0]) > 1 and any(one.group for _, one in converters(handed)):
        return (
            "it learns a range of a group, and something of its own besides. Put one of the two at the other side"
        )
    if isinstance(module, _CONTAINERS):
        return (
            f"what it learns is kept in a submodule, and a {type(module).__name__} calls or lists all of its "
            "submodules. Name one of its parts instead"
        )
    if ACTIVATION_NOISE in vars(module) or (
        ACTIVATION_NOISE in module._modules and not isinstance(module._modules[ACTIVATION_NOISE], ActivationStates)
    ):
        return f"the module has an attribute {ACTIVATION_NOISE!r} of its own"
    return None


def _zeros(shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(shape, dtype=torch.float32, device="cpu")


def _shapes(strengths: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Their shapes without the dimensions of length 1 in front."""
    shapes = {}
    for name, value in strengths.items():
        shape = list(value.shape)
        while shape and shape[0] == 1:
            del shape[0]
        shapes[name] = tuple(shape)
    return shapes


def put_state(module: nn.Module, state: ActivationState) -> None:
    """Register a state on the module that it belongs to."""
    if ACTIVATION_NOISE not in module._modules:
        module._modules[ACTIVATION_NOISE] = ActivationStates()
    module._modules[ACTIVATION_NOISE].add_module(state.tensor_name, state)  # type: ignore[union-attr]


def take_state(module: nn.Module, at: str) -> None:
    """Take the state of one side off, where there is one."""
    states = module._modules.get(ACTIVATION_NOISE)
    if states is not None and states._modules.pop(at, None) is not None and not states._modules:
        del module._modules[ACTIVATION_NOISE]


def state_of(module: nn.Module, at: str) -> Any:
    """The state of the law at one side of the module."""
    return module._modules[ACTIVATION_NOISE]._modules[at]  # type: ignore[union-attr]
