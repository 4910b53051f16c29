"""Whether the noise on each parameter reaches what the model puts out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from weightnoise._attach.find import noises
from weightnoise._checks import check_model
from weightnoise._contexts import force_noise, no_noise, only_noise
from weightnoise._holds import require_noise
from weightnoise._noise.recipe import tensors_in
from weightnoise._noise.weight_noise import WeightNoise
from weightnoise._random import seeds as _seeds
from weightnoise._select.candidates import clean_tensor

_DRAWS = 4  # Of one, a unit without slope may show nothing.


def assert_noise_arrives(
    model: nn.Module, *inputs: Any, call: Callable[..., Any] | None = None, **named_inputs: Any
) -> None:
    """Assert that the noise on each parameter changes the output, wherever it would if it were in the Parameter.

    A model may use a Parameter past the attribute that noise is on (in a plain list, a closure or a cache), or
    in a method that is no forward. Its noise is planned and listed then, and never there. So the model is run
    with the noise on one parameter at a time, from the same random state as without noise; where that gives the
    same bits, it is run with noise written into the Parameter. Of a tied Parameter one noisy use is enough.

    Args:
        model: a module with weight noise, run in the mode it is in; noise with ``when="training"`` is on as well.
        *inputs: what to call it with.
        call: what to call in its place, as ``model.loss``.
        **named_inputs: what to call it with by name.

    Raises:
        AssertionError: with the names of the parameters whose noise does not arrive.
        NotNoisyError: for a model without noise.

    Example:
        >>> model = add_weight_noise(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)), 0.1)
        >>> assert_noise_arrives(model, torch.randn(4, 3))
    """
    check_model(model)

    def run(seed: int) -> list[Tensor]:
        with _seeds.seeded(seed, torch.device("cpu")), torch.no_grad():
            output = (model if call is None else call)(*inputs, **named_inputs)
        return [tensor.detach().clone() for tensor in tensors_in(output)]

    with no_noise(model):
        clean = [run(seed) for seed in range(_DRAWS)]
    arrived: set[int] = set()
    missing: dict[str, int] = {}
    for name, owner, noise in require_noise(noises(model)):
        parameter = clean_tensor(owner, noise.tensor_name)
        with force_noise(model), only_noise(model, noise):
            if any(_differ(clean[seed], run(seed)) for seed in range(_DRAWS)):
                arrived.add(id(parameter))
                continue
        with no_noise(model):
            if isinstance(parameter, nn.Parameter) and _matters(parameter, noise, clean[0], run):
                missing[name] = id(parameter)
    names = [name for name, parameter in missing.items() if parameter not in arrived]
    if names:
        raise AssertionError(_MISSING.format(names=", ".join(map(repr, names))))


def _matters(
    parameter: nn.Parameter, noise: WeightNoise, clean: list[Tensor], run: Callable[[int], list[Tensor]]
) -> bool:
    """Whether the noise would change the output if it were in the Parameter."""
    before = parameter.detach().clone()
    try:
        for seed in range(_DRAWS):
            with _seeds.seeded(seed, before.device), torch.no_grad():
                parameter.copy_(noise.sample(before))
            if _differ(clean, run(0)):
                return True
        return False
    finally:
        with torch.no_grad():
            parameter.copy_(before)


def _differ(ones: list[Tensor], others: list[Tensor]) -> bool:
    pairs = zip(ones, others, strict=False)
    return len(ones) != len(others) or not all(torch.equal(one, other) for one, other in pairs)


_MISSING = (
    "Noise never reaches the output from {names}, although it would by way of the parameter: the model uses them "
    "past the attribute (in a plain list, a closure or a cache) or in a method that is no forward. Leave them "
    "clean with None, read the attribute in a forward, or call what reads it inside "
    "`with weightnoise.hold_noise(model):`."
)
