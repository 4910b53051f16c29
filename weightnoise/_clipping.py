"""Keeping the clean weights in range between optimizer steps."""

from __future__ import annotations

import torch
from torch import nn

from weightnoise._attach.attach import noises
from weightnoise._contexts import require_noise
from weightnoise._errors import UnsupportedParameterError
from weightnoise._torch.writing import written
from weightnoise.laws import Clip
from weightnoise.laws._scale import Per


def clip_weights(
    model: nn.Module,
    k: float | None = None,
    *,
    low: float | None = None,
    high: float | None = None,
    per: Per = "tensor",
) -> None:
    """Cut the clean weights that carry noise to a range, in place: after the optimizer step.

    The projection of hardware-aware training, whose devices hold a limited range: ``w`` is cut to
    ``[-k std(w), k std(w)]`` or to ``[low, high]``. `Clip` in a spec does the same in the forward alone.
    The standard deviation is that of now: a cut lowers it, so that repeated cuts without training shrink the
    range somewhat further before they settle.

    Args:
        model: a module with weight noise.
        k: how many standard deviations of the weights to keep; 2.5 where no bounds are given.
        low: the smallest weight, in units of the weight.
        high: the largest weight.
        per: ``"tensor"``, or the dimension of the channels that have a standard deviation each.

    Raises:
        ValueError: for the options that `Clip` refuses.
        NotNoisyError: if the model carries no weight noise.
        UnsupportedParameterError: if another parametrization makes one of the weights, or ``per`` does
            not fit it; nothing is changed then.

    Example:
        >>> model = add_weight_noise(nn.Linear(3, 2), 0.1)
        >>> clip_weights(model, low=-0.1, high=0.1)
        >>> bool((model.state_dict()["weight"].abs() <= 0.1).all())
        True

    Source:
        Joshi et al., Accurate deep neural network inference using computational phase-change
        memory, 2020, arXiv 1906.03138.
    """
    clip = Clip(k, low=low, high=high, per=per)
    weights: dict[int, nn.Parameter] = {}
    for name, owner, noise in require_noise(noises(model)):
        weight = owner._parameters.get(noise.tensor_name)
        if weight is None:
            raise UnsupportedParameterError(
                f"Parameter '{name}' is made by other parametrizations and cannot be clipped in place. "
                "Put Clip(...) first in its list of laws."
            )
        if reason := clip.problem(weight):
            raise UnsupportedParameterError(f"{clip!r} does not fit parameter '{name}': {reason}.")
        weights[id(weight)] = weight
    with torch.no_grad():
        clipped = [(weight, clip.apply(weight, None, 1.0)) for weight in weights.values()]
    with written(clipped):
        pass
