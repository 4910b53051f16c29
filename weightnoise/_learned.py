"""Learned noise strengths: their Parameters by name, and the variational divergence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weightnoise._attach.activation_state import state_of
from weightnoise._attach.find import activation_noises, noises
from weightnoise._checks import check_model
from weightnoise._contexts import no_noise
from weightnoise._errors import NotNoisyError, UnsupportedParameterError
from weightnoise._noise.learning import Learning
from weightnoise._torch.dtensors import in_one_piece
from weightnoise._torch.modules import unwrap


def learned_strengths(model: nn.Module) -> dict[str, nn.Parameter]:
    """The Parameters that learned laws have added to ``model``, by their names in ``named_parameters()``.

    For a learning rate of their own, to keep them out of weight decay, or to take their keys out of a
    checkpoint for the plain model.

    Args:
        model: any module.

    Returns:
        From name to Parameter, in the order of ``named_parameters()``; empty without learned laws.

    Example:
        >>> model = add_weight_noise(nn.Linear(3, 2), Variational())
        >>> list(learned_strengths(model))
        ['parametrizations.weight.0.rho']
    """
    check_model(model)
    learning: list[Learning] = [noise for _, _, noise in noises(model)]
    learning += [state_of(module, noise.at) for _, module, noise in activation_noises(model) if noise.learns]
    learned = {
        id(parameter)
        for noise in learning
        for parameter in (noise._parameters.get(name) for name in noise.strength_names)
        if parameter is not None
    }
    if not learned:  # Modules that are shared at many levels have more names than can be looked through.
        return {}
    named = unwrap(model).named_parameters(remove_duplicate=False)
    return {name: parameter for name, parameter in named if id(parameter) in learned}


def kl_divergence(model: nn.Module) -> Tensor:
    r"""The divergence of all `Variational` and `VariationalDropout` weights from their priors.

    `Variational`: ``sum KL(N(w, s^2) || N(0, prior_std^2))``; `VariationalDropout`: from the log-uniform prior;
    and what a law of your own with a ``kl_divergence`` says. With L the mean loss over N training examples,
    minimise ``L + kl_divergence(model) / N``. Each tied weight counts once. Noise need not be on.

    Args:
        model: a module with such noise.

    Returns:
        A scalar in nats, differentiable in the weights and in what the laws learn.

    Raises:
        NotNoisyError: if no weight of the model has such noise.
        UnsupportedParameterError: if such a law is not the first of its list, or in a `Protect`: the weight
            is then not the mean of the distribution.

    Example:
        >>> model = add_weight_noise(nn.Linear(3, 2), Variational())
        >>> kl_divergence(model).backward()

    Source:
        Blundell et al., Weight uncertainty in neural networks, 2015, arXiv 1505.05424; Kingma, Salimans and
        Welling, 2015, arXiv 1506.02557.
    """
    check_model(model)
    total: dict[int, Tensor] = {}
    with no_noise(model):
        for name, owner, noise in noises(model):
            if not noise.handed.says("kl_divergence"):
                continue
            strengths = {name: in_one_piece(one) for name, one in noise.strengths().items()}
            # Uses of a tied weight share what they learn.
            key = id(next(iter(noise.strengths().values()), noise))
            if key in total:
                continue
            # A wrapper that has a divergence speaks for the laws inside it.
            weight = in_one_piece(getattr(owner, noise.tensor_name))
            own = noise.handed.kl_divergence(weight, strengths)
            if own is None:
                raise UnsupportedParameterError(
                    f"Parameter '{name}' has {noise.law!r}: a variational law must come first and stand by "
                    "itself, not in Protect or in another law, for its divergence to be that of the weight."
                )
            total[key] = own
    if not total:
        raise NotNoisyError(
            "No weight of the model has Variational or VariationalDropout noise: there is no divergence to add."
        )
    return torch.stack(list(total.values())).sum()
