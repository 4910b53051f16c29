"""Scales for each output, input or tile: by the layout of the layer, against loops over the elements."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import weightnoise as wn
from tests.cases import LanguageModel, ReadsTwice
from weightnoise._torch.layers import layout_of


class Conv1D(nn.Module):
    """The linear layer of GPT-2, as Transformers has it."""

    __module__ = "transformers.pytorch_utils"

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def second(index: tuple[int, ...], groups: int, size: int) -> tuple[int, int]:
    """The group and the channel in it of a place in dimension 0."""
    return index[0] // size, index[0] % size


# A layer; and for a place in its weight: the group, the row (output) and the column of its matrix, and the input.
Place = Callable[[tuple[int, ...]], tuple[int, int, int, int]]
LAYERS: dict[str, tuple[Callable[[], nn.Module], Place]] = {
    "linear": (lambda: nn.Linear(5, 7), lambda i: (0, i[0], i[1], i[1])),
    "conv": (lambda: nn.Conv2d(3, 4, (2, 3)), lambda i: (0, i[0], i[1] * 6 + i[2] * 3 + i[3], i[1])),
    "conv_groups": (lambda: nn.Conv1d(4, 6, 3, groups=2), lambda i: (i[0] // 3, i[0], i[1] * 3 + i[2], i[1])),
    "transposed": (lambda: nn.ConvTranspose1d(3, 5, 2), lambda i: (0, i[1], i[0] * 2 + i[2], i[0])),
    "transposed_groups": (
        lambda: nn.ConvTranspose2d(6, 4, (1, 2), groups=2),
        lambda i: (i[0] // 3, i[1], (i[0] % 3) * 2 + i[3], i[0]),
    ),
    "gpt2": (lambda: Conv1D(7, 5), lambda i: (0, i[1], i[0], i[0])),
    "embedding": (lambda: nn.Embedding(7, 5), lambda i: (0, i[1], i[0], i[0])),
    "large": (lambda: nn.Linear(64, 64), lambda i: (0, i[0], i[1], i[1])),
    "large_gpt2": (lambda: Conv1D(64, 64), lambda i: (0, i[1], i[0], i[0])),
}
SMALL = [name for name in LAYERS if not name.startswith("large")]


def region(layer: str, per: str, tile: tuple[int, int] | None, index: tuple[int, ...]) -> tuple[int, ...]:
    """What tells the region of a place in the weight from others, written by hand."""
    group, row, column, channel = LAYERS[layer][1](index)
    rows = (row % 3 if layer == "conv_groups" else row) // tile[0] if tile else 0
    columns = column // tile[1] if tile else 0
    own = {"tensor": (), "output": (group, row), "input": (group, column if tile else channel)}[per]
    return (*((group, rows, columns) if tile else ()), *own)


def scale_by_loop(weight: Tensor, relative_to: str, name: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Tensor:
    values: dict[tuple[int, ...], list[float]] = {}
    places = [tuple(index) for index in torch.ones_like(weight).nonzero().tolist()]
    for index in places:
        values.setdefault(name(index), []).append(weight[index].item())

    def of(numbers: list[float]) -> float:
        mean = sum(numbers) / len(numbers) if relative_to == "std" else 0.0
        if relative_to == "absmax":
            return max(map(abs, numbers))
        return math.sqrt(sum((number - mean) ** 2 for number in numbers) / len(numbers))

    scale = torch.empty_like(weight)
    for index in places:
        scale[index] = of(values[name(index)])
    return scale


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("relative_to", "per", "tile"),
    [
        ("absmax", "output", None),
        ("std", "input", None),
        ("rms", "tensor", (2, 4)),
        ("absmax", "output", (3, 2)),
        ("std", "input", (2, 4)),
        ("absmax", "tensor", (512, 512)),
    ],
)
def test_each_region_has_the_scale_of_a_loop_over_its_elements(
    layer: str, relative_to: Any, per: Any, tile: Any
) -> None:
    torch.manual_seed(0)
    model = LAYERS[layer][0]()
    law = wn.Gaussian(0.1, relative_to=relative_to, per=per, tile=tile)
    if tile and per == "input" and math.prod(model.weight.shape[2:]) > 1:
        with pytest.raises(wn.UnsupportedParameterError, match=r"one place of a kernel\. Use per='output'"):
            wn.add_weight_noise(model, law)
        return
    clean = model.weight.detach().clone()
    expected = scale_by_loop(clean, relative_to, lambda index: region(layer, per, tile, index))
    wn.add_weight_noise(model, law)
    with wn.hold_noise(model, seed=0):
        noisy = model.weight.detach()
    plain = wn.add_weight_noise(LAYERS[layer][0](), 0.1)
    with torch.no_grad():
        plain.weight.zero_()
    with wn.hold_noise(plain, seed=0):
        unit = plain.weight.detach()
    assert_close(noisy, clean + unit * expected, rtol=1e-5, atol=1e-6)


HARDWARE = {
    "uniform": wn.Uniform(0.1, relative_to="absmax", per="output", tile=(2, 3)),
    "quantize": wn.Quantize(4, per="output", tile=(2, 3)),
    "quantize_affine": wn.Quantize(4, symmetric=False, tile=(2, 3)),
    "quantization_noise": wn.QuantizationNoise(4, per="output"),
    "stuck_at": wn.StuckAt(0.1, high=0.2, per="output", tile=(2, 3), chip=None),
    "stuck_at_range": wn.StuckAt(0.1, high=0.2, levels="range", tile=(2, 3)),
    "bit_flip": wn.BitFlip(0.05, per="output", tile=(2, 3)),
    "clip": wn.Clip(1.0, per="output", tile=(4, 4)),
    "programming": wn.ProgrammingNoise(per="output", tile=(4, 4)),
    "chain": [wn.Clip(2.0, per="output"), wn.Protect(wn.Gaussian(0.1, relative_to="absmax", tile=(2, 3)), 0.5)],
    "parametric": wn.ParametricNoise(per="output"),
    "variational_dropout": wn.VariationalDropout(per="input"),
}


@pytest.mark.parametrize("law", HARDWARE.values(), ids=HARDWARE)
def test_an_input_first_layer_has_the_noise_of_its_transpose(law: Any) -> None:
    """Of one matrix, however it is stored: the draw is put in the place of the other's."""
    torch.manual_seed(0)
    first, transposed = nn.Linear(9, 9, bias=False), Conv1D(9, 9)
    with torch.no_grad():
        transposed.weight.copy_(first.weight.T)
    for model in (first, transposed):
        wn.add_weight_noise(model, law)
    laws = [dict(model.named_modules())["parametrizations.weight"][0].handed for model in (first, transposed)]
    draw = laws[0].draw(first.weight.detach())

    def turned(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(turned, value))
        return value if value is None else value.transpose(-1, -2)

    strengths = [{name: turned(value) for name, value in one.strengths(first.weight).items()} for one in laws[:1]]
    assert all(
        value.shape == laws[1].strengths(transposed.weight)[name].shape
        for one in strengths
        for name, value in one.items()
    )
    with torch.no_grad():
        expected = laws[0].apply(first.weight, draw, 1.0).T
        assert_close(laws[1].apply(transposed.weight, turned(draw), 1.0), expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(expected, first.weight.T)


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("law", [*HARDWARE.values(), wn.Gaussian(0.1, relative_to="absmax", per="output")])
def test_names_are_the_dimensions_of_a_linear_layer_bit_for_bit(law: Any, size: int) -> None:
    if isinstance(law, list) or law.per not in ("output", "input") or law.tile is not None:
        return
    config = wn.spec_to_config(law)
    literal = wn.spec_from_config({**config, "per": 0 if law.per == "output" else 1})
    torch.manual_seed(0)
    weights = []
    for one in (law, literal):
        torch.manual_seed(0)
        model = wn.add_weight_noise(nn.Linear(size, size), one)
        with wn.hold_noise(model, seed=3):
            weights.append(model.weight.detach())
    assert torch.equal(*weights)


def test_refused_aloud() -> None:
    cases: list[tuple[nn.Module, Any, str]] = [
        (ReadsTwice(), wn.Gaussian(0.1, relative_to="std", per="output"), r"'matrix': per='output' needs a layer"),
        (ReadsTwice(), wn.Clip(2.0, tile=(2, 3)), r"'matrix': tile=\(2, 3\) needs a layer whose layout is known"),
        (nn.Bilinear(2, 3, 4), wn.Quantize(4, per="input"), "'weight': per='input': it has no single dimension"),
        (
            nn.ConvTranspose1d(4, 4, 2, groups=2),
            wn.ParametricNoise(per="output"),
            "'weight': per='output' is no dimension of a layer of groups",
        ),
    ]
    for model, law, text in cases:
        with pytest.raises(wn.UnsupportedParameterError, match=text):
            wn.add_weight_noise(model, law)
        assert not wn.has_weight_noise(model)
    with pytest.raises(wn.TiedParameterError, match=r"means other parts of 'embed\.weight' than of 'head"):
        wn.add_weight_noise(LanguageModel(), wn.Clip(2.0, per="output"))
    for fits in (wn.Clip(2.0, per=0), wn.Clip(2.0, tile=(3, 3))):
        wn.add_weight_noise(LanguageModel(), fits)
    with pytest.raises(wn.UnsupportedActivationError, match="per='input' for inputs of Linear and Conv layers"):
        wn.add_activation_noise(nn.Linear(3, 2), wn.Gaussian(0.1, relative_to="std", per="input"))
    with pytest.raises(wn.OptionError, match="Give the dimension: per=0"):
        wn.laws.sample(wn.Gaussian(0.1, relative_to="std", per="output"), torch.ones(3, 4))


class Wrapper:
    """A law of a user with another one inside."""

    def __init__(self, law: wn.Noise) -> None:
        self.law = law

    def draw(self, weight: Tensor) -> Any:
        return self.law.draw(weight)

    def apply(self, weight: Tensor, noise: Any, factor: float) -> Tensor:
        return self.law.apply(weight, noise, factor)


def test_a_law_of_a_user_cannot_hide_a_name() -> None:
    with pytest.raises(wn.UnsupportedParameterError, match="inside another law does not get to know the layer"):
        wn.add_weight_noise(nn.Linear(3, 2), Wrapper(wn.Quantize(4, per="output")))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: wn.Quantize(4, tile=cast("Any", 512)),
            r"Quantize\(tile=...\) must be \(rows, columns\), such as \(512, 512\)",
        ),
        (lambda: wn.Quantize(4, tile=(0, 3)), r"Quantize\(tile=...\) must be a whole number >= 1, got 0"),
        (lambda: wn.Clip(2.0, tile=(3, 3), per=0), r"Clip\(tile=\(3, 3\), per=0\): a tile is cut out of outputs"),
        (lambda: wn.Gaussian(0.1, tile=(3, 3)), r"tile=\(3, 3\)\) has no meaning with relative_to=None"),
        (lambda: wn.Clip(low=-1.0, high=1.0, tile=(3, 3)), "has no meaning with fixed bounds"),
        (lambda: wn.StuckAt(0.1, levels=(0.0, 1.0), tile=(3, 3)), "has no meaning with fixed levels"),
        (lambda: wn.Quantize(4, per=cast("Any", "column")), "must be 'tensor' or a channel dimension"),
    ],
)
def test_options_are_checked(make: Any, text: str) -> None:
    with pytest.raises(wn.OptionError, match=text):
        make()


def test_the_plan_says_where_names_and_numbers_differ() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Conv1D(4, 4), nn.ConvTranspose1d(4, 4, 2))
    named = str(wn.plan_weight_noise(model, wn.Quantize(4, per="output")))
    assert named.endswith("\nper='output' is dimension 1 of 1.weight, 2.weight: stored with the inputs first")
    literal = str(wn.plan_weight_noise(model, [wn.Clip(2.0), wn.Quantize(4, per=0)]))
    assert literal.endswith("\nper=0 is the inputs of 1.weight, 2.weight: stored with the inputs first")
    assert not wn.plan_weight_noise(model[0], wn.Quantize(4, per="output")).notes
    assert not wn.plan_weight_noise(model, wn.Quantize(4)).notes


@pytest.mark.parametrize("law", HARDWARE.values(), ids=HARDWARE)
def test_configs_and_copies(law: Any) -> None:
    spec = wn.spec_from_config(json.loads(json.dumps(wn.spec_to_config(law))))
    model = wn.add_weight_noise(nn.Linear(6, 6), spec)
    assert repr(wn.noisy_parameters(model)["weight"]) == repr(law)


def test_clip_weights_takes_names_and_tiles() -> None:
    torch.manual_seed(0)
    model = wn.add_weight_noise(Conv1D(6, 40), 0.1)
    with torch.no_grad():
        model.weight[:, 0] *= 100
    wn.clip_weights(model, 2.0, per="output")
    weight = dict(model.named_parameters())["weight"]
    assert bool((weight.abs().amax(dim=0) <= 2.0 * (1 + 1e-5) * weight.std(dim=0, correction=0)).all())
    assert weight[:, 0].abs().max() > 50


def test_every_known_layer_of_torch() -> None:
    cases = [
        (nn.LSTM(3, 4, proj_size=2), ("weight_ih_l0", "weight_hh_l0", "weight_hr_l0")),
        (nn.GRUCell(3, 4), ("weight_ih", "weight_hh")),
        (nn.MultiheadAttention(4, 2, kdim=3, vdim=5), ("q_proj_weight", "k_proj_weight", "v_proj_weight")),
    ]
    for layer, names in cases:
        for name in names:
            layout = layout_of(layer, name)
            assert layout is not None
            assert (layout.output, layout.input) == (0, 1)
    assert layout_of(nn.LayerNorm(3), "weight") is None
    for layer in (nn.Linear(3, 2), nn.ConvTranspose1d(3, 2, 2), nn.LSTM(3, 2)):
        name = "bias_ih_l0" if isinstance(layer, nn.LSTM) else "bias"
        assert layout_of(layer, name).output == 0
