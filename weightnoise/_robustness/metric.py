"""The user's metric and model in an evaluation: what it returns, and what it may not disturb."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat, TypeAlias

import torch
from torch import Tensor, nn

from weightnoise._contexts import no_noise
from weightnoise._errors import NondeterministicMetricWarning, OptionTypeError
from weightnoise._torch.modules import is_dtensor, unwrap

Metric: TypeAlias = Callable[[Any], float | Tensor | Mapping[str, float | Tensor]]


def measure(model: nn.Module, metric: Metric) -> dict[str, float]:
    """The entries of the metric by name; a single number has the name ""."""
    return {key: _number(value) for key, value in entries(metric(model)).items()}


def entries(found: Any) -> dict[str, Any]:
    """Return the numbers of a metric by name."""
    return {str(key): value for key, value in found.items()} if isinstance(found, Mapping) else {"": found}


def _number(value: Any) -> float:
    if not isinstance(value, SupportsFloat):
        raise OptionTypeError(f"The metric must return a number or a dict of numbers, not {value!r}.")
    return float(value.item() if isinstance(value, Tensor) else value)


def check_deterministic(model: nn.Module, metric: Metric) -> None:
    """Warn if the metric differs between two runs without noise."""
    with no_noise(model):
        first, second = measure(model, metric), measure(model, metric)
    same = first.keys() == second.keys() and all(
        value == second[key] or (math.isnan(value) and math.isnan(second[key])) for key, value in first.items()
    )
    if not same:
        warnings.warn(
            f"The metric differs between two runs without noise: {first or {}} and {second}. What it draws itself "
            "(dropout in training mode, shuffled or sampled data) will look like an effect of the noise.",
            NondeterministicMetricWarning,
            stacklevel=4,
        )


def fingerprint(model: nn.Module) -> str:
    """The class of the model, and a hash of the names and bits of its clean weights and buffers."""
    digest = hashlib.sha256()
    for name, value in unwrap(model).state_dict().items():
        digest.update(name.encode())
        if isinstance(value, Tensor):
            value = value.full_tensor() if is_dtensor(value) else value  # type: ignore[attr-defined]
            bits = value.detach().to_dense().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(bits.numpy().tobytes())
    return f"{type(unwrap(model)).__name__.removeprefix('Parametrized')} {digest.hexdigest()[:12]}"
