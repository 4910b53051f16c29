"""Ranges of converters from the data, before training or without any."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from weightnoise._attach.activation_state import ActivationState, over_batches, state_of
from weightnoise._attach.find import activation_noises
from weightnoise._checks import check_choice, check_model
from weightnoise._contexts import no_noise
from weightnoise._errors import NotNoisyError, OptionError
from weightnoise._torch.groups import is_distributed, together
from weightnoise._torch.modules import ACTIVATION_NOISE, forward_of, state_kept, unwrap
from weightnoise.laws import Converter
from weightnoise.laws._ranges import METHODS, Method


def calibrate_ranges(
    model: nn.Module, loader: Any, *, method: Method | None = None, group: Any = None
) -> dict[str, Tensor]:
    r"""Set the ranges of all converters that take theirs from the data, learned or not, and keep them.

    The model runs in evaluation mode, without gradients and with all noise and all converters off, so that the
    ranges are those of the clean activations. Modes, buffers and statistics of normalisations come back. Ranges
    that are numbers in the law stay. A second call sets the ranges anew.

    Args:
        model: a module with `Converter` on its activations.
        loader: an iterable of batches: tensors, mappings of arguments, or tuples whose first item is one of these;
            or a function of the model that runs it.
        method: ``"max"``, ``"std"`` or ``"quantile"`` for all; None for what each `Converter` says. Its ``k`` and
            ``quantile`` count in any case.
        group: where several processes run, each calls this with its part of the data, and all get the same ranges:
            over the processes of this group; None for all.

    Returns:
        The ranges, by their names in ``state_dict()``; the layers of a group have one, the largest or the mean.

    Raises:
        NotNoisyError: if no converter of the model takes its range from the data.
        ValueError: for an unknown method, and if the batches never reach one of the converters; nothing is
            changed then.

    Example:
        >>> model = add_activation_noise(nn.Linear(3, 2), Converter(8, range="max"), at="input")
        >>> calibrate_ranges(model, [torch.tensor([[0.5, -2.0, 1.0]])])
        {'activation_noise.input.range': tensor([2.])}

    Source:
        Krishnamoorthi, Quantizing deep convolutional networks for efficient inference, 2018, arXiv 1806.08342.
    """
    check_model(model)
    check_choice("calibrate_ranges", "method", method, (None, *METHODS))
    model, looks = unwrap(model), []
    with state_kept(model), torch.no_grad(), no_noise(model), ExitStack() as stack:
        for name, module, noise in activation_noises(model):
            state = state_of(module, noise.at) if noise.learns else None
            own = [_Look(name, state, end, one, method or one.range) for end, one in _measured(state)]  # type: ignore[arg-type]
            looks += own
            for look in own:
                stack.callback(noise.watch(module, look).remove)
        if not looks:
            raise NotNoisyError(
                "No converter of the model takes its range from the data. Add one with add_activation_noise, such "
                "as Converter(8, range='std')."
            )
        model.eval()
        if callable(loader) and not isinstance(loader, Iterable):
            loader(model)
        else:
            for batch in loader:
                forward_of(model, batch)
    return _settled(looks, group)


def _measured(state: ActivationState | None) -> Iterable[tuple[str, Converter]]:
    return state.measured.items() if state is not None else ()


class _Look:
    """The range of one converter over batches: the largest, or the mean."""

    def __init__(self, name: str, state: Any, end: str, converter: Converter, method: Method) -> None:
        self.state, self.end, self.converter, self.method = state, end, converter, method
        self.place = f"the {state.tensor_name} of module '{name}'"
        self.key = ".".join(filter(None, (name, ACTIVATION_NOISE, state.tensor_name, f"range{end}")))
        self.count = 0
        self.own: Tensor = getattr(state, f"range{end}")
        self.found = torch.zeros_like(self.own, dtype=torch.float32, requires_grad=False)

    def __call__(self, value: Tensor) -> Tensor:
        if value.numel():
            now = self.converter.measured(value, self.method).reshape(self.found.shape).to(self.found)
            if bool(now.isfinite().all()):
                self.found = over_batches(self.found, now, self.count, self.method == "max")
                self.count += 1
        return value


def _settled(looks: list[_Look], group: Any) -> dict[str, Tensor]:
    if group is None and is_distributed():
        group = torch.distributed.group.WORLD
    shared: dict[int, list[tuple[_Look, Tensor]]] = {}  # By the range, which the layers of a group share.
    missing: list[str] = []
    for look in looks:
        count = torch.full((), look.count, dtype=torch.float32, device=look.found.device)
        ranges = together(look.found, count, group, look.method == "max")
        if ranges is None:
            missing.append(look.place)
        else:
            shared.setdefault(id(look.own), []).append((look, ranges))
    if missing:
        raise OptionError(
            f"calibrate_ranges: no batch has reached the converter on {missing[0]} with finite numbers. Call "
            "it before the model is compiled, with batches that run the whole model."
        )
    for layers in shared.values():
        each = torch.stack([ranges for _, ranges in layers])
        one = each.amax(0) if layers[0][0].method == "max" else each.mean(0)
        for look, _ in layers:
            look.state.settle(look.end, one)
    return {layers[0][0].key: layers[0][0].own.detach().clone() for layers in shared.values()}
