"""Numbers that rows, layers, dies and neighbours have in common."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import weightnoise as wn
from weightnoise._cli.notation import read_spec
from weightnoise.laws import sample

SIZES = [8, 64]
DIE = wn.Correlated(wn.Gaussian(0.1, relative_to="value"), shared="tensor", group="die", chip=3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("shared", "shape"),
    [(0, (1, -1, -1)), (-1, (-1, -1, 1)), ((0, 2), (1, -1, 1)), ("tensor", (1, 1, 1))],
)
@pytest.mark.parametrize(
    "law",
    [
        wn.Gaussian(0.1),
        wn.Gaussian(0.1, relative_to="absmax", per=0, gradient="exact"),
        wn.LogNormal(0.3),
        wn.Uniform(0.1),
        wn.DropConnect(0.4),
        wn.StateDependentNoise((0.1, 0.3)),
        wn.ParametricNoise(0.3),
        wn.QuantizationNoise(4),
    ],
    ids=repr,
)
def test_the_law_with_one_number_along_some_dimensions(law: Any, shared: Any, shape: Any, size: int) -> None:
    weight = torch.randn(size, size, 3)
    correlated = wn.Correlated(law, shared=shared)
    noise = correlated.draw(weight)
    assert noise.shape == tuple(full if one == -1 else one for one, full in zip(shape, weight.shape, strict=True))
    for factor in (1.0, -0.5):
        expected = law.apply(weight, noise.expand(weight.shape), factor)
        assert torch.equal(correlated.apply(weight, noise, factor), expected)


@pytest.mark.parametrize("size", SIZES)
def test_a_gain_for_each_row(size: int) -> None:
    torch.manual_seed(0)
    model = wn.add_weight_noise(
        nn.Linear(size, size, bias=False), wn.Correlated(wn.Gaussian(0.05, relative_to="value"), shared=1)
    )
    with torch.no_grad(), wn.hold_noise(model, seed=0):
        gains = model.weight / model._parameters["weight"]
    assert_close(gains, gains[:, :1].expand(size, size))
    assert len(gains[:, 0].unique()) == size


@pytest.mark.parametrize("length", [1.5, 6.0])
def test_smooth_numbers_have_the_variance_and_the_correlation_that_are_promised(length: float) -> None:
    torch.manual_seed(0)
    law = wn.Correlated(wn.Gaussian(1.0), length=length)
    drawn = torch.stack([law.draw(torch.zeros(40, 5, 9)).reshape(40, 45) for _ in range(400)]).double()
    # A draw has about 40 * 45 / (pi length^2 / 2) independent numbers. At the edges as well as inside.
    independent = 400 * 40 * 45 / (math.pi * length**2 / 2)
    assert abs(drawn.square().mean() - 1) < 4 * math.sqrt(2 / independent)
    assert abs(drawn[:, 0, 0].square().mean() - 1) < 4 * math.sqrt(2 / 400)
    for rows, columns in ((1, 0), (0, 2), (3, 3), (0, 20)):
        pairs = drawn[:, rows:, columns:] * drawn[:, : 40 - rows, : 45 - columns]
        expected = math.exp(-(rows**2 + columns**2) / length**2)
        assert abs(pairs.mean() - expected) < 4 * math.sqrt(2 / independent) + 2e-3


@pytest.mark.parametrize("shape", [(), (7,), (0, 3), (1, 9), (64, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_smooth_numbers_of_any_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = torch.ones(shape, dtype=dtype)
    noisy = sample(wn.Correlated(wn.Gaussian(0.1), length=3.0), weight)
    assert (noisy.shape, noisy.dtype) == (weight.shape, dtype)
    assert noisy.isfinite().all()


def die_of(model: nn.Module) -> list[Tensor]:
    return [
        dict(model.named_modules())[f"{place}.parametrizations.weight.0"].chip_draw.flatten() for place in (0, 2)
    ]


def make(law: Any, size: int) -> nn.Sequential:
    torch.manual_seed(0)
    return wn.add_weight_noise(nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, size)), law)


def gains(model: nn.Sequential) -> list[Tensor]:
    found = []
    for layer in (model[0], model[2]):
        with wn.no_noise(model), torch.no_grad():
            clean = layer.weight.clone()
        bias = layer.bias
        noisy = (layer(torch.eye(clean.shape[1])) - bias).T.detach()
        found.append((noisy / clean).median())
    return found


@pytest.mark.parametrize("size", SIZES)
def test_a_group_is_one_die(size: int) -> None:
    model = make(DIE, size)
    first, second = gains(model)
    assert_close(first, second)
    assert abs(first - 1) > 1e-3
    for other in (copy.deepcopy(model), make(DIE, size)):
        assert_close(torch.stack(gains(other)), torch.stack([first, second]))
    elsewhere = make(wn.Correlated(DIE.law, shared="tensor", group="other", chip=3), size)
    assert abs(gains(elsewhere)[0] - first) > 1e-3
    alone = gains(make(wn.Correlated(DIE.law, shared="tensor", chip=3), size))
    assert abs(alone[0] - alone[1]) > 1e-4


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", [None, 5])
def test_a_held_draw_is_another_die_for_all_of_the_group(size: int, seed: int | None) -> None:
    model = make([DIE, wn.Gaussian(1e-6)], size)
    own = gains(model)[0]
    with wn.hold_noise(model, seed=seed) as held:
        first, second = gains(model)
        assert_close(first, second, rtol=1e-3, atol=0.0)
        assert abs(first - own) > 1e-3
        held.reset()
        third, fourth = gains(model)
        assert_close(third, fourth, rtol=1e-3, atol=0.0)
        assert abs(third - first) > 1e-3
    with wn.hold_noise(model, seed=5):
        again = gains(model)[0]
    with wn.hold_noise(model, seed=5, sign=-1):
        assert_close(gains(model)[0] - 1, 1 - again, rtol=1e-2, atol=1e-4)
    assert_close(gains(model)[0], own, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("size", SIZES)
def test_a_step_goes_along_the_held_die(size: int) -> None:
    model = make(DIE, size)
    with wn.hold_noise(model, seed=7):
        expected = [model[place].weight.detach().clone() for place in (0, 2)]
    wn.step_along(model, 7, 1.0)
    for place, noisy in zip((0, 2), expected, strict=True):
        assert_close(model[place]._parameters["weight"], nn.Parameter(noisy))


def test_the_plan_measures_the_law_and_not_one_number() -> None:
    model = nn.Linear(100, 100)
    (row,) = wn.plan_weight_noise(model, wn.Correlated(wn.Gaussian(0.1), shared="tensor")).rows
    assert row.effective_std == pytest.approx(0.1)
    (row,) = wn.plan_weight_noise(model, [wn.Correlated(wn.Gaussian(0.3), shared="tensor"), wn.Gaussian(0.4)]).rows
    assert row.effective_std == pytest.approx(0.5, rel=0.05)


def test_estimators_of_independent_noise_refuse_it() -> None:
    for estimator in ("local", "flipout"):
        with pytest.raises(wn.UnsupportedParameterError):
            wn.add_weight_noise(
                nn.Linear(3, 2),
                wn.Correlated(wn.Gaussian(0.1), shared=1),
                estimator=estimator,
            )


@pytest.mark.parametrize(
    "law", [DIE, wn.Correlated(wn.LogNormal(0.2), shared=(0, -1)), wn.Correlated(wn.Gaussian(0.1), length=3.0)]
)
def test_configs_and_the_command_line(law: wn.Correlated) -> None:
    assert wn.spec_from_config(json.loads(json.dumps(wn.spec_to_config(law)))) == law
    assert read_spec(repr(law)) == law


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"law": wn.BitFlip(0.1), "shared": 0}, r"Correlated\(law\) must have one number for each weight"),
        ({"law": wn.DropConnect(0.1, block=2), "shared": 0}, "must have one number for each weight"),
        ({"law": wn.Uniform(0.1), "length": 2.0}, "must have one number for each weight"),
        ({"law": [wn.Gaussian(0.1)], "shared": 0}, "must have one number for each weight"),
        ({}, "takes shared, for equal numbers, or length"),
        ({"shared": 0, "length": 2.0}, "takes shared, for equal numbers, or length"),
        ({"shared": "row"}, r"shared=...\) must be a dimension, several or 'tensor', got 'row'"),
        ({"length": 0.0}, "has no meaning"),
        ({"length": -1.0}, r"length=...\) must be a finite number >= 0"),
        ({"shared": "tensor", "group": "die"}, "give shared='tensor' and a chip with it"),
        ({"shared": 0, "group": "die", "chip": 0}, "give shared='tensor' and a chip with it"),
    ],
)
def test_options_are_checked(options: dict[str, Any], text: str) -> None:
    with pytest.raises(wn.OptionError, match=text):
        wn.Correlated(**{"law": wn.Gaussian(0.1), **options})


class Wrapper:
    """A law of a user with another one inside."""

    def __init__(self, law: wn.Noise) -> None:
        self.law = law
        self.parts = (law,)

    def draw(self, weight: Tensor) -> Any:
        return self.law.draw(weight)

    def apply(self, weight: Tensor, noise: Any, factor: float) -> Tensor:
        return self.law.apply(weight, noise, factor)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", [None, 5])
def test_a_law_of_a_user_may_have_one_inside(size: int, seed: int | None) -> None:
    model, plain = make(Wrapper(DIE), size), make(DIE, size)
    own = gains(model)
    assert_close(torch.stack(own), torch.stack(gains(plain)))
    with wn.hold_noise(model, seed=seed):
        first, second = gains(model)
        assert_close(first, second)
        assert abs(first - own[0]) > 1e-3


def test_a_dimension_that_is_not_there_is_refused() -> None:
    with pytest.raises(wn.UnsupportedParameterError, match="'weight': shared=2 names a dimension"):
        wn.add_weight_noise(nn.Linear(3, 2), wn.Correlated(wn.Gaussian(0.1), shared=2))
