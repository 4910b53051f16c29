"""What a bare law covers goes by the role of a parameter: matrices, and no scales or shifts of whatever shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import weightnoise as wn

SIZES = [8, 64]


class Holds(nn.Module):
    """A module of somebody's own with a Parameter of some shape."""

    def __init__(self, *shape: int, name: str = "weight") -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.randn(shape)))
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = x.sum() + getattr(self, self.name).sum()
        return total


class OwnNorm(nn.LayerNorm):
    """A subclass of a normalisation."""


CLEAN: dict[str, Callable[[int], nn.Module]] = {
    "layer_norm": lambda n: nn.LayerNorm([3, n, n]),
    "subclass": lambda n: OwnNorm([n, n]),
    "rms_norm": lambda n: nn.RMSNorm([n, n]),
    "group_norm": lambda n: nn.GroupNorm(2, n),
    "batch_norm": lambda n: nn.BatchNorm2d(n),
    "instance_norm": lambda n: nn.InstanceNorm1d(n, affine=True),
    "layer_scale": lambda n: Holds(n, 1, 1),
    "bias": lambda n: Holds(1, n, 1, 1, name="bias"),
    "class_token": lambda n: Holds(1, 1, n, name="cls_token"),
    "temperature": lambda n: Holds(1, 1, 1),
    "scalar": lambda n: Holds(),
    "prelu": lambda n: nn.PReLU(n),
    "parametrized_norm": lambda n: parametrizations.weight_norm(nn.LayerNorm([n, n]), dim=0),
}
NOISY: dict[str, Callable[[int], nn.Module]] = {
    "linear": lambda n: nn.Linear(n, n),
    "one_output": lambda n: nn.Linear(n, 1),
    "one_input": lambda n: nn.Linear(1, n),
    "one_weight": lambda n: nn.Linear(1, 1),
    "convolution": lambda n: nn.Conv2d(1, n, 1),
    "depthwise": lambda n: nn.Conv1d(n, n, 1, groups=n),
    "transposed": lambda n: nn.ConvTranspose2d(n, 1, 1),
    "bilinear": lambda n: nn.Bilinear(1, n, 1),
    "embedding": lambda n: nn.Embedding(1, n),
    "bag": lambda n: nn.EmbeddingBag(n, 1),
    "lstm": lambda n: nn.LSTM(1, 1),
    "cell": lambda n: nn.GRUCell(n, n),
    "matrix": lambda n: Holds(n, 3),
    "positions": lambda n: Holds(1, n, 3, name="pos_embed"),
    "table_of_biases": lambda n: Holds(n, 2, name="relative_position_bias_table"),
    "weight_norm": lambda n: parametrizations.weight_norm(nn.Linear(n, 1)),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", CLEAN)
def test_scales_and_shifts_stay_clean(kind: str, size: int) -> None:
    model = nn.ModuleDict({"scale": CLEAN[kind](size), "linear": nn.Linear(size, size)})
    expected = {"linear.weight": wn.Gaussian(0.1)}
    plan = wn.plan_weight_noise(model, 0.1)
    own = [f"scale.{name}" for name, value in CLEAN[kind](size).named_parameters() if value.ndim > 1]
    if kind != "parametrized_norm":
        assert list(plan.scales) == own
        assert ("clean as scales, shifts or tokens" in str(plan)) == bool(own)
    specs: list[Any] = [0.1, {"*": 0.1}]
    for spec in specs:
        assert wn.noisy_parameters(wn.add_weight_noise(model, spec)) == expected
        wn.remove_weight_noise(model)
    wn.add_weight_noise(model, 0.1, min_ndim=0)
    assert any(name.startswith("scale.") for name in wn.noisy_parameters(model))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", NOISY)
def test_matrices_are_covered(kind: str, size: int) -> None:
    model = NOISY[kind](size)
    covered = list(wn.noisy_parameters(wn.add_weight_noise(model, 0.1)))
    assert covered
    assert all("bias" not in name or "table" in name for name in covered)
    assert wn.plan_weight_noise(NOISY[kind](size), 0.1).scales == ()


@pytest.mark.parametrize("size", SIZES)
def test_biases_of_an_attention_stay_clean(size: int) -> None:
    model = nn.MultiheadAttention(size, 2, add_bias_kv=True, kdim=size // 2)
    assert [name for name, value in model.named_parameters() if value.ndim > 2] == ["bias_k", "bias_v"]
    assert list(wn.noisy_parameters(wn.add_weight_noise(model, 0.1))) == [
        "q_proj_weight",
        "k_proj_weight",
        "v_proj_weight",
        "out_proj.weight",
    ]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spec", [{"scale.weight": 0.1}, lambda name, parameter, module: 0.1])
def test_what_is_named_exactly_or_by_a_function_is_covered(spec: Any, size: int) -> None:
    model = nn.ModuleDict({"scale": Holds(size, 1, 1)})
    assert list(wn.noisy_parameters(wn.add_weight_noise(model, spec))) == ["scale.weight"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spec", [0.1, {"*": 0.1}, {nn.LayerNorm: 0.1}, {"*.weight": 0.1}])
def test_an_error_says_what_counts(spec: Any, size: int) -> None:
    model = nn.Sequential(nn.LayerNorm([size, size]))
    with pytest.raises(wn.NoMatchError, match="where one counts for scales and shifts of any shape"):
        wn.add_weight_noise(model, spec)


class OwnLinear(nn.Module):
    """A linear layer of somebody's own, which uses its Parameter in a matrix product."""

    def __init__(self, inputs: int, outputs: int, *ones: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *ones))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spec", [0.1, {"*": 0.1}, {OwnLinear: 0.1}, {nn.Module: 0.1}])
def test_a_layer_of_ones_own_with_one_output_is_a_matrix_where_its_class_has_larger_ones(
    spec: Any, size: int
) -> None:
    model = nn.Sequential(OwnLinear(size, size), OwnLinear(size, 1))
    assert wn.plan_weight_noise(model, spec).scales == ()
    wn.add_weight_noise(model, spec)
    assert list(wn.noisy_parameters(model)) == ["0.weight", "1.weight"]
    assert wn.plan_weight_noise(wn.remove_weight_noise(model), spec).clean == ()


@pytest.mark.parametrize("spec", [0.1, {"*": 0.1}, {"?.weight": 0.1}])
@pytest.mark.parametrize("shape", [(8, 1), (64, 1), (1, 8), (8, 1, 1, 1)])
def test_one_that_may_be_a_matrix_is_named_aloud(spec: Any, shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Linear(8, 8), OwnLinear(*shape))
    with pytest.warns(wn.LeftCleanWarning, match=r"output or input: '1.weight'\. Name each exactly"):
        wn.plan_weight_noise(model, spec)
    with pytest.warns(wn.LeftCleanWarning, match=r"output or input: '1.weight'\. Name each exactly"):
        wn.add_weight_noise(model, spec)
    assert list(wn.noisy_parameters(model)) == ["0.weight"]


@pytest.mark.parametrize("spec", [{"1.weight": None, "*": 0.1}, {nn.Linear: 0.1}, {"0.*": 0.1}, {"1.weight": 0.1}])
def test_one_that_was_decided_on_is_not(spec: Any) -> None:
    wn.add_weight_noise(nn.Sequential(nn.Linear(8, 8), OwnLinear(8, 1)), spec)


def test_names_in_containers_say_nothing_of_others() -> None:
    lists = nn.ModuleList(nn.ParameterList([torch.randn(shape)]) for shape in [(8, 8), (8, 1, 1)])
    assert list(wn.noisy_parameters(wn.add_weight_noise(lists, 0.1))) == ["0.0"]
