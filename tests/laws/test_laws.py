"""Each law against its formula, its options, and the exact identities that every law keeps."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import weightnoise as wn
from tests.cases import LAWS
from tests.reference import naive_scale
from weightnoise.laws._spec import as_law

SHAPES = [(), (5,), (4, 3), (2, 3, 4), (3, 0), (2, 1, 1, 3)]


def weight_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype)


@pytest.mark.parametrize("relative_to", [None, "absmax", "std", "rms", "value"])
@pytest.mark.parametrize("gradient", ["straight-through", "exact"])
@pytest.mark.parametrize("make", [wn.Gaussian, wn.Uniform])
def test_additive_laws_follow_their_formula(make: Any, relative_to: Any, gradient: Any) -> None:
    law, weight = make(0.3, relative_to=relative_to, gradient=gradient), weight_of((4, 3, 2))
    noise = law.draw(weight)
    expected = weight + 0.5 * 0.3 * naive_scale(weight, relative_to, "tensor") * noise
    assert_close(law.apply(weight, noise, 0.5), expected)


@pytest.mark.parametrize("relative_to", ["absmax", "std", "rms"])
@pytest.mark.parametrize("per", [0, 1, 2, -1])
def test_per_channel_equals_a_loop_over_channels(relative_to: Any, per: int) -> None:
    law, weight = wn.Gaussian(0.3, relative_to=relative_to, per=per), weight_of((4, 3, 2))
    noise = law.draw(weight)
    assert_close(law.apply(weight, noise, 1.0), weight + 0.3 * naive_scale(weight, relative_to, per) * noise)


@pytest.mark.parametrize("relative_to", ["absmax", "std", "rms"])
def test_per_element_of_a_vector(relative_to: Any) -> None:
    law, weight = wn.Gaussian(0.3, relative_to=relative_to, per=0), weight_of((5,))
    noise = law.draw(weight)
    scale = torch.zeros(5).double() if relative_to == "std" else weight.abs()
    assert_close(law.apply(weight, noise, 1.0), weight + 0.3 * scale * noise)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_shape_and_dtype_stay(law: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    law, weight = as_law(law), weight_of(shape, dtype)
    if law.problem(weight) if hasattr(law, "problem") else False:
        with pytest.raises(wn.UnsupportedParameterError):
            wn.add_weight_noise(_holder(weight), law, min_ndim=0)
        return
    noisy = law.apply(weight, law.draw(weight), 1.0)
    assert (noisy.shape, noisy.dtype) == (weight.shape, weight.dtype)
    assert noisy.isfinite().all()


def _holder(weight: Tensor) -> torch.nn.Module:
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(weight)
    return module


def test_drop_connect_follows_its_formula() -> None:
    weight = weight_of((30, 20))
    law = wn.DropConnect(0.25)
    uniform = law.draw(weight)
    assert_close(law.apply(weight, uniform, 1.0), torch.where(uniform >= 0.25, weight / 0.75, 0.0))
    assert_close(law.apply(weight, uniform, 2.0), torch.where(uniform >= 0.5, weight / 0.5, 0.0))
    kept = wn.DropConnect(0.25, rescale=False)
    assert torch.equal(kept.apply(weight, uniform, 1.0), torch.where(uniform >= 0.25, weight, 0.0))


def test_a_mirrored_mask_drops_the_other_end_of_the_same_uniform() -> None:
    weight, law = torch.ones(30, 20), wn.DropConnect(0.25, rescale=False)
    uniform = law.draw(weight)
    assert torch.equal(law.apply(weight, uniform, -1.0), (uniform <= 0.75).float())


@pytest.mark.parametrize("shape", [(6, 7), (4, 3, 5), (9,)])
def test_blocks_are_dropped_together(shape: tuple[int, ...]) -> None:
    mask = wn.DropConnect(0.5, block=3, rescale=False)
    weight = torch.ones(shape)
    noisy = mask.apply(weight, mask.draw(weight), 1.0).reshape(shape[0], -1)
    for row in noisy:
        for block in row.split(3):
            assert block.unique().numel() == 1
    assert {0.0, 1.0} == set(noisy.flatten().tolist())


def test_custom_replays_what_it_draws() -> None:
    law, weight = wn.Custom(torch.rand_like), torch.zeros(5)
    key = law.draw(weight)
    assert torch.equal(law.apply(weight, key, 1.0), law.apply(weight, key, 1.0))
    assert not torch.equal(law.apply(weight, law.draw(weight), 1.0), law.apply(weight, key, 1.0))
    assert_close(law.apply(weight, key, -1.0), -law.apply(weight, key, 1.0))
    assert_close(law.apply(weight, key, 0.5), 0.5 * law.apply(weight, key, 1.0))


def test_straight_through_keeps_the_exact_value() -> None:
    weight = torch.randn(1000, requires_grad=True)
    law = wn.Custom(lambda w: (w * 3).round() / 3, gradient="straight-through")
    noisy = law.apply(weight, law.draw(weight), 1.0)
    assert torch.equal(noisy, (weight * 3).round() / 3)
    noisy.sum().backward()
    assert torch.equal(weight.grad, torch.ones(1000))  # type: ignore[arg-type]


@pytest.mark.parametrize("result", [lambda w: w[:1], lambda w: w.double(), lambda w: 3])
def test_custom_must_return_a_tensor_like_the_weight(result: Any) -> None:
    law = wn.Custom(result)
    with pytest.raises(ValueError, match="must return a tensor like the weight"):
        law.apply(torch.zeros(3), law.draw(torch.zeros(3)), 1.0)


def test_a_chain_applies_in_order() -> None:
    double, add = wn.Custom(lambda w: 2 * w), wn.Custom(lambda w: w + 1)
    for laws, expected in (((double, add), 3.0), ((add, double), 4.0)):
        law = wn.Chain(laws)
        assert law.apply(torch.ones(1), law.draw(torch.ones(1)), 1.0).item() == expected


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: wn.Gaussian(-1), r"Gaussian\(std=...\) must be a finite number >= 0, got -1"),
        (lambda: wn.Gaussian(float("inf")), "got inf"),
        (lambda: wn.Gaussian("0.1"), "got '0.1'"),
        (lambda: wn.Gaussian(True), "got True"),
        (lambda: wn.Gaussian(0.1, relative_to="max"), "relative_to=...\\) must be one of None, 'absmax'"),  # type: ignore[arg-type]
        (lambda: wn.Gaussian(0.1, relative_to="std", per="channel"), "per=...\\) must be 'tensor' or a channel"),  # type: ignore[arg-type]
        (lambda: wn.Gaussian(0.1, relative_to="std", per=True), "per=...\\) must be 'tensor' or a channel"),
        (lambda: wn.Gaussian(0.1, per=0), r"per=0\) has no meaning with relative_to=None"),
        (lambda: wn.Uniform(0.1, relative_to="value", per=0), "has no meaning with relative_to='value'"),
        (lambda: wn.Uniform(0.1, gradient="ste"), "gradient=...\\) must be one of"),  # type: ignore[arg-type]
        (lambda: wn.Uniform(float("nan")), r"Uniform\(bound=...\) must be a finite number >= 0, got nan"),
        (lambda: wn.DropConnect(1.0), r"DropConnect\(p=...\) must be in \[0, 1\), got 1.0"),
        (lambda: wn.DropConnect(-0.1), r"DropConnect\(p=...\) must be a finite number >= 0"),
        (lambda: wn.DropConnect(0.1, block=0), "block=...\\) must be a whole number >= 1, got 0"),
        (lambda: wn.DropConnect(0.1, rescale="no"), "rescale=...\\) must be one of True, False"),  # type: ignore[arg-type]
        (lambda: wn.DropConnect(0.1, gradient="no"), "gradient=...\\) must be one of"),  # type: ignore[arg-type]
        (lambda: wn.Custom(3), "must be a function of the weight, got 3"),  # type: ignore[arg-type]
        (lambda: wn.Custom(abs, gradient="no"), "gradient=...\\) must be one of"),  # type: ignore[arg-type]
    ],
)
def test_options_are_checked_when_a_law_is_made(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_repr_makes_the_law_again(law: Any) -> None:
    if "Custom" in repr(law):
        assert repr(law).startswith("Custom(fn=<function shrink")  # A function has no text to make it from.
    else:
        assert as_law(eval(repr(law), vars(wn).copy())) == as_law(law)


def test_repr_shows_what_differs_from_the_defaults() -> None:
    assert repr(wn.Gaussian(0.1, relative_to="absmax")) == "Gaussian(std=0.1, relative_to='absmax')"
    assert repr(wn.StuckAt(0.1, chip=None)) == "StuckAt(zero=0.1, chip=None)"
    assert repr([wn.Clip(), wn.Protect(wn.Quantize(4), 0.1)]) == (
        "[Clip(k=2.5), Protect(law=Quantize(bits=4), fraction=0.1)]"
    )


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_laws_are_frozen_values(law: Any) -> None:
    law = as_law(law)
    assert copy.deepcopy(law) == law
    assert pickle.loads(pickle.dumps(law)) == law
    assert hash(law) == hash(copy.copy(law))
    with pytest.raises(AttributeError):
        law.std = 3.0


@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    strength=st.floats(0.0, 2.0),
    factor=st.floats(-3.0, 3.0),
    relative_to=st.sampled_from([None, "absmax", "std", "rms", "value"]),
    kind=st.sampled_from([wn.Gaussian, wn.Uniform]),
)
def test_additive_noise_is_linear_in_the_factor(
    rows: int, columns: int, strength: float, factor: float, relative_to: Any, kind: Any
) -> None:
    weight = weight_of((rows, columns))
    law = kind(strength, relative_to=relative_to)
    noise = law.draw(weight)
    moved = law.apply(weight, noise, factor) - weight
    assert_close(moved, factor * (law.apply(weight, noise, 1.0) - weight), rtol=1e-9, atol=1e-12)
    assert torch.equal(law.apply(weight, noise, 0.0), weight)


@given(p=st.floats(0.0, 0.99), factor=st.floats(-1.0, 1.0), block=st.integers(1, 5), size=st.integers(1, 12))
def test_drop_connect_drops_or_rescales_every_weight(p: float, factor: float, block: int, size: int) -> None:
    weight, law = torch.ones(3, size, dtype=torch.float64), wn.DropConnect(p, block=block)
    noisy = law.apply(weight, law.draw(weight), factor)
    kept = 1 / (1 - p * abs(factor))
    assert bool(((noisy == 0) | ((noisy - kept).abs() < 1e-9)).all())
