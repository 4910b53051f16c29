"""Noise that differs from example to example, made one draw for all."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from weightnoise._attach.find import module_noise, noises
from weightnoise._checks import check_model
from weightnoise._errors import NotNoisyError

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def share_noise(model: ModuleT) -> ModuleT:
    """Give all examples of a batch one draw of the noise, as ``estimator="shared"`` does, and as a chip has it.

    Noise that was added with ``estimator="flipout"`` or ``"local"`` keeps its laws, and what they have learned.
    To measure how a model holds up that was trained with such noise: on the model itself, or on a copy of it.

    Args:
        model: a model with weight noise; it is changed in place.

    Returns:
        The same model.

    Raises:
        NotNoisyError: if the model carries no weight noise.

    Example:
        >>> model = add_weight_noise(nn.Linear(3, 2), 0.1, estimator="flipout")
        >>> share_noise(model).parametrizations.weight[0].estimator
        'shared'
    """
    check_model(model)
    found = noises(model)
    if not found:
        raise NotNoisyError("The model carries no weight noise: there is nothing to share.")
    for _, owner, noise in found:
        noise.estimator = "shared"
        carried = module_noise(owner)
        if carried is not None:
            carried.noises = carried.noises  # It works out anew which of them differ from example to example.
    return model
