"""The user's metric and model in an evaluation: what it returns, and what it may not disturb."""

from __future__ import annotations

import hashlib
import math
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, SupportsFloat, TypeAlias

import torch
from torch import Tensor, nn

from weightnoise._errors import NondeterministicMetricWarning, OptionError, OptionTypeError
from weightnoise._random import seeds as _seeds
from weightnoise._torch.modules import is_dtensor, unwrap

_HERE = str(Path(__file__).parents[1])

Metric: TypeAlias = Callable[[Any], float | Tensor | Mapping[str, float | Tensor]]


def measure(model: nn.Module, metric: Metric) -> dict[str, float]:
    """The entries of the metric by name; a single number has the name ""."""
    found = {key: _number(value) for key, value in entries(metric(model)).items()}
    if not found:
        raise OptionError("The metric must return a number or a dict of numbers, not an empty dict.")
    return found


@contextmanager
def own_numbers(model: nn.Module, seed: int) -> Iterator[None]:
    """Let what draws from torch's generator inside hang on ``seed`` alone; the generator comes back as it was.

    So draws may be measured in any order, in any process.
    """
    # torch's generator is one for all threads: workers that are threads take turns. The main thread does without,
    # since a metric takes long and other threads go on drawing.
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    worker = threading.current_thread() is not threading.main_thread()
    with _seeds.seeded(seed, device, alone=worker):
        yield


def entries(found: Any) -> dict[str, Any]:
    """Return the numbers of a metric by name."""
    return {str(key): value for key, value in found.items()} if isinstance(found, Mapping) else {"": found}


def _number(value: Any) -> float:
    if not isinstance(value, (float, Tensor)) and not isinstance(value, SupportsFloat):  # A slow question.
        raise OptionTypeError(f"The metric must return a number or a dict of numbers, not {value!r}.")
    return float(value.item() if isinstance(value, Tensor) else value)


def check_deterministic(found: Sequence[Mapping[str, float]]) -> bool:
    """Whether two runs of the metric without noise are alike; warn if not."""
    first, second = found
    same = first.keys() == second.keys() and all(
        value == second[key] or (math.isnan(value) and math.isnan(second[key])) for key, value in first.items()
    )
    if not same:
        warn(
            f"The metric differs between two runs without noise: {dict(first)} and {dict(second)}. What it draws "
            "itself (dropout in training mode, shuffled or sampled data) will look like an effect of the noise.",
            NondeterministicMetricWarning,
        )
    return same


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line of the user's code that has called the library."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def model_fingerprint(model: nn.Module) -> str:
    """The class of the model, and a hash of the names and bits of its clean weights and buffers."""
    digest = hashlib.sha256()
    for name, value in unwrap(model).state_dict().items():
        digest.update(name.encode())
        if isinstance(value, Tensor):
            value = value.full_tensor() if is_dtensor(value) else value  # type: ignore[attr-defined]
            bits = value.detach().to_dense().cpu().contiguous().reshape(-1).view(torch.uint8)
            numbers: Any = bits.numpy()
            digest.update(numbers)  # Where they lie, without a copy.
    return f"{type(unwrap(model)).__name__.removeprefix('Parametrized')} {digest.hexdigest()[:12]}"
