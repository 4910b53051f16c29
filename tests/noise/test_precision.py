"""Noise that rounds away or is infinite warns where it happens, once for each parameter."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightnoise as wn
from tests.cases import LAWS

SIZES = [8, 64]
STD = 1e-3  # Much in bfloat16 and float32 at weights of 1 and 0.1, and little at a factor of 0.01.


def layer(size: int, value: float = 1.0, **options: Any) -> nn.Linear:
    made = nn.Linear(size, size)
    nn.init.constant_(made.weight, value)
    return wn.add_weight_noise(made, wn.Gaussian(STD), **options)


def said(call: Callable[[], Any]) -> list[type]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [one.category for one in caught]


def short(model: nn.Module, size: int) -> list[type]:
    dtype = next(model.parameters()).dtype
    return said(lambda: model(torch.ones(2, size, dtype=dtype)))


def assign(model: nn.Module) -> None:
    model.load_state_dict({name: value.bfloat16() for name, value in model.state_dict().items()}, assign=True)


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "bfloat16": lambda model: model.bfloat16(),
    "half": lambda model: (nn.init.constant_(model.get_parameter("weight"), 30.0), model.half()),
    "assign": assign,
    "schedule": lambda model: wn.NoiseScheduler(model, lambda step: 1e-6),
    "adaptive": lambda model: wn.AdaptiveNoise(model, 1.0, initial=1e-6),
    "weight": lambda model: (nn.init.constant_(model.get_parameter("weight"), 1e6), wn.no_noise(model)),
}
MODES: dict[str, dict[str, Any]] = {
    "shared": {},
    "recompute": {"memory": "recompute"},
    "flipout": {"estimator": "flipout"},
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", CHANGES)
def test_what_changes_later_warns_once(how: str, mode: str, size: int) -> None:
    model = layer(size, **MODES[mode])
    CHANGES[how](model)
    found = [kind for _ in range(20) for kind in short(model, size)]
    assert found == [wn.NoiseRoundsAwayWarning]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("held", [True, False])
def test_a_small_level_warns_and_a_large_one_does_not(held: bool, grad: bool, size: int) -> None:
    model = layer(size)

    def run(level: float) -> list[type]:
        hold = wn.hold_noise(model, seed=1) if held else wn.force_noise(model)
        with hold, wn.scale_noise(model, level), torch.set_grad_enabled(grad):
            return [kind for _ in range(3) for kind in short(model, size)]

    assert run(1.0) == run(0.0) == run(0.1) == run(-0.0) == []
    assert run(1e-6) == [wn.NoiseRoundsAwayWarning]
    assert run(1e-7) == []  # Once for each parameter.
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with wn.scale_noise(other, 1e-8):
            assert short(other, size) == []


@pytest.mark.parametrize("size", SIZES)
def test_the_warning_names_the_parameter_and_the_factor(size: int) -> None:
    model = nn.Sequential(layer(size))
    wn.remove_weight_noise(model)
    wn.add_weight_noise(model, STD)
    with (
        wn.scale_noise(model, 1e-6),
        pytest.warns(wn.NoiseRoundsAwayWarning, match=r"parameter '0.weight' .* float32 .* factor of 1e-06"),
    ):
        model(torch.ones(1, size))


@pytest.mark.parametrize("size", SIZES)
def test_a_learned_strength_that_falls(size: int) -> None:
    model = wn.add_weight_noise(nn.Linear(size, size), wn.LearnedGaussian(0.1))
    assert short(model, size) == []
    nn.init.constant_(wn.learned_strengths(model).popitem()[1], 1e-12)
    assert [kind for _ in range(20) for kind in short(model, size)] == [wn.NoiseRoundsAwayWarning]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["embedding", "another_forward", "checkpoint", "inference"])
def test_every_kind_of_read(kind: str, size: int) -> None:
    embedding = wn.add_weight_noise(nn.Embedding(size, size), 1e-3)
    model: Any = embedding if kind == "embedding" else layer(size)

    class Reads(nn.Module):
        def forward(self) -> Tensor:
            total: Tensor = model.weight.sum()
            return total

    calls: dict[str, Callable[[], Any]] = {
        "embedding": lambda: model(torch.tensor([1])),
        "another_forward": Reads(),
        "checkpoint": lambda: torch.utils.checkpoint.checkpoint(
            model, torch.ones(2, size, requires_grad=True), use_reentrant=False
        ),
        "inference": lambda: torch.inference_mode()(model)(torch.ones(2, size)),
    }
    with wn.scale_noise(model, 1e-9):
        state = torch.get_rng_state()
        found = said(calls[kind])
        changed = torch.get_rng_state()
        assert found == [wn.NoiseRoundsAwayWarning]
        torch.set_rng_state(state)
        assert said(calls[kind]) == []
        assert torch.equal(torch.get_rng_state(), changed)  # A look draws nothing.


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("law", "kind"),
    [
        (wn.Gaussian(1e-12), wn.NoiseRoundsAwayWarning),
        (wn.Uniform(1e-12), wn.NoiseRoundsAwayWarning),
        (wn.LearnedGaussian(1e-12), wn.NoiseRoundsAwayWarning),
        (wn.Gaussian(1e-10, relative_to="absmax", per=0), wn.NoiseRoundsAwayWarning),
        (wn.LogNormal(1e-10), wn.NoiseRoundsAwayWarning),
        (wn.Gaussian(1e38), wn.InfiniteNoiseWarning),
        (wn.LearnedGaussian(1e38), wn.InfiniteNoiseWarning),
    ],
    ids=repr,
)
def test_when_it_is_added(law: Any, kind: type, size: int) -> None:
    torch.manual_seed(0)
    model = nn.Linear(size, size)
    assert said(lambda: wn.add_weight_noise(model, law)) == [kind]
    assert short(model, size) == []  # It was said.


@pytest.mark.parametrize("size", SIZES)
def test_infinite_noise_where_it_happens(size: int) -> None:
    model = wn.add_weight_noise(nn.Linear(size, size), 1e30)
    with wn.scale_noise(model, 1e8):
        assert short(model, size) == [wn.InfiniteNoiseWarning]
        assert short(model, size) == []
    half = wn.add_weight_noise(nn.Linear(size, size), 2e4).half()
    assert short(half, size) == [wn.InfiniteNoiseWarning]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", LAWS)
def test_no_law_of_usual_strength_warns(name: str, size: int) -> None:
    torch.manual_seed(0)
    model = nn.Linear(size, size)
    assert said(lambda: wn.add_weight_noise(model, LAWS[name])) == []
    assert [kind for _ in range(20) for kind in short(model, size)] == []
    for factor in (0.5, 0.0):
        with wn.scale_noise(model, factor):
            assert short(model, size) == []


def test_weights_without_numbers_and_of_size_zero() -> None:
    with torch.device("meta"):
        model = wn.add_weight_noise(nn.Linear(8, 8), 1e-12)
    assert said(lambda: model(torch.ones(2, 8, device="meta"))) == []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of the initialisation.
        empty = nn.Linear(0, 3, bias=False)
    assert said(lambda: wn.add_weight_noise(empty, 1e-12)(torch.ones(2, 0))) == []


@pytest.mark.parametrize("size", SIZES)
def test_looks_are_few(size: int) -> None:
    model = layer(size)
    looks = []
    own = model.parametrizations.weight[0].lookout
    before = own.due
    for _ in range(300):
        model(torch.ones(1, size))
        looks.append(own.due)
    assert before == 16
    assert len(set(looks)) == 3  # 16, 256, 4096


def compiled(model: nn.Module) -> Callable[[Tensor], Any]:
    torch._dynamo.reset()
    return torch.compile(model, backend="eager", fullgraph=True)


OUTSIDE_EAGER: dict[str, Callable[[nn.Module], Callable[[Tensor], Any]]] = {
    "compiled": compiled,
    "vmap": lambda model: torch.func.vmap(model, randomness="different"),
    "one draw": lambda model: torch.func.vmap(model, randomness="same"),
    "no randomness": lambda model: torch.func.vmap(model),
    "gradient": lambda model: torch.func.grad(lambda x: model(x).sum()),
    "forward mode": lambda model: torch.func.jacfwd(model, randomness="same"),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("strength", [1e-5, 0.1, 1e38])
@pytest.mark.parametrize("way", OUTSIDE_EAGER)
def test_compiled_code_and_transformations_look_too(way: str, strength: float, size: int) -> None:
    model = nn.Sequential(nn.Linear(size, size, bias=False), nn.Linear(size, size, bias=False))
    wn.add_weight_noise(model, wn.Gaussian(0.1))
    x = torch.randn(3, size)
    with wn.scale_noise(model, strength / 0.1), wn.hold_noise(model, seed=1):
        call = OUTSIDE_EAGER[way](model.to(torch.bfloat16))
        before = torch.random.get_rng_state()
        found = said(lambda: [call(x.bfloat16()) for _ in range(3)])
        assert torch.equal(torch.random.get_rng_state(), before)
    expected = {1e-5: wn.NoiseRoundsAwayWarning, 0.1: None, 1e38: wn.InfiniteNoiseWarning}[strength]
    kinds = [kind for kind in found if issubclass(kind, UserWarning)]  # Not those about torch itself.
    assert kinds == ([] if expected is None else [expected] * 2)  # Once for each of the parameters.


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("add", [wn.add_weight_noise, wn.add_activation_noise])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", ["gaussian", "gaussian_absmax", "uniform", "drop_connect", "chain", "log_normal"])
def test_a_conversion_within_a_hold_keeps_the_draw(
    name: str, grad: bool, add: Callable[..., nn.Module], dtype: torch.dtype, size: int
) -> None:
    model, x = add(nn.Linear(size, size, bias=False), LAWS[name]), torch.eye(size)
    with torch.set_grad_enabled(grad), wn.hold_noise(model, seed=1):
        before = model(x)
        model.to(dtype)
        after = model(x.to(dtype))
    assert after.dtype == dtype
    # Roundings of the weight, of what is added to it and of the sum.
    atol = 4 * torch.finfo(dtype).eps * before.abs().max().item() + 1e-6
    torch.testing.assert_close(after.double(), before.double(), rtol=0, atol=atol)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("add", [wn.add_weight_noise, wn.add_activation_noise])
@pytest.mark.parametrize(
    "law", [wn.Gaussian(1.0), wn.Uniform(1.0), wn.Correlated(wn.Gaussian(1.0), shared="tensor")]
)
def test_a_strength_beyond_float16_is_infinite_and_no_error(law: Any, add: Any, size: int) -> None:
    model = add(nn.Sequential(nn.Linear(size, size)).half(), law)
    with wn.scale_noise(model, 1e9), warnings.catch_warnings():
        warnings.simplefilter("ignore", wn.InfiniteNoiseWarning)
        for hold in (wn.force_noise(model), wn.hold_noise(model, seed=1)):
            with hold, torch.no_grad():
                assert not model(torch.ones(2, size).half()).isfinite().any()
