"""Every form of spec, and one error that lists every problem before anything is touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import weightnoise as wn
from tests.cases import CASES

LAW = wn.Gaussian(0.1)


class Net(nn.Module):
    """Two named parts, to write patterns for."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
        self.head = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.ones(1))


def chosen(spec: Any, **options: Any) -> dict[str, wn.Noise]:
    return wn.noisy_parameters(wn.add_weight_noise(Net(), spec, **options))


def problems(spec: Any, model: nn.Module | None = None, **options: Any) -> wn.WeightNoiseError:
    model = Net() if model is None else model
    before = [(type(m), *m._parameters.values()) for m in model.modules()]
    with pytest.raises(wn.WeightNoiseError) as caught:
        wn.add_weight_noise(model, spec, **options)
    with pytest.raises(type(caught.value)):
        wn.plan_weight_noise(model, spec, **options)
    after = [(type(m), *m._parameters.values()) for m in model.modules()]
    assert [[id(x) for x in row] for row in after] == [[id(x) for x in row] for row in before]
    return caught.value


MATRICES = ["encoder.0.weight", "encoder.2.weight", "head.weight"]


@pytest.mark.parametrize(
    ("spec", "law"),
    [
        (0.1, LAW),
        (LAW, LAW),
        ([LAW, wn.DropConnect(0.5)], wn.Chain((LAW, wn.DropConnect(0.5)))),
        ((0.2,), wn.Gaussian(0.2)),
    ],
)
def test_a_law_covers_the_matrices(spec: Any, law: wn.Noise) -> None:
    assert chosen(spec) == dict.fromkeys(MATRICES, law)


def test_min_ndim_reaches_biases_and_scales() -> None:
    assert set(chosen(0.1, min_ndim=1)) == {name for name, _ in Net().named_parameters()}


def test_the_first_key_that_matches_wins_and_none_leaves_clean() -> None:
    found = chosen({"encoder.0.*": None, "encoder.*": 0.2, nn.Linear: 0.3})
    assert found == {"encoder.2.weight": wn.Gaussian(0.2), "head.weight": wn.Gaussian(0.3)}


def test_an_exact_name_is_exempt_from_min_ndim_and_a_pattern_is_not() -> None:
    assert set(chosen({"head.bias": 0.1, "scale": 0.1, "encoder.*": 0.1})) == {
        "head.bias",
        "scale",
        "encoder.0.weight",
        "encoder.2.weight",
    }


def test_patterns_are_case_sensitive_globs_whose_star_crosses_dots() -> None:
    assert set(chosen({"*weight": 0.1})) == set(MATRICES)
    assert set(chosen({"encoder.[02].weight": 0.1})) == set(MATRICES[:2])
    assert "matches no parameter" in str(problems({"Encoder.*": 0.1}))


def test_a_class_key_takes_subclasses() -> None:
    class Special(nn.Linear):
        pass

    model = nn.Sequential(Special(2, 2), nn.Conv1d(2, 2, 1))
    assert list(wn.noisy_parameters(wn.add_weight_noise(model, {nn.Linear: 0.1}))) == ["0.weight"]


def test_a_callable_decides_alone_and_sees_every_parameter() -> None:
    seen = []

    def spec(name: str, parameter: Tensor, module: nn.Module) -> float | None:
        seen.append((name, tuple(parameter.shape), type(module)))
        return 0.1 if name.endswith("bias") else None

    assert set(chosen(spec)) == {"encoder.0.bias", "encoder.2.bias", "head.bias"}
    assert ("head.weight", (2, 3), nn.Linear) in seen
    assert len(seen) == 7


def test_a_shared_module_goes_by_either_name() -> None:
    for pattern in ("first.weight", "second.weight", "second.*"):
        model = wn.add_weight_noise(CASES["shared"].model(), {pattern: 0.1})
        assert list(wn.noisy_parameters(model)) == ["first.weight"]


@pytest.mark.parametrize(
    ("spec", "kind", "text"),
    [
        (
            {"enocder.*": 0.1},
            wn.NoMatchError,
            "Pattern 'enocder.*' matches no parameter. "
            "Closest names: 'encoder.0.weight', 'encoder.0.bias', 'encoder.2.weight'.",
        ),
        (
            {"encoder.*": 0.1, "encoder.0.weight": 0.2},
            wn.NoMatchError,
            "Pattern 'encoder.0.weight' can never apply: 'encoder.*' comes first and wins it. "
            "Put the more specific pattern first.",
        ),
        (
            {nn.Linear: 0.1, "head.weight": 0.2},
            wn.NoMatchError,
            "Pattern 'head.weight' can never apply: Class Linear comes first and wins it. "
            "Put the more specific pattern first.",
        ),
        (
            {nn.LSTM: 0.1},
            wn.NoMatchError,
            "Class LSTM owns no parameter of the model. Classes that do: Linear, Net.",
        ),
        (
            {"*.bias": 0.1, "*": 0.1},
            wn.NoMatchError,
            "Pattern '*.bias' covers only parameters with fewer than min_ndim=2 dimensions: 'encoder.0.bias', "
            "'encoder.2.bias', 'head.bias'. Name a parameter exactly, or pass a smaller min_ndim.",
        ),
        (
            {"*": None},
            wn.NoMatchError,
            "The spec puts noise on none of the model's 7 parameters. A law or a number covers floating-point "
            "parameters with at least min_ndim=2 dimensions; the most here is 2.",
        ),
        ({}, wn.SpecError, "The mapping is empty. Give it a pattern and a law: {'*': 0.01}."),
        (
            None,
            wn.SpecError,
            "The spec is None. Give a number, a law, a list, a mapping or a callable.",
        ),
        ({3: 0.1}, wn.SpecError, "Key 3 must be a pattern of names (str) or a module class."),
        (
            "0.1",
            wn.SpecError,
            "'0.1' (str) is no law. Give a number, a law such as Gaussian(0.01), a list of laws, or None.",
        ),
        (
            True,
            wn.SpecError,
            "True (bool) is no law. Give a number, a law such as Gaussian(0.01), a list of laws, or None.",
        ),
        (wn.Gaussian, wn.SpecError, "Gaussian is a class, not a law. Make one: Gaussian(...)."),
        ([], wn.SpecError, "[] must be a list of one or more laws, without None."),
        ([0.1, None], wn.SpecError, "[0.1, None] must be a list of one or more laws, without None."),
        (-0.1, wn.SpecError, "Gaussian(std=...) must be a finite number >= 0, got -0.1."),
        (
            {"head.weight": float("nan")},
            wn.SpecError,
            "Pattern 'head.weight': Gaussian(std=...) must be a finite number >= 0, got nan.",
        ),
        (
            lambda *_: "loud",
            wn.SpecError,
            "scale: 'loud' (str) is no law. Give a number, a law such as Gaussian(0.01), a list of laws, or None.",
        ),
    ],
)
def test_the_whole_text_of_each_error(spec: Any, kind: type[Exception], text: str) -> None:
    error = problems(spec)
    assert type(error) is kind
    assert error.problems[0] == text


def test_one_error_lists_every_problem() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Embedding(3, 2, max_norm=1.0))
    wn.add_weight_noise(model[0], 0.1)
    spec = {"0.weight": 0.1, "1.wieght": 0.1, "2.weight": 0.1, "1.bias": -1, 5: 0.1}
    error = problems(spec, model)
    assert type(error) is wn.WeightNoiseError
    assert len(error.problems) == 5
    assert str(error).startswith("5 problems, nothing was changed:\n  - ")


def test_already_noisy() -> None:
    model = wn.add_weight_noise(nn.Sequential(nn.Linear(2, 2)), 0.02)
    assert str(problems(0.1, model)) == (
        "Parameter '0.weight' already has weight noise Gaussian(std=0.02). Call remove_weight_noise(model) first."
    )


def test_tied_parameters_covered_on_one_side() -> None:
    for spec in ({"embed.*": 0.1}, {"embed.weight": None, "*": 0.1}):
        error = problems(spec, CASES["tied"].model())
        assert isinstance(error, wn.TiedParameterError)
        assert "'embed.weight'" in str(error)
        assert "'head.weight'" in str(error)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_dtypes_that_cannot_carry_noise(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight = nn.Parameter(torch.zeros(2, 2, dtype=dtype), requires_grad=False)
    error = problems(0.1, model)
    assert isinstance(error, wn.UnsupportedParameterError)
    assert str(error).startswith(f"Parameter '0.weight' has dtype {dtype}, which cannot carry noise.")


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_lazy_scripted_and_renormalised_parameters() -> None:
    assert "is not initialised yet (lazy)" in str(problems(0.1, nn.Sequential(nn.LazyLinear(2))))
    scripted = nn.Sequential(nn.Linear(2, 2), torch.jit.script(nn.Linear(2, 2)))
    assert "Parameter '1.weight' belongs to a ScriptModule" in str(problems(0.1, scripted))
    assert "max_norm" in str(problems(0.1, nn.Embedding(3, 2, max_norm=1.0)))


def test_a_channel_dimension_that_a_parameter_lacks() -> None:
    error = problems(wn.Gaussian(0.1, relative_to="absmax", per=2))
    assert error.problems[0] == (
        "Gaussian(std=0.1, relative_to='absmax', per=2) does not fit parameter 'encoder.0.weight': per=2 names a "
        "dimension that a tensor of shape (3, 3) does not have."
    )


def test_a_model_without_eligible_parameters() -> None:
    assert "no parameters" in str(problems(0.1, nn.ReLU()))
    assert "none of the model's 2 parameters" in str(problems(0.1, nn.LayerNorm(3)))


@pytest.mark.parametrize("bad", [{"model": 3}, {"min_ndim": "2"}, {"min_ndim": -1}, {"min_ndim": True}])
def test_wrong_types_of_arguments(bad: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="must be a"):
        wn.add_weight_noise(**{"model": Net(), "spec": 0.1, **bad})


def test_a_warning_names_the_weights_whose_noise_rounds_away() -> None:
    model = nn.Sequential(nn.Linear(50, 50), nn.Linear(50, 50)).bfloat16()
    for layer, value in zip(model, (1.0, 1e-4), strict=True):
        nn.init.constant_(layer.get_parameter("weight"), value)
    with pytest.warns(wn.NoiseRoundsAwayWarning, match=r"rounds away: '0.weight'\."):
        wn.add_weight_noise(model, 1e-3)
    assert wn.has_weight_noise(model)


def test_a_warning_that_is_an_error_changes_nothing() -> None:
    model = nn.Linear(50, 50).bfloat16()
    nn.init.constant_(model.weight, 1.0)
    with pytest.raises(wn.NoiseRoundsAwayWarning):
        wn.add_weight_noise(model, 1e-3)
    assert not wn.has_weight_noise(model)


def test_low_precision_weights_that_a_mask_leaves_alone_do_not_warn() -> None:
    wn.add_weight_noise(nn.Linear(50, 50).half(), wn.DropConnect(0.1, rescale=False))


def test_a_compiled_model_is_changed_inside_and_named_without_the_wrapper() -> None:
    inner = nn.Sequential(nn.Linear(2, 2))
    compiled: Any = torch.compile(inner, backend="eager")
    assert wn.add_weight_noise(compiled, {"0.weight": 0.1}) is compiled
    assert list(wn.noisy_parameters(compiled)) == list(wn.noisy_parameters(inner)) == ["0.weight"]


def test_the_plan_prints_a_table_and_leaves_the_model() -> None:
    model = nn.Sequential(CASES["tied"].model(), parametrizations.weight_norm(nn.Linear(5, 5)))
    plan = wn.plan_weight_noise(model, {"0.body.weight": None, "*": wn.Uniform(0.3)})
    assert not wn.has_weight_noise(model)
    assert [(row.name, row.shape, row.tied_with) for row in plan.rows] == [
        ("0.embed.weight", (7, 5), ("0.head.weight",)),
        ("0.head.weight", (7, 5), ("0.embed.weight",)),
        ("1.weight", (5, 5), ()),
    ]
    lines = str(plan).splitlines()
    assert lines[0].split() == ["name", "shape", "law", "effective", "std", "tied", "with"]
    assert lines[2].split()[:5] == ["0.embed.weight", "7", "x", "5", "Uniform(bound=0.3)"]
    assert lines[-1] == "3 of 6 parameters noisy; clean: 0.body.weight, 0.body.bias, 1.bias"
    for row in plan.rows:
        # 10,000 draws or more know a standard deviation to 0.7 %; 4 standard errors.
        assert row.effective_std == pytest.approx(0.3 / 3**0.5, rel=0.03)


def test_the_plan_of_a_model_without_data_has_no_effective_std() -> None:
    with torch.device("meta"):
        model = nn.Linear(3, 2)
    assert wn.plan_weight_noise(model, 0.1).rows[0].effective_std is None


@pytest.mark.parametrize(
    ("pattern", "closest"),
    [
        ("*attn*", "'0.attention.weight', '0.attention.bias'"),
        ("*.atention.*", "'0.attention.weight', '0.attention.bias'"),
        ("*.weigth", "'0.attention.weight', '0.mlp.weight'"),
        ("1.*.weight", "'0.attention.weight', '0.mlp.weight'"),
    ],
)
def test_closest_names_have_a_part_like_that_of_the_pattern(pattern: str, closest: str) -> None:
    layer = nn.ModuleDict({"attention": nn.Linear(8, 8), "mlp": nn.Linear(8, 8)})
    model = nn.ModuleDict({"0": layer})
    with pytest.raises(wn.NoMatchError) as caught:
        wn.add_weight_noise(model, {pattern: 0.1})
    assert all(name in str(caught.value) for name in closest.split(", "))
