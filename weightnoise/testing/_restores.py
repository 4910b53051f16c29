"""Whether adding and removing noise leaves a model as it was, to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weightnoise._checks import check_model
from weightnoise._contexts import no_noise
from weightnoise._learned import learned_strengths
from weightnoise._select.choose import Spec
from weightnoise._weights import add_weight_noise, remove_weight_noise


def assert_restores(model: nn.Module, spec: Spec, *, min_ndim: int = 2) -> None:
    """Add noise to ``model``, remove it, and assert that the model is what it was, to the bit.

    Compared are the Parameters (identity, order, names, bits, gradients, ``requires_grad``), the
    buffers, the classes and attributes of all modules with their hooks, and torch's random state;
    while noise is on, the names, order, identity and ``state_dict()``.

    Args:
        model: any module without weight noise; it is left as it was.
        spec: as for `add_weight_noise`.
        min_ndim: as for `add_weight_noise`.

    Raises:
        AssertionError: saying what differs.

    Example:
        >>> assert_restores(nn.LSTM(3, 4), 0.1)
    """
    check_model(model)
    before = _snapshot(model)
    while_clean = _visible(model)
    add_weight_noise(model, spec, min_ndim=min_ndim)
    try:
        _assert_equal_items(while_clean, _visible(model), "while noise is on")
        with no_noise(model):
            _assert_equal_items(while_clean, _visible(model), "inside no_noise")
    finally:
        remove_weight_noise(model)
    _assert_equal_items(before, _snapshot(model), "after removal")


def _visible(model: nn.Module) -> dict[str, Any]:
    """Record what other code sees of a model: names, order, identity and values, without learned strengths."""
    added = learned_strengths(model)
    return {
        "parameters": [(name, id(value)) for name, value in model.named_parameters() if name not in added],
        "buffers": [(name, id(buffer)) for name, buffer in model.named_buffers()],
        "state_dict": [(name, _bits(value)) for name, value in model.state_dict().items() if name not in added],
    }


def _snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that adding and removing noise must leave as it was."""
    everything = _visible(model)
    for name, module in model.named_modules():
        everything[f"class of '{name}'"] = type(module)
        everything[f"attributes of '{name}'"] = {key: _frozen(value) for key, value in vars(module).items()}
    for name, parameter in model.named_parameters():
        grad = None if parameter.grad is None else (id(parameter.grad), _bits(parameter.grad))
        everything[f"parameter '{name}'"] = (_bits(parameter), parameter.requires_grad, parameter._version, grad)
    everything["torch's random state"] = torch.get_rng_state().tolist()
    return everything


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return [(key, id(item)) for key, item in value.items()]
    return [id(item) for item in value] if isinstance(value, (list, tuple, set)) else id(value)


def _bits(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    dense = value.detach().to_dense()
    return dense.shape, dense.dtype, dense.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()


def _assert_equal_items(before: Mapping[str, Any], after: Mapping[str, Any], when: str) -> None:
    differing = [key for key in [*before, *after] if before.get(key) != after.get(key)]
    if differing:
        raise AssertionError(f"Differs {when}: {', '.join(dict.fromkeys(differing))}.")
