"""Keeping the clean weights in range between optimizer steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weightnoise._attach.find import noises
from weightnoise._checks import check_model
from weightnoise._errors import OptionError, UnsupportedParameterError
from weightnoise._holds import require_noise
from weightnoise._torch.modules import is_dtensor
from weightnoise._torch.writing import written
from weightnoise.laws import Clip
from weightnoise.laws._regions import Per
from weightnoise.laws._scale import statistic

_CUTS = 1000


def clip_weights(
    model: nn.Module,
    k: float | None = None,
    *,
    low: float | None = None,
    high: float | None = None,
    per: Per = "tensor",
    tile: tuple[int, int] | None = None,
) -> None:
    """Cut the clean weights that carry noise to a range, in place: after the optimizer step.

    The projection of hardware-aware training, whose devices hold a limited range: ``w`` is cut to
    ``[-k std, k std]`` or to ``[low, high]``. A cut lowers the standard deviation, so std is the one that the
    weights have afterwards: a second call changes nothing. `Clip` in a spec cuts in the forward alone, at the
    standard deviation of the uncut weights. Equal weights, which have none, stay as they are.

    Args:
        model: a module with weight noise.
        k: how many standard deviations of the weights to keep, above 1; 2.5 where no bounds are given.
        low: the smallest weight, in units of the weight.
        high: the largest weight.
        per: what has a standard deviation of its own: ``"tensor"``, ``"output"`` or ``"input"`` for each output or
            input of the layer, or the dimension of the channels.
        tile: rows and columns of the crossbars that each weight is cut into, as for `Gaussian`.

    Raises:
        ValueError: for the options that `Clip` refuses, and for a ``k`` of 1 or less, whose cuts never end.
        NotNoisyError: if the model carries no weight noise.
        UnsupportedParameterError: if another parametrization makes one of the weights, ``per`` does not fit
            it, or no range is left of it: of weights that are nearly all 0, or all of one sign and size, each
            cut lowers the standard deviation by so much that another one follows. Nothing is changed then.

    Example:
        >>> model = add_weight_noise(nn.Linear(3, 2), 0.1)
        >>> clip_weights(model, low=-0.1, high=0.1)
        >>> bool((model.state_dict()["weight"].abs() <= 0.1).all())
        True

    Source:
        Joshi et al., Accurate deep neural network inference using computational phase-change
        memory, 2020, arXiv 1906.03138.
    """
    check_model(model)
    clip = Clip(k, low=low, high=high, per=per, tile=tile)
    if clip.k is not None and clip.k <= 1:
        raise OptionError(
            f"clip_weights(k={clip.k!r}) would shrink the weights without end: some always lie outside of one "
            "standard deviation. Use a k above 1, or the bounds low and high."
        )
    weights: dict[int, tuple[str, nn.Parameter, Clip]] = {}
    for name, owner, noise in require_noise(noises(model)):
        weight = owner._parameters.get(noise.tensor_name)
        if weight is None:
            raise UnsupportedParameterError(
                f"Parameter '{name}' is made by other parametrizations and cannot be clipped in place. "
                "Put Clip(...) first in its list of laws."
            )
        own = clip.laid_out(noise.layout)
        if reason := own.problem(weight):
            raise UnsupportedParameterError(f"{clip!r} does not fit parameter '{name}': {reason}.")
        weights[id(weight)] = name, weight, own
    with torch.no_grad():
        clipped = [(weight, _clipped(own, name, weight)) for name, weight, own in weights.values()]
    with written(clipped):
        pass


def _clipped(clip: Clip, name: str, weight: Tensor) -> Tensor:
    """The weight, cut until another cut would change nothing."""
    if clip.k is None or weight.numel() == 0:
        return clip.apply(weight, None, 1.0)
    close = 1.0 + max(1e-6, torch.finfo(weight.dtype).eps)
    dtype = weight.dtype
    weight = weight.float() if dtype in (torch.float16, torch.bfloat16) else weight  # Rounded once, at the end.
    clipped = weight
    for _ in range(_CUTS):
        limit = clip.limit(clipped)
        outside = statistic(clipped, "absmax", clip.regions) > limit * close
        if not _any(outside):
            break
        clipped = torch.where(outside, clip.apply(clipped, None, 1.0), clipped)
    # Cut to next to nothing, a weight is its sign: with this deviation the range would go on shrinking.
    endless = outside & (clip.k * statistic(weight.sign(), "std", clip.regions) <= 1)
    if _any(endless | (limit.isinf() & clip.limit(weight).isfinite())):
        raise UnsupportedParameterError(
            f"clip_weights(k={clip.k!r}) leaves no range of parameter '{name}': too many of its weights are 0, or "
            "of one sign, so that each cut lowers the standard deviation and another one follows. Use a larger k "
            "or the bounds low and high, or leave the parameter without noise."
        )
    return clipped.to(dtype)


def _any(mask: Tensor) -> bool:
    return bool((mask.full_tensor() if is_dtensor(mask) else mask).any())  # type: ignore[attr-defined]
