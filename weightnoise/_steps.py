"""Moving the weights along a draw, which a seed stands for: zeroth-order training, evolution strategies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from weightnoise._attach.find import noises
from weightnoise._checks import check_model, check_seed, check_sign
from weightnoise._errors import OptionError, UnsupportedParameterError, WeightNoiseError, raise_problems
from weightnoise._holds import layer_seeds, require_noise
from weightnoise._noise.draws import apply_draw
from weightnoise._noise.held import HeldDraw
from weightnoise._noise.weight_noise import WeightNoise
from weightnoise._random import philox as _engine
from weightnoise._random import seeds as _seeds
from weightnoise._torch.modules import is_dtensor


def step_along(model: nn.Module, seed: int, amount: float, *, sign: int = 1) -> None:
    r"""Move the clean weights along the draw of a seed, in place: ``w += amount * (noisy - w)``.

    ``noisy`` is the weight that a forward sees inside ``hold_noise(model, seed=seed, sign=sign)``, at the strength
    of now, `scale_noise` and schedules included; whether noise is on does not matter. So a seed stands for a
    direction, as long as the weights, that is never kept or sent: w, one parameter at a time, is all the memory it
    takes, and large float32 weights with `Gaussian` noise are changed in one pass, from the key of the draw.

    Where ``noisy - w`` is the same for every w (`Gaussian` and `Uniform` without ``relative_to``,
    `LearnedGaussian`, `Variational`), ``-amount`` takes a step back, up to rounding. Other noise is that of the
    weight of now, so that the way back ends beside w, by a second-order term. Evaluate inside `hold_noise` then,
    which leaves the weights as they are, and step once.

    A step that rounds away is lost: in bfloat16 one below 1/256 of the weight. Estimators of a loss L, from m
    seeds with draws ``x_i = noisy_i - w`` of standard deviation s:

    - MeZO, central differences: ``step_along(model, seed, -lr * (L(w + x) - L(w - x)) / (2 s^2))``;
    - evolution strategies: for each i, ``step_along(model, seed_i, -lr * L(w + x_i) / (m s^2))``, with losses of
      mean zero.

    Args:
        model: a module with weight noise.
        seed: of the draw: that of `hold_noise`, with independent numbers for each name.
        amount: how far, in units of the draw; 1 for the noisy weight itself; finite, of either sign.
        sign: -1 for the mirrored draw. For noise symmetric about the weight that is ``-amount``.

    Raises:
        NotNoisyError: if the model carries no weight noise.
        ValueError: for a seed that is no whole number, an amount that is not finite, and a sign that is neither 1
            nor -1.
        UnsupportedParameterError: with every weight that has no one noisy weight to move to, before any is moved:
            made by other parametrizations, sharded, under an ``estimator``, or tied with another law on each use.
            If a law of your own fails, the weights before it have moved.

    Example:
        >>> model = add_weight_noise(nn.Linear(3, 2), 0.1)
        >>> step_along(model, seed=0, amount=1.0)
        >>> step_along(model, seed=0, amount=-1.0)  # Where it began.

    Source:
        MeZO: Malladi et al., Fine-tuning language models with just forward passes, 2023, arXiv 2305.17333;
        evolution strategies: Salimans et al., 2017, arXiv 1703.03864.
    """
    check_model(model)
    seed = check_seed("step_along", seed)
    check_sign("step_along", sign)
    amount = float(amount)
    if not math.isfinite(amount):
        raise OptionError(f"step_along(amount=...) must be a finite number, got {amount!r}.")
    found = require_noise(noises(model))
    steps, layers = _weights(found), layer_seeds(found, seed)
    with torch.no_grad():
        for name, (weight, noise) in steps.items():
            own = HeldDraw(_seeds.derive_seed(seed, name), sign, die=seed, layer=layers.get(id(noise)))
            _add_draw(noise, weight, own, amount)


def _add_draw(noise: WeightNoise, weight: Tensor, held: HeldDraw, amount: float) -> None:
    """Add ``amount * (noisy - weight)`` to a weight in place, for a draw that is held under a seed.

    Within a ``torch.no_grad()``. The strength is that of now, whatever draw is held.
    """
    factor = abs(noise.control.factor) * held.sign
    if noise.takes_keys and weight.is_cpu and _engine.can_fuse(weight) and not weight.is_inference():
        with _seeds.seeded(held.seed or 0, weight.device):
            key = int(_seeds.key())
        rows = weight[:0] if noise.padding_row is None else weight[noise.padding_row :][:1]
        clean = rows.clone()
        noise.handed.apply_key(weight, key, factor * amount, out=weight)
        increment_version(weight)  # What C has written, autograd has not seen.
        rows.copy_(clean)
        return
    draw = held.draw(noise.handed, weight)
    if noise.handed.deviation(weight, noise.strengths()) is not None:  # Linear: rounded once.
        weight.copy_(apply_draw(noise, weight, draw, factor * amount))
    else:
        weight.add_(apply_draw(noise, weight, draw, factor) - weight, alpha=amount)


def _weights(noisy: Sequence[tuple[str, nn.Module, WeightNoise]]) -> dict[str, tuple[Tensor, WeightNoise]]:
    """Each Parameter once, under the name that `hold_noise` seeds it by."""
    found: dict[str, tuple[Tensor, WeightNoise]] = {}
    first: dict[int, WeightNoise] = {}
    problems: list[WeightNoiseError] = []
    for name, owner, noise in noisy:
        weight = owner._parameters.get(noise.tensor_name)
        before = None if weight is None else first.setdefault(id(weight), noise)
        reason = _problem(weight, noise, noise if before is None else before)
        if reason is not None:
            problems.append(UnsupportedParameterError(f"Parameter '{name}' {reason}"))
        elif weight is not None and before is noise:
            found[name] = weight, noise
    raise_problems(problems)
    return found


def _problem(weight: Tensor | None, noise: WeightNoise, first: WeightNoise) -> str | None:
    """Why a weight has no one noisy weight to move to, with the way out."""
    if weight is None:
        return (
            "is made by other parametrizations and cannot be moved in place. Remove those first with "
            "torch.nn.utils.parametrize.remove_parametrizations, or leave it clean with None."
        )
    if is_dtensor(weight):
        return (
            "is a DTensor (fully_shard, tensor parallelism), of which a process has one part alone. Step a whole "
            "model, as every process of data parallelism has it."
        )
    if noise.estimator != "shared":
        return (
            f"has estimator={noise.estimator!r}: each example has noise of its own, and no draw of the weight is "
            "what its loss has seen. Add the noise with estimator='shared'."
        )
    if repr(first.law) != repr(noise.law):
        return f"is tied, with {first.law!r} on one use and {noise.law!r} on this one. Use one law for both."
    return None
