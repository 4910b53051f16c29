"""What a law has learned or measured on the activations of a module: Parameters and buffers of that module.

They stand in a submodule, ``activation_noise``, so that optimizers, checkpoints, copies and DDP see them:
``0.activation_noise.output.range``.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from weightnoise._errors import UnsupportedActivationError
from weightnoise._noise.learning import Learning, Ties
from weightnoise._torch.groups import group_in_forward, together
from weightnoise._torch.layers import activation_shapes, channels_of
from weightnoise._torch.modes import in_transform, runs_eagerly
from weightnoise._torch.modules import ACTIVATION_NOISE, ActivationStates
from weightnoise.laws import Law
from weightnoise.laws._converter import Converter, converters

Shared: TypeAlias = "dict[str, tuple[dict[str, nn.Parameter], dict[str, Tensor], Ties]]"  # By group.


class ActivationState(Learning):
    """What one law has learned, and the ranges that it has from the data.

    Attributes:
        measured: the converters whose ranges come from the data, by the ends of the names of their strengths.
        seen: how many batches each of them has seen.
        settled: whether all of them have their ranges.
        counted: the buffers that say so, and how often each had been changed in place.
    """

    def __init__(self, law: Any, handed: Law, module: nn.Module, at: str) -> None:
        super().__init__()
        self.owner = None
        self.tensor_name = at
        self.law, self.handed = law, handed
        self.measured = {end: one for end, one in converters(handed) if one.from_data}
        self.seen = dict.fromkeys(self.measured, 0)
        self.settled = not self.measured
        self.counted: list[tuple[Tensor | None, int]] = []
        self.built_for = torch.Size(activation_shapes(channels_of(module, at))[0])

    def set_up(self, like: Tensor, shared: Shared) -> None:
        """Make what is learned, of the dtype and on the device of ``like``; ``shared`` has what groups share."""
        stand_in = like.new_zeros(self.built_for or ())
        learned = {name: nn.Parameter(value) for name, value in self.handed.strengths(stand_in).items()}
        given, ties = self.given(stand_in), None
        for group in filter(None, (one.group for _, one in converters(self.handed))):  # One, and nothing besides.
            learned, given, ties = shared.setdefault(group, (learned, given, Ties()))
            ties.uses += 1
        self.learn(learned, given, ties)

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
            if self.seen[end] < self.needed(one):
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
            self.seen[end] = self.needed(self.measured[end])
            getattr(self, f"batches{end}").fill_(self.seen[end])
        self.counted = self._counts()
        self._see()

    def _see(self) -> None:
        self.settled = all(self.seen[end] >= self.needed(one) for end, one in self.measured.items())

    def needed(self, converter: Converter) -> int:
        """How many batches set a range: those of each layer that has it."""
        return converter.batches * (1 if self.ties is None else self.ties.uses)

    def count(self) -> None:
        """Read from the buffers how many batches were seen: none where the range is 0, which is no range."""
        self.counted = self._counts()
        for end in self.measured:
            count, own = getattr(self, f"batches{end}"), self._buffers.get(f"range{end}")
            empty = count.is_meta or (own is not None and not own.is_meta and not bool(own.any()))
            self.seen[end] = 0 if empty else int(count)
        self._see()

    def keep_up(self) -> None:
        """Count again where buffers were written by hand, or others stand there, as in `functional_call`."""
        counts = self._counts()
        same = len(counts) == len(self.counted) and all(
            one is other and version == before
            for (one, version), (other, before) in zip(counts, self.counted, strict=True)
        )
        if not same and runs_eagerly() and not any(one is None or one.is_meta for one, _ in counts):
            self.count()

    def _counts(self) -> list[tuple[Tensor | None, int]]:
        names = [f"{name}{end}" for end in self.measured for name in ("batches", "range")]
        buffers = [self._buffers.get(name) for name in names if name not in self._parameters]
        return [(one, -1 if one is None or one.is_inference() else one._version) for one in buffers]

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


def put_state(module: nn.Module, state: ActivationState) -> None:
    """Register a state on the module that it belongs to."""
    if ACTIVATION_NOISE not in module._modules:
        module._modules[ACTIVATION_NOISE] = ActivationStates()
    module._modules[ACTIVATION_NOISE].add_module(state.tensor_name, state)  # type: ignore[union-attr]


def take_state(module: nn.Module, at: str) -> None:
    """Take the state of one side off, where there is one."""
    states = module._modules.get(ACTIVATION_NOISE)
    state: Any = None if states is None else states._modules.pop(at, None)
    if state is not None and state.ties is not None:
        state.ties.uses -= 1  # Of a group of layers.
    if state is not None and states is not None and not states._modules:
        del module._modules[ACTIVATION_NOISE]


def state_of(module: nn.Module, at: str) -> Any:
    """The state of the law at one side of the module."""
    return module._modules[ACTIVATION_NOISE]._modules[at]  # type: ignore[union-attr]
