"""Laws that look at the module: NEFTune and the current noise of analog layers, against explicit loops."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.testing import assert_close

import weightnoise as wn


@pytest.mark.parametrize("masked", ["none", "padding", "mask"])
def test_neftune(masked: str) -> None:
    embedding = nn.Embedding(10, 6, padding_idx=0 if masked == "padding" else None)
    tokens = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0], [9, 0, 0, 0]])
    law = wn.NEFTune(4.0, mask=(lambda ids: ids != 0) if masked == "mask" else None)
    model = wn.add_activation_noise(nn.Sequential(embedding), {nn.Embedding: law})
    torch.manual_seed(2)
    moved = (model(tokens) - embedding.forward(tokens)).detach()
    torch.manual_seed(2)
    uniform = torch.rand(3, 4, 6) * 2 - 1
    expected = torch.zeros(3, 4, 6)
    for row, real in enumerate([4, 2, 1]):
        length = 4 if masked == "none" else real
        expected[row, :length] = uniform[row, :length] * 4.0 / math.sqrt(length * 6)
    assert_close(moved, expected)


def test_neftune_of_a_single_token_and_of_padding_alone() -> None:
    model = wn.add_activation_noise(nn.Sequential(nn.Embedding(5, 4, padding_idx=0)), {nn.Embedding: wn.NEFTune()})
    assert model(torch.tensor([0, 0])).abs().sum() == 0
    plain = wn.add_activation_noise(nn.Sequential(nn.Embedding(5, 4)), {nn.Embedding: wn.NEFTune()})
    assert plain(torch.tensor(3)).shape == (4,)


def linear_sums(weight: Tensor, x: Tensor) -> Tensor:
    out = torch.zeros(x.shape[0], weight.shape[0], dtype=x.dtype)
    for n, o, i in itertools.product(range(x.shape[0]), range(weight.shape[0]), range(weight.shape[1])):
        out[n, o] += weight[o, i] * x[n, i]
    return out


def conv_sums(layer: Any, weight: Tensor, x: Tensor) -> Tensor:
    """A convolution of any dimension by explicit loops, with zeros outside."""
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(
            x.shape[2:], layer.padding, layer.dilation, layer.kernel_size, layer.stride, strict=True
        )
    ]
    out = torch.zeros(x.shape[0], weight.shape[0], *size, dtype=x.dtype)
    per_group = weight.shape[0] // layer.groups
    places = [range(n) for n in (x.shape[0], weight.shape[0], *size)]
    for n, o, *place in itertools.product(*places):
        first = o // per_group * weight.shape[1]
        for i, *offset in itertools.product(*(range(k) for k in weight.shape[1:])):
            at = [p * s - pad + k * d for p, s, pad, k, d in
                  zip(place, layer.stride, layer.padding, offset, layer.dilation, strict=True)]  # fmt: skip
            if all(0 <= a < limit for a, limit in zip(at, x.shape[2:], strict=True)):
                target, entry, source = (n, o, *place), (o, i, *offset), (n, first + i, *at)
                out[target] += weight[entry] * x[source]
    return out


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 4), (3, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 7)),
    "conv2d": (lambda: nn.Conv2d(2, 4, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1)), (2, 2, 5, 6)),
    "conv2d_depthwise": (lambda: nn.Conv2d(3, 3, 2, groups=3), (2, 3, 4, 4)),
    "conv3d": (lambda: nn.Conv3d(2, 2, 2, stride=2, padding=1), (1, 2, 3, 4, 3)),
}


@pytest.mark.slow
@pytest.mark.parametrize("converter", ["merged", "external"])
@pytest.mark.parametrize("kind", LAYERS)
def test_current_noise_has_the_variance_of_the_formula(kind: str, converter: Any) -> None:
    make, shape = LAYERS[kind]
    layer, x = make().double(), torch.randn(shape, dtype=torch.float64)
    weight = layer.weight.detach()
    size, power = x.abs(), weight.abs()
    if converter == "merged":
        factor, sums = weight.abs().max().item(), power
    else:
        factor, sums = x.abs().max().item(), weight.square() + power
    total = linear_sums(sums, size) if kind == "linear" else conv_sums(layer, sums, size)
    variance = 0.1 * factor / 7.0 * total
    law = wn.CurrentNoise(7.0, converter=converter)
    clean = layer(x).detach()
    found = law.at(layer, x)
    draw = found.draw(clean)
    assert_close(found.apply(clean, draw, 1.0), clean + variance.sqrt() * draw)
    wn.add_activation_noise(layer, law)
    with torch.no_grad():
        outputs = torch.stack([layer(x) for _ in range(3000)]) - clean
    # A variance over 3000 draws has a relative standard error of sqrt(2 / 3000) = 2.6 %; their mean has less.
    some = variance > 0
    assert (outputs.var(dim=0)[some] / variance[some]).mean().item() == pytest.approx(1.0, abs=4 * 0.026)
    assert torch.equal(outputs[:, ~some], torch.zeros_like(outputs[:, ~some]))


def test_padding_modes_pad_the_currents() -> None:
    layer = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular").double()
    x = torch.rand(1, 2, 4, 4, dtype=torch.float64)
    scale = wn.CurrentNoise(1.0).at(layer, x).apply(torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4), 1.0)
    padded = nn.functional.pad(x, (1, 1, 1, 1), mode="circular")
    weight = layer.weight.detach().abs()
    expected = (0.1 * weight.max() * nn.functional.conv2d(padded, weight)).sqrt()
    assert_close(scale.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", [lambda: nn.Linear(5, 4), lambda: parametrizations.weight_norm(nn.Linear(5, 4))])
def test_current_noise_takes_the_clean_weight_beside_weight_noise(make: Any) -> None:
    layer, x = make(), torch.rand(3, 5)
    expected = wn.CurrentNoise(1.0).at(layer, x)
    wn.add_activation_noise(layer, wn.CurrentNoise(1.0))
    wn.add_weight_noise(layer, 0.5)
    with wn.hold_noise(layer, seed=0):
        both = layer(x)
        noisy = nn.functional.linear(x, layer.weight, layer.bias)
        with torch.no_grad():
            draw = (both - noisy) / expected.apply(torch.zeros(3, 4), torch.ones(3, 4), 1.0)
    # The draw is standard normal: within 4.5 of 0 in all but one of 100,000 numbers.
    assert bool((draw.abs() < 4.5).all())
    assert draw.abs().sum() > 0
    state = torch.get_rng_state()
    with torch.no_grad():
        torch.manual_seed(1)
        first = layer(x)
        torch.manual_seed(1)
        assert torch.equal(layer(x), first)
    torch.set_rng_state(state)


def test_the_gradient_of_current_noise_is_that_at_the_noisy_output() -> None:
    layer, x = nn.Linear(5, 4), torch.rand(3, 5, requires_grad=True)
    wn.add_activation_noise(layer, wn.CurrentNoise(1.0))
    layer(x).sum().backward()
    assert_close(x.grad, layer.weight.sum(dim=0).expand(3, 5))


def test_input_noise_on_a_linear_layer_is_ridge_regression() -> None:
    x, target = torch.randn(64, 8, dtype=torch.float64), torch.randn(64, 5, dtype=torch.float64)
    model = nn.Linear(8, 5, bias=False).double()
    weight = model.weight.detach().clone()
    clean = (x @ weight.T - target).square().mean()
    wn.add_activation_noise(model, 0.1, at="input")
    losses = []
    with torch.no_grad():
        for seed in range(3000):
            pair = []
            for sign in (1, -1):
                with wn.hold_noise(model, seed=seed, sign=sign):
                    pair.append((model(x) - target).square().mean() - clean)
            losses.append(torch.stack(pair).mean())
    found = torch.stack(losses)
    expected = 0.1**2 * weight.square().sum().item() / 5  # sd^2 |W|_F^2 / O
    assert abs(found.mean().item() - expected) < 4 * found.std().item() / math.sqrt(3000)
