"""What a hold says about each noise of a model: the draw that it makes for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias, TypeVar

from torch import Tensor, nn

from weightnoise._attach.find import FoundNoise
from weightnoise._errors import NotNoisyError, OptionError
from weightnoise._noise.context import AnyNoise, Overrides
from weightnoise._noise.control import Override
from weightnoise._noise.held import HeldDraw
from weightnoise._noise.over_mesh import make_held, waits_for_forward
from weightnoise._noise.paths import check_path
from weightnoise._noise.weight_noise import WeightNoise
from weightnoise._random import seeds as _seeds
from weightnoise._random.common import layer_of
from weightnoise._select.candidates import clean_tensor

T = TypeVar("T")
Reads: TypeAlias = Literal["held", "fresh"]


def weight_of(noise: AnyNoise) -> Tensor | None:
    """The clean weight of a noise on weights."""
    owner = noise.owner() if isinstance(noise, WeightNoise) and noise.owner is not None else None
    return None if owner is None else clean_tensor(owner, noise.tensor_name)  # type: ignore[attr-defined]


def held_overrides(
    found: FoundNoise, seed: int | None, sign: int, reads: Reads = "held", rho: tuple[float, ...] = ()
) -> Overrides:
    """Return the override that `hold_noise` adds to each noise of a model, with its draw made."""
    every = require_noise([noise for kind in found for _, _, noise in kind])
    fresh = reads == "fresh"
    if fresh and seed is None:
        seed = int(_seeds.key())  # Readings are counted, and take nothing from torch's generator.
    count = 0 if fresh else None
    shared = any(noise.handed.shares("group", "layer") for noise in every)
    die = (int(_seeds.key()) if seed is None else seed) if shared else None
    layers = {} if die is None else layer_seeds(found.weights, die)
    uses = Counter(id(owner._parameters.get(noise.tensor_name)) for _, owner, noise in found.weights)
    draws: dict[tuple[object, str], HeldDraw] = {}
    opened: Overrides = []
    for name, owner, noise in found.weights:
        parameter = owner._parameters.get(noise.tensor_name)
        # A held draw belongs to the Parameter; what a stack makes has no Parameter, but a name.
        tied = uses[id(parameter)] > 1
        key = (name, "") if parameter is None else (id(parameter), repr(noise.law) if tied else "")
        own_seed = None if seed is None else _seeds.derive_seed(seed, name)
        weight = clean_tensor(owner, noise.tensor_name)
        if weight is not None and waits_for_forward(noise, weight) and seed is None and key not in draws:
            own_seed = int(_seeds.key())  # It is drawn once the weight has numbers.
        own = HeldDraw(own_seed, sign, die=die, layer=layers.get(id(noise)), reads=count, rho=rho)
        held = draws.setdefault(key, own)
        if rho and weight is not None:
            check_path(noise.handed, weight)
        if weight is not None:
            make_held(noise, held, weight)
        if (fresh or rho) and noise.estimator != "shared":
            why = _RHO if rho else _FRESH_READS
            raise OptionError(why.format(name=noise.name, estimator=noise.estimator))
        if noise.estimator != "shared":
            held.make_key()
        opened.append((noise, Override(held=held)))
    if found.activations and seed is None:
        # Their shapes are not known yet. Seeded, their draws take nothing from torch's generator later on,
        # where a checkpointed region would miss it when it is computed again.
        seed = int(_seeds.key())
    for name, _, activation in found.activations:
        own_seed = _seeds.derive_seed(seed or 0, f"{activation.at} of {name}")
        opened.append((activation, Override(held=HeldDraw(own_seed, sign, reads=count, rho=rho))))
    return opened


def layer_seeds(noisy: Sequence[tuple[str, nn.Module, WeightNoise]], die: int) -> dict[int, int]:
    """The seed of what a weight has in common with its bias, by the noise on either; one for all tied uses."""
    seeds: dict[object, int] = {}
    found: dict[int, int] = {}
    for name, owner, noise in noisy:
        if noise.shares and noise.estimator == "shared":
            weight = owner._parameters.get(layer_of(noise.tensor_name))
            layer = layer_of(name)
            own = _seeds.derive_seed(die, f"layer {layer}")
            found[id(noise)] = seeds.setdefault(layer if weight is None else id(weight), own)
    return found


_FRESH_READS = (
    "hold_noise(reads='fresh') holds a chip and reads it anew in each forward; parameter '{name}' has "
    "estimator={estimator!r}, whose noise is on the output of the layer. Add its noise with estimator='shared'."
)


_RHO = (
    "hold_noise(rho=...) moves a draw a part of the way at each step; parameter '{name}' has "
    "estimator={estimator!r}, whose noise is another for each example. Add its noise with estimator='shared', or "
    "use rho=0."
)


def require_noise(found: Iterable[T]) -> list[T]:
    """All that was found; an error where there is no noise."""
    listed = list(found)
    if not listed:
        raise NotNoisyError("The model carries no noise. Call add_weight_noise(model, spec) first.")
    return listed
