"""Converters against the nearest of all their levels: outputs, gradients of inputs and ranges; ranges of data."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import weightnoise as wn

SIZES = [8, 64]


def numbers(size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nearest(x: Tensor, top: Tensor, levels: int, signed: bool) -> Tensor:
    """The level next to each number: every level is looked at."""
    share = torch.linspace(-1.0 if signed else 0.0, 1.0, levels, dtype=torch.float64)
    grid = top.expand_as(x).unsqueeze(-1) * share
    place = (x.unsqueeze(-1) - grid).abs().argmin(dim=-1, keepdim=True)
    return grid.gather(-1, place).squeeze(-1)


def by_hand(x: Tensor, top: Tensor, g: Tensor, signed: bool, y: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """The gradients of inputs and of ranges, element by element; ``top`` has one row or one number."""
    of_x, of_top = torch.zeros_like(x), torch.zeros_like(top)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            own = j % top.shape[0]
            bound = top[own].item()
            value = x[i, j].item()
            if (-bound if signed else 0.0) <= value <= bound:
                of_x[i, j] = g[i, j]
                if rule == "lsq":
                    of_top[own] += g[i, j] * (y[i, j] - value) / bound
            elif value > bound:
                of_top[own] += g[i, j]
            elif signed:
                of_top[own] -= g[i, j]
    return of_x, of_top


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rule", ["pact", "lsq"])
@pytest.mark.parametrize(
    ("options", "levels", "signed"),
    [
        ({"bits": 3}, 7, True),
        ({"bits": 3, "signed": False}, 8, False),
        ({"levels": 6}, 6, True),
        ({"levels": 5, "signed": False}, 5, False),
    ],
)
@pytest.mark.parametrize("per", ["tensor", -1])
def test_outputs_and_gradients(
    size: int, rule: Any, options: dict[str, Any], levels: int, signed: bool, per: Any
) -> None:
    law = wn.Converter(**options, range=1.0, learned=True, per=per, range_gradient=rule)
    x = numbers(size).requires_grad_()
    channels = 1 if per == "tensor" else size
    top = torch.linspace(0.5, 1.5, channels, dtype=torch.float64).requires_grad_()
    y = law.apply(x, None, 1.0, {"range": top})
    assert_close(y, nearest(x.detach(), top.detach(), levels, signed))
    g = numbers(size, 1)
    y.backward(g)
    of_x, of_top = by_hand(x.detach(), top.detach(), g, signed, y.detach(), rule)
    assert_close(x.grad, of_x, rtol=0, atol=0)
    assert_close(top.grad, of_top)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("per", ["tensor", -1])
@pytest.mark.parametrize("rule", ["pact", "lsq"])
def test_a_range_decays_while_it_clips_a_smaller_share_than_it_may(
    size: int, signed: bool, per: Any, rule: Any
) -> None:
    x, g = numbers(size), numbers(size, 1)
    channels = 1 if per == "tensor" else size
    first = torch.linspace(0.4, 2.5, channels, dtype=torch.float64)
    for sign in (1.0, -1.0):  # The sign of a range does not count, and goes along.
        gradients = []
        for decay in (0.0, 0.3):
            law = wn.Converter(
                4, range=1.0, learned=True, signed=signed, per=per, range_gradient=rule, decay=decay,
                decay_below=0.25,
            )  # fmt: skip
            top = (sign * first).requires_grad_()
            inputs = x.clone().requires_grad_()
            y = law.apply(inputs, None, 1.0, {"range": top})
            y.backward(g)
            assert top.grad is not None
            gradients.append((y.detach(), inputs.grad, top.grad))
        (plain, of_x, before), (pulled, same, after) = gradients
        assert torch.equal(plain, pulled)
        assert_close(same, of_x)
        columns = [x.flatten()] if per == "tensor" else list(x.unbind(1))
        for place, column in enumerate(columns):
            beyond = [value for value in column.tolist() if (abs(value) if signed else value) > first[place]]
            share = len(beyond) / len(column)
            expected = 0.3 * sign * first[place] if share < 0.25 else torch.zeros((), dtype=torch.float64)
            assert_close(after[place] - before[place], expected)


def test_a_range_that_clips_nothing_shrinks_until_it_clips_enough() -> None:
    x = numbers(64).float()
    law = wn.Converter(8, range=20.0, learned=True, decay=0.1, decay_below=0.1)
    top = torch.tensor([20.0], requires_grad=True)
    optimizer = torch.optim.SGD([top], lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        (0.0 * law.apply(x, None, 1.0, {"range": top})).sum().backward()
        optimizer.step()
    clipped = (x.abs() > top).float().mean()
    assert 0.1 <= clipped < 0.2  # One step of 5 % beyond the share, at which it stays.


def test_decay_of_nothing_in_transformations_and_without_inputs() -> None:
    law = wn.Converter(4, range=1.0, learned=True, decay=0.5, decay_below=1.0)
    top = torch.tensor([2.0])

    def total(top: Tensor, x: Tensor) -> Tensor:
        return law.apply(x, None, 1.0, {"range": top}).sum()

    x = torch.tensor([[0.5, 3.0], [-4.0, 0.1], [0.1, 0.2]])
    each = torch.vmap(torch.func.grad(total), in_dims=(None, 0))(top, x)
    assert_close(each, torch.tensor([[2.0], [0.0], [1.0]]))  # Each example by itself: 1 + 1, -1 + 1, 0 + 1.
    alone = top.clone().requires_grad_()
    total(alone, torch.empty(0, 2)).backward()
    assert_close(alone.grad, torch.zeros(1))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("levels", [254, 255, 256])
def test_many_levels(size: int, levels: int) -> None:
    x = numbers(size)
    found = wn.Converter(levels=levels, range=2.0).apply(x, None, 1.0)
    assert_close(found, nearest(x, torch.tensor([2.0], dtype=torch.float64), levels, True))
    bits = wn.Converter(8, range=2.0, signed=False).apply(x, None, 1.0)
    assert_close(bits, nearest(x, torch.tensor([2.0], dtype=torch.float64), 256, False))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_codes_of_half_precision_are_counted_in_float32(dtype: torch.dtype) -> None:
    x = numbers(64).to(dtype)
    found = wn.Converter(8, range=1.7).apply(x, None, 1.0)
    expected = nearest(x.double(), torch.tensor([1.7], dtype=torch.float64), 255, True)
    assert found.dtype is dtype
    # One rounding to the dtype at the end, half a unit in the last place of numbers below 2.
    assert_close(found.double(), expected, rtol=torch.finfo(dtype).eps / 2, atol=1e-7)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("per", ["tensor", -1])
def test_the_range_that_data_ask_for(size: int, per: Any) -> None:
    x = numbers(size)
    channels = [x.flatten()] if per == "tensor" else list(x.unbind(1))
    for signed in (True, False):
        sizes = [one if signed else one.clamp(min=0) for one in channels]
        expected = {
            "max": [one.abs().max().item() for one in sizes],
            "std": [2.0 * one.std(correction=0).item() for one in sizes],
            # The smallest of the sorted sizes that has at least nine tenths of them at or below it.
            "quantile": [sorted(one.abs().tolist())[math.ceil(0.9 * len(one)) - 1] for one in sizes],
        }
        for method, values in expected.items():
            law = wn.Converter(4, range=method, k=2.0, quantile=0.9, per=per, signed=signed)  # type: ignore[arg-type]
            found = law.measured(x).flatten()
            assert_close(found, torch.tensor(values, dtype=torch.float64))


def test_channels_without_numbers_take_the_largest_range() -> None:
    x = torch.tensor([[0.0, 2.0], [0.0, -4.0]])
    assert wn.Converter(4, range="max", per=-1).measured(x).tolist() == [[4.0, 4.0]]
    assert wn.Converter(4, range="max").measured(torch.zeros(3)).item() == 1.0


def test_without_a_model_the_range_is_that_of_the_tensor() -> None:
    x = numbers(8)
    law = wn.Converter(4, range="max")
    assert_close(wn.laws.sample(law, x), nearest(x, x.abs().max().reshape(1), 15, True))


def test_ends_zeros_and_numbers_that_are_not_finite() -> None:
    law = wn.Converter(2, range=1.0)
    x = torch.tensor([math.inf, -math.inf, 1.0, -1.0, 0.0, math.nan], requires_grad=True)
    y = law.apply(x, None, 1.0)
    y[:5].sum().backward()
    assert torch.equal(y[:5].detach(), torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0]))
    assert bool(y[5].isnan())
    assert_close(x.grad, torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 0.0]))  # At the end it is inside.
    top = torch.zeros(1, requires_grad=True)
    out = law.apply(torch.tensor([2.0, -3.0, 0.0]), None, 1.0, {"range": top})
    assert torch.equal(out, torch.zeros(3))
    out.backward(torch.tensor([1.0, 10.0, 100.0]))
    assert_close(top.grad, torch.tensor([-9.0]))  # So that it leaves 0.
    # The sign of a range does not count.
    negative = law.apply(torch.tensor([0.4, 5.0]), None, 1.0, {"range": torch.tensor([-1.0])})
    assert torch.equal(negative, torch.tensor([0.0, 1.0]))


def layer_with(converter: wn.Converter, kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layer = nn.Linear(8, 8) if kind == "linear" else nn.Conv2d(3, 5, 2)
    x = torch.randn(4, 8) if kind == "linear" else torch.randn(2, 3, 4, 4)
    wn.add_activation_noise(layer, wn.Converter(8, range=2.0), at="input")
    return wn.add_activation_noise(layer, converter), x


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("per", ["tensor", "output"])
def test_a_range_relative_to_the_weights_counts_in_input_range_times_largest_weight(kind: str, per: Any) -> None:
    layer, x = layer_with(wn.Converter(5, range=1.5, relative_to="weights", per=per, learned=True), kind)
    weight: Any = layer.weight
    with wn.no_noise(layer):
        clean = layer(wn.Converter(8, range=2.0).apply(x, None, 1.0))
    largest = weight.detach().abs().flatten(1).amax(1)
    largest = largest.max().expand_as(largest) if per == "tensor" else largest
    top = (1.5 * 2.0 * largest).reshape(1, -1, *[1] * (clean.ndim - 2)).double()
    y = layer(x)
    assert_close(y.double(), nearest(clean.double(), top, 31, True), rtol=1e-5, atol=1e-5)
    g = torch.randn_like(y)
    (learned,) = wn.learned_strengths(layer).values()
    y.backward(g)
    outside = (clean.abs() > top).to(g) * clean.sign() * g * (top / 1.5).to(g)
    assert learned.shape == (1,)
    assert_close(learned.grad, outside.sum().reshape(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("per", ["tensor", "output"])
def test_output_noise_is_relative_to_input_range_times_largest_weight(kind: str, per: Any) -> None:
    law = wn.OutputNoise(0.04, per=per)
    layer, x = layer_with(law, kind)  # type: ignore[arg-type]
    weight: Any = layer.weight
    with wn.no_noise(layer):
        clean = layer(wn.Converter(8, range=2.0).apply(x, None, 1.0))
    largest = weight.detach().abs().flatten(1).amax(1)
    largest = largest.max().expand_as(largest) if per == "tensor" else largest
    torch.manual_seed(5)
    found = layer(x)
    torch.manual_seed(5)
    expected = clean + 0.04 * 2.0 * largest.reshape(-1, *[1] * (clean.ndim - 2)) * torch.randn_like(clean)
    assert_close(found, expected)


def test_one_range_for_all_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    law = wn.Converter(6, range=0.5, learned=True, group="adc")
    wn.add_activation_noise(model, law)
    first, second = wn.learned_strengths(model).values()
    assert first is second
    assert list(model.state_dict()) == [
        "0.weight",
        "0.bias",
        "0.activation_noise.output.range",
        "1.weight",
        "1.bias",
    ]
    assert len(list(model.parameters())) == 5
    x = torch.randn(6, 4)
    model(x).sum().backward()
    clean = wn.remove_activation_noise(model)
    top = torch.full((1,), 0.5, requires_grad=True)
    alone = wn.Converter(6, range=0.5, learned=True)
    hidden = alone.apply(clean[0](x), None, 1.0, {"range": top})
    alone.apply(clean[1](hidden), None, 1.0, {"range": top}).sum().backward()
    assert_close(first.grad, top.grad)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("Converter()", "Converter takes bits"),
        ("Converter(8, levels=254)", "Converter takes bits"),
        ("Converter(1)", "has the single level 0 when symmetric"),
        ("Converter(levels=1)", r"Converter\(levels=...\) must be a whole number from 2"),
        ("Converter(8, range=0.0)", "must be a positive number or one of"),
        ("Converter(8, range='median')", r"Converter\(range=...\) must be one of 'max', 'std', 'quantile'"),
        ("Converter(8, k=0.0)", "k is positive"),
        ("Converter(8, quantile=1.5)", r"the other two in \(0, 1\]"),
        ("Converter(8, batches=0)", r"Converter\(batches=...\)"),
        ("Converter(8, range_gradient='exact')", r"range_gradient=...\) must be one of 'pact', 'lsq'"),
        ("Converter(8, relative_to='weights')", "counts a number in the products of a layer"),
        ("Converter(8, range=2.0, group='adc')", "needs learned=True, or range='max'"),
        ("Converter(8, range='max', group='adc', per='output')", "a common range is one number"),
        ("Converter(8, decay=0.01)", "is of a learned range"),
        ("Converter(8, learned=True, decay=-0.01)", r"Converter\(decay=...\)"),
        ("Converter(8, learned=True, decay_below=0.0)", r"the other two in \(0, 1\]"),
        ("Converter(8, learned=True, decay_below=1.5)", r"the other two in \(0, 1\]"),
        ("Converter(8, range=2.0, learned=True, group='adc', per=-1)", "a common range is one number"),
        ("OutputNoise(-0.1)", r"OutputNoise\(std=...\)"),
        ("OutputNoise(0.1, per=0)", r"OutputNoise\(per=...\)"),
    ],
)
def test_options_are_checked_when_a_law_is_made(call: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        eval(call, vars(wn).copy())
