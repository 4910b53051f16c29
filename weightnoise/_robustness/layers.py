"""Where noise may go: what the noise on each parameter does to its layer, and to the model."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from weightnoise._attach.find import noises
from weightnoise._attach.per_example import estimator_problem, output_variance
from weightnoise._checks import check_count, check_model, check_seed
from weightnoise._contexts import hold_noise, no_noise, only_noise
from weightnoise._errors import OptionError
from weightnoise._noise.weight_noise import WeightNoise
from weightnoise._random import seeds as _seeds
from weightnoise._robustness.cells import Cell, noisy
from weightnoise._robustness.layer_table import LayerNoise, LayerReport
from weightnoise._robustness.plan import check_noisy, check_shared, law_name
from weightnoise._select.candidates import clean_tensor
from weightnoise._select.choose import Spec
from weightnoise._torch.layers import precise_products
from weightnoise._torch.modules import forward_of, state_kept
from weightnoise.laws._scale import wide


@dataclass
class _Seen:
    """What the calls of a module took in and put out, in one forward of the model."""

    inputs: list[Any]
    outputs: list[Any]


def layer_report(
    model: nn.Module,
    law: Spec | None,
    batch: Any,
    *,
    draws: int = 20,
    seed: int = 0,
    forward: Callable[[Any, Any], Any] | None = None,
) -> LayerReport:
    r"""What the noise on each parameter does, when it alone is noisy: where may noise go?

    With w the weight, y the outputs of its layer and z those of the model, E the mean over draws and norms over
    all elements of the batch: the strength ``sqrt(E |dw|^2 / n)``; the signal-to-noise ratio ``10 log10(|w|^2 / E
    |dw|^2)`` in dB; the relative error of the layer ``sqrt(E |dy|^2) / |y|`` and of the model ``sqrt(E |dz|^2) /
    |z|``. Where the noise is independent Gaussian on the weight of a Linear or Conv layer, strength and error of
    the layer are exact: ``E |dy|^2 = sum layer(x^2; sigma^2)``. The others are means over draws.

    Args:
        model: a plain model, with ``law``; or one that carries weight noise, with None.
        law: what `add_weight_noise` takes.
        batch: a tensor; a mapping, given by name; or a tuple or list, as of a DataLoader, the first item of which
            the model takes.
        draws: how many, for each parameter.
        seed: of the draws, which are those of `evaluate_robustness`.
        forward: ``forward(model, batch)`` returns the outputs, for batches of other kinds.

    Returns:
        A `LayerReport`, the most sensitive parameter first. The model is in eval mode meanwhile, and comes back
        as it was.

    Raises:
        WeightNoiseError: what `add_weight_noise` raises; `OptionError` for options that cannot be, and for outputs
            without a floating-point tensor.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> report = layer_report(model, Gaussian(0.1, relative_to="rms"), torch.ones(5, 3))
        >>> sorted(row.name for row in report.rows), round(report.rows[0].snr_db)
        (['0.weight', '2.weight'], 20)
    """
    check_model(model)
    seed = check_seed("layer_report", seed)
    draws = check_count("layer_report", "draws", draws, 1)
    check_shared(model)
    if law is None:
        check_noisy(model)
    call = forward or forward_of
    seeds = [one for one, _ in _seeds.numbered(seed, draws, False)]
    with torch.no_grad(), state_kept(model), noisy(model, Cell("", 0, law, 1.0), looked=False) as on:
        model.eval()
        mine = [
            (name, owner, noise)
            for name, owner, noise in noises(model)
            if any(noise is one for one in on.values())
        ]
        owners = list(dict.fromkeys(owner for _, owner, _ in mine))
        with no_noise(model), _watched(owners) as seen:
            clean = _floats(call(model, batch))
        if not clean:
            raise OptionError(
                "layer_report needs outputs with a floating-point tensor; give forward=... to choose one."
            )
        rows = [
            _row(model, name, owner, noise, seen[owner], clean, seeds, lambda: call(model, batch))
            for name, owner, noise in mine
        ]
    return LayerReport(tuple(sorted(rows, key=lambda row: -row.model_error)), draws, seed)


def _row(
    model: nn.Module,
    name: str,
    owner: nn.Module,
    noise: WeightNoise,
    before: _Seen,
    clean: Sequence[Tensor],
    seeds: Sequence[int],
    run: Callable[[], Any],
) -> LayerNoise:
    """What the noise on one parameter does."""
    weight = clean_tensor(owner, noise.tensor_name)
    of_weight, of_layer, of_model = [], [], []
    for seed in seeds:
        with only_noise(model, noise), hold_noise(model, seed=seed), _watched([owner]) as seen:
            of_model.append(_distance(_floats(run()), clean))
            of_layer.append(_distance(_floats(seen[owner].outputs), _floats(before.outputs)))
            if weight is not None:
                of_weight.append((noise.sample(weight).double() - weight.double()).square().mean().item())
    exact = None if weight is None else _exact(owner, noise, weight, before)
    strength, layer = exact or (math.sqrt(_mean(of_weight)), math.sqrt(_mean(of_layer)))
    rms = math.nan if weight is None else weight.double().square().mean().sqrt().item()
    mean = _mean(of_model)
    known = len(of_model) > 1 and all(map(math.isfinite, of_model))  # Infinite outputs have no spread.
    spread = statistics.stdev(of_model) / math.sqrt(len(of_model)) if known else math.nan
    return LayerNoise(
        name=name,
        law=law_name(noise.law),
        strength=strength,
        snr_db=20 * math.log10(rms / strength) if strength > 0 and rms > 0 else math.inf,
        layer_error=layer,
        exact=exact is not None,
        model_error=math.sqrt(mean),
        model_error_sem=spread / (2 * math.sqrt(mean)) if mean > 0 else spread,
    )


def _exact(owner: nn.Module, noise: WeightNoise, weight: Tensor, before: _Seen) -> tuple[float, float] | None:
    """Strength and relative error of the layer in closed form; None where there is none."""
    deviation = noise.handed.deviation(weight, noise.strengths())
    inputs = [one for one in before.inputs if isinstance(one, Tensor)]
    problem = estimator_problem("local", owner, noise.tensor_name, noise.handed, weight)
    if deviation is None or problem is not None or not inputs or len(inputs) < len(before.inputs):
        return None
    variance = (wide(deviation) * noise.control.factor).square()
    moved = 0.0
    for one, output in zip(inputs, before.outputs, strict=True):
        with precise_products(one):
            of_each = output_variance(owner, wide(one).square(), variance, weight)
        moved += of_each.double().expand_as(output).sum().item()
    size = sum(one.double().square().sum().item() for one in _floats(before.outputs))
    strength = variance.double().expand_as(weight).mean().sqrt().item()
    return strength, math.sqrt(moved / size) if size else math.nan


@contextmanager
def _watched(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, _Seen]]:
    """What goes into and comes out of modules inside."""
    seen = {module: _Seen([], []) for module in modules}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        seen[module].inputs.append(args[0] if args else next(iter(kwargs.values()), None))
        seen[module].outputs.append(output)

    hooks = [module.register_forward_hook(keep, with_kwargs=True) for module in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _floats(output: Any) -> list[Tensor]:
    """The floating-point tensors of an output, in order."""
    return [one for one in pytree.tree_leaves(output) if isinstance(one, Tensor) and one.is_floating_point()]


def _distance(found: Sequence[Tensor], clean: Sequence[Tensor]) -> float:
    """The square of the relative error; NaN where there is nothing to compare."""
    if not clean or [one.shape for one in found] != [one.shape for one in clean]:
        return math.nan
    pairs = zip(found, clean, strict=True)
    moved = sum((one.double() - other.double()).square().sum().item() for one, other in pairs)
    size = sum(other.double().square().sum().item() for other in clean)
    return moved / size if size else math.nan


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
