"""Adding weight noise to a model, removing it, and asking about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeAlias, TypeVar

from torch import Tensor, nn

from weightnoise._attach.attach import attach, detach
from weightnoise._attach.find import module_noise, noises
from weightnoise._attach.module_noise import own_noises
from weightnoise._checks import check_choice, check_model
from weightnoise._errors import NotNoisyError, OptionError, UnsupportedParameterError
from weightnoise._noise.control import When
from weightnoise._noise.drawing import Memory
from weightnoise._noise.frames import Frames
from weightnoise._noise.learning import Ties
from weightnoise._noise.weight_noise import Estimator, WeightNoise
from weightnoise._select.choose import Spec
from weightnoise._select.precision import warn_if_lost
from weightnoise._select.resolve import Placement, resolve
from weightnoise._torch.dtensors import in_one_piece
from weightnoise._torch.modules import is_dtensor
from weightnoise._torch.writing import written
from weightnoise.laws import Noise

ModuleT = TypeVar("ModuleT", bound=nn.Module)
_Learned: TypeAlias = "dict[object, tuple[dict[str, nn.Parameter], Ties]]"


def add_weight_noise(
    model: ModuleT,
    spec: Spec,
    *,
    when: When = "always",
    min_ndim: int = 2,
    estimator: Estimator = "shared",
    memory: Memory = "keep",
    batch_dim: int | None = None,
) -> ModuleT:
    """Put noise on weights of ``model``: each forward uses ``w + noise``, training updates ``w``.

    Noise is drawn once in every forward of the module that owns the weight; outside of every forward
    ``module.weight`` is the clean Parameter, but inside `hold_noise`. The gradient is the one
    at the noisy weight and lands on the clean Parameter, which stays where it is: names, order,
    identity, ``state_dict()`` and optimizers are those of the plain model.

    Args:
        model: any module, pretrained or not; it is changed in place. A module that `torch.compile`
            made is changed inside.
        spec: which noise goes where:

            - a number: ``Gaussian(std=number)``;
            - a law, or a list of laws applied in that order: on every floating-point parameter
              with at least ``min_ndim`` dimensions, so that biases and scales stay clean, whatever
              their shape;
            - a mapping: keys are shell globs on the full clean name (``*`` crosses dots) or module
              classes, values are laws; the first key that matches wins, ``None`` leaves clean, and
              an exact name is exempt from ``min_ndim``;
            - a function ``(name, parameter, module) -> law or None``, asked for every parameter.
        when: ``"always"``, in training and in evaluation, until `no_noise` or removal; or
            ``"training"``, only while the owning module is in training mode, as dropout does.
        min_ndim: the fewest dimensions of a parameter that a law covers unless named exactly. The Parameters of
            torch's normalisations count as one dimension, and so do layer scales (C, 1, 1) and class tokens
            (1, 1, D): what has at most one dimension longer than 1, and is no weight of torch's Linear, Conv,
            recurrent, attention and embedding layers, and no matrix in another module of its class.
        estimator: ``"shared"``: all examples of a batch see one draw. For the weights of Linear and Conv
            layers alone, noise of its own for each example, which leaves the distribution of an example's
            noise as it is and makes the gradient less variable: ``"flipout"``, the draw with the signs of
            its rows and columns flipped at random, for laws symmetric about the weight; ``"local"``, noise
            on the layer's output with the variance that the weight noise has there, for independent
            Gaussian laws. A read outside of the layer's forward has the shared draw.
        memory: ``"keep"``: autograd keeps the noisy weights until the backward, as it keeps activations:
            as much memory again as the weights. ``"recompute"``: the backward makes them again, one layer
            at a time, from a 64-bit key; the same numbers, and a second draw. Compiled code and dtypes
            that autocast casts to decide for themselves. Saved-tensor hooks around it see no tensors of these
            layers before torch 2.7. Not with an ``estimator``.
        batch_dim: for ``estimator="flipout"``, the dimension of the examples in what Linear layers take in: 1 for
            (time, batch, channels). None asks the nearest module around the layer that has a ``batch_first``, or
            direct parts that have one and agree, as nn.Transformer, its layers, nn.MultiheadAttention and nn.LSTM;
            else it is 0. Inputs without that many dimensions have their examples in dimension 0, as those of
            convolutions always do. `plan_weight_noise` shows it.

    Returns:
        The same model.

    Raises:
        TypeError: if ``model`` is no module.
        WeightNoiseError: with every problem found, before anything is changed: patterns that match
            nothing or are shadowed (`NoMatchError`), things that are no laws (`SpecError`), noise
            already there (`AlreadyNoisyError`), tied parameters covered on one side
            (`TiedParameterError`), parameters that cannot carry noise (`UnsupportedParameterError`).

    Warns:
        LeftCleanWarning: if what stays clean for its shape may be a matrix with one row or column.
        NoiseRoundsAwayWarning: if noise is too small for the precision of a weight, here or later, in a forward.
        InfiniteNoiseWarning: in the same way, if it is beyond the largest numbers of the dtype.

    Example:
        >>> model = add_weight_noise(nn.Linear(3, 2), Gaussian(std=0.1))
        >>> bool((model(torch.ones(3)) == model(torch.ones(3))).all())
        False
        >>> model.weight is dict(model.named_parameters())["weight"]  # Noise is there in forwards alone.
        True
        >>> sorted(model.state_dict())
        ['bias', 'weight']

    Source:
        Murray and Edwards, 1994; Graves, 2011; the mechanism is `torch.nn.utils.parametrize`. Flipout: Wen
        et al., 2018, arXiv 1803.04386; local reparameterization: Kingma et al., 2015, arXiv 1506.02557.
    """
    check_choice("add_weight_noise", "when", when, ("always", "training"))
    check_choice("add_weight_noise", "estimator", estimator, ("shared", "flipout", "local"))
    check_choice("add_weight_noise", "memory", memory, ("keep", "recompute"))
    if memory == "recompute" and estimator != "shared":
        raise OptionError(f"add_weight_noise(memory='recompute') goes with estimator='shared', got {estimator!r}.")
    placements = resolve(model, spec, min_ndim, estimator, batch_dim, memory)
    lost = warn_if_lost(placements)
    attach_all(placements, when, estimator, memory)
    for name, _, noise in noises(model) if lost else ():
        noise.lookout.warned |= name in lost
    return model


def remove_weight_noise(model: ModuleT, *, bake: bool = False) -> ModuleT:
    """Take all weight noise off ``model``: same Parameter objects, values, class, order and hooks.

    Other parametrizations (weight_norm, spectral_norm, orthogonal) stay.

    Args:
        model: a model with weight noise; it is changed in place.
        bake: leave one draw in the weights, as in a device that has been programmed once: the held
            draw inside `hold_noise`, else a fresh one. Tied uses get the first one's draw.

    Returns:
        The same model.

    Raises:
        NotNoisyError: if the model carries no weight noise.
        UnsupportedParameterError: for ``bake`` on a tensor that other parametrizations make, or on a sharded one.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> weight = model.weight
        >>> remove_weight_noise(add_weight_noise(model, 0.1)).weight is weight
        True
    """
    check_model(model)
    found = noises(model)
    if not found:
        raise NotNoisyError("The model carries no weight noise: there is nothing to remove.")
    own: dict[nn.Module, dict[str, WeightNoise]] = {}
    for _, owner, noise in found:
        own.setdefault(owner, {})[noise.tensor_name] = noise
    with written(_baked(found)) if bake else nullcontext():
        _detach_all(own)
    return model


def has_weight_noise(model: nn.Module) -> bool:
    """Whether any parameter of ``model`` carries weight noise, on or off.

    Args:
        model: any module.

    Example:
        >>> has_weight_noise(nn.Linear(3, 2))
        False
    """
    check_model(model)
    return bool(noises(model))


def noisy_parameters(model: nn.Module) -> dict[str, Noise]:
    """The parameters of ``model`` that carry weight noise, with their laws.

    Args:
        model: any module.

    Returns:
        From full clean name to law, in parameter order.

    Example:
        >>> noisy_parameters(add_weight_noise(nn.Linear(3, 2), 0.1))
        {'weight': Gaussian(std=0.1)}
    """
    check_model(model)
    return {name: noise.law for name, _, noise in noises(model)}


def attach_all(placements: Sequence[Placement], when: When, estimator: Estimator, memory: Memory) -> None:
    owned: dict[nn.Module, list[Placement]] = {}
    for placement in placements:
        owned.setdefault(placement.candidate.owner, []).append(placement)
    learned: _Learned = {}
    done: dict[nn.Module, dict[str, WeightNoise]] = {}
    try:
        for owner, own in owned.items():
            before = module_noise(owner)
            frames = Frames() if before is None else before.frames
            options = when, frames, learned, estimator, memory
            made = {placement.candidate.tensor_name: _noise(placement, *options) for placement in own}
            attach(owner, made)
            done[owner] = made
    except BaseException:
        for owner, made in done.items():
            detach(owner, made)
        raise


def _detach_all(own: Mapping[nn.Module, Mapping[str, WeightNoise]]) -> None:
    try:
        for owner, mine in own.items():
            detach(owner, mine)
    except BaseException:
        for owner, mine in own.items():
            left = [noise for _, noise in own_noises(owner)]
            gone = {name: noise for name, noise in mine.items() if noise not in left}
            if gone:
                attach(owner, gone)
        raise


def _noise(
    placement: Placement, when: When, frames: Frames, learned: _Learned, estimator: Estimator, memory: Memory
) -> WeightNoise:
    """The noise of a site; uses of one tied parameter under equal laws learn the same strengths."""
    one, dim, row = placement.candidate, placement.batch_dim, placement.padding_row
    law, layout, names = placement.law, placement.layout, (*one.names, *placement.tied_with)
    use = id(one.source), repr(law)
    noise = WeightNoise(law, one.name, when, frames, row, estimator, memory, layout, dim, names)
    own = {name: nn.Parameter(value) for name, value in noise.handed.strengths(in_one_piece(one.tensor)).items()}
    shared, ties = learned.setdefault(use, (own, Ties()))
    noise.set_up(one.tensor, shared, ties if placement.tied_with else None)
    return noise


def _baked(found: Sequence[tuple[str, nn.Module, WeightNoise]]) -> list[tuple[nn.Parameter, Tensor]]:
    """One draw for each Parameter, all made before any is written."""
    stacked = [name for name, owner, noise in found if noise.tensor_name not in owner._parameters]
    if stacked:
        raise UnsupportedParameterError(
            f"bake=True cannot write {stacked[0]!r}, which other parametrizations make. Remove those first "
            "with torch.nn.utils.parametrize.remove_parametrizations, or remove the noise without bake."
        )
    sharded = [name for name, owner, noise in found if is_dtensor(owner._parameters[noise.tensor_name])]
    if sharded:
        raise UnsupportedParameterError(
            f"bake=True cannot write {sharded[0]!r}, which is a DTensor (fully_shard, tensor parallelism). "
            "Remove the noise without bake, and bake it in the whole model that the checkpoint is loaded into."
        )
    samples: dict[int, tuple[nn.Parameter, Tensor]] = {}
    kept: dict[Frames, dict[str, Any]] = {}
    for _, owner, noise in found:
        parameter = owner._parameters[noise.tensor_name]
        if parameter is not None and id(parameter) not in samples:
            samples[id(parameter)] = parameter, noise.sample(parameter, kept.setdefault(noise.frames, {}))
    return list(samples.values())
