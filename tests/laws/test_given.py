"""A standard deviation for each element: shapes, state, files, and every way in which noise gets on a weight."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import weightnoise as wn
from tests.cases import LanguageModel
from weightnoise._cli.notation import read_spec

SIZES = [8, 64]


def std_of(size: int) -> Tensor:
    return torch.linspace(0.0, 1.0, size * size).reshape(size, size)


def unit_draw(size: int, seed: int) -> Tensor:
    """The standard normal numbers of a held draw."""
    zero = nn.Linear(size, size)
    nn.init.zeros_(zero.weight)
    wn.add_weight_noise(zero, wn.Gaussian(torch.ones(size, size)))
    with wn.hold_noise(zero, seed=seed):
        return zero.weight.detach().clone()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("memory", ["keep", "recompute"])
@pytest.mark.parametrize("scale", [None, "absmax"])
def test_formula_gradient_and_contexts(size: int, memory: Any, scale: Any) -> None:
    torch.manual_seed(0)
    model = nn.Linear(size, size)
    clean, std = model.weight.detach().clone(), std_of(size)
    wn.add_weight_noise(model, wn.Gaussian(std, relative_to=scale), memory=memory)
    unit = unit_draw(size, 3) * (1.0 if scale is None else clean.abs().max())
    with wn.hold_noise(model, seed=3):
        assert_close(model.weight.detach(), clean + std * unit)
        with wn.scale_noise(model, 2.0):
            assert_close(model.weight.detach(), clean + 2 * std * unit)
        model(torch.ones(2, size)).sum().backward()
    with wn.hold_noise(model, seed=3, sign=-1):
        assert_close(model.weight.detach(), clean - std * unit)
    assert model.weight.grad is not None
    assert torch.equal(model.weight.grad, torch.full((size, size), 2.0))
    assert not torch.equal(model(torch.ones(1, size)), model(torch.ones(1, size)))
    wn.step_along(model, 3, 1.0)
    assert_close(model.weight.detach(), clean + std * unit)


@pytest.mark.parametrize("size", SIZES)
def test_it_is_a_buffer_that_is_saved_moved_and_cast(size: int) -> None:
    std = std_of(size)
    model = wn.add_weight_noise(nn.Sequential(nn.Linear(size, size)), {"0.weight": wn.Gaussian(std)})
    key = "0.parametrizations.weight.0.std"
    assert torch.equal(model.state_dict()[key], std)
    assert key not in dict(model.named_parameters())
    assert not wn.learned_strengths(model)
    other = wn.add_weight_noise(nn.Sequential(nn.Linear(size, size)), wn.Gaussian(torch.zeros(size, size)))
    other.load_state_dict(model.state_dict())
    assert torch.equal(std, std_of(size))  # The user's own tensor is another one.
    for way in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        with wn.hold_noise(way, seed=1), wn.hold_noise(model, seed=1):
            assert torch.equal(cast("Tensor", way[0].weight), cast("Tensor", model[0].weight))
    assert model.to(torch.float64).state_dict()[key].dtype == torch.float64
    plain = nn.Sequential(nn.Linear(size, size))
    with pytest.warns(wn.LearnedStrengthWarning):
        other.load_state_dict(plain.state_dict())
    wn.remove_weight_noise(other)
    assert list(other.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("size", SIZES)
def test_a_mapping_gives_each_parameter_its_own(size: int) -> None:
    model = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size))
    stds = {name: torch.rand_like(parameter) for name, parameter in model.named_parameters()}
    wn.add_weight_noise(model, [wn.Clip(3.0), wn.Protect(wn.Gaussian(stds), 0.1), wn.Gaussian(0.01)])
    state = model.state_dict()
    for name in ("0", "2"):
        assert torch.equal(state[f"{name}.parametrizations.weight.0.std_1"], stds[f"{name}.weight"])
    model(torch.ones(2, size)).sum().backward()


def test_uses_of_a_tied_weight_go_by_one_name() -> None:
    model = LanguageModel()
    stds = {name: torch.rand_like(parameter) for name, parameter in model.named_parameters()}
    wn.add_weight_noise(model, wn.Gaussian(stds))
    with wn.hold_noise(model, seed=0):
        assert torch.equal(model.embed.weight, model.head.weight)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_estimators_use_the_variance_of_each_element(size: int) -> None:
    torch.manual_seed(0)
    std, x = std_of(size) / size, torch.randn(4, size)
    expected = (x.square() @ std.square().T).sqrt()
    for estimator in ("shared", "flipout", "local"):
        model = wn.add_weight_noise(nn.Linear(size, size), wn.Gaussian(std), estimator=cast("Any", estimator))
        with torch.no_grad(), wn.no_noise(model):
            clean = model(x)
        with torch.no_grad():
            spread = torch.stack([model(x) - clean for _ in range(1000)]).square().mean(dim=0).sqrt()
        # Four standard errors of a standard deviation, and more for 4 * size^2 of them at once.
        assert bool(((spread - expected).abs() <= 6 * expected / 2000**0.5 + 1e-6).all()), estimator


@pytest.mark.parametrize("size", SIZES)
def test_checkpoints_and_vmap(size: int) -> None:
    model = wn.add_weight_noise(nn.Sequential(nn.Linear(size, size)), wn.Gaussian(std_of(size)))
    x = torch.randn(3, size, requires_grad=True)
    y = checkpoint(model, x, use_reentrant=False)
    (grad,) = torch.autograd.grad(y.sum(), x)
    with wn.no_noise(model):
        assert not torch.equal(grad, model[0].weight.sum(dim=0).expand_as(grad))
    report = wn.evaluate_robustness(
        model,
        lambda model: model(torch.ones(1, size)).sum(),
        levels=[1.0],
        draws=4,
        vectorize=True,
        progress=False,
    )
    one_by_one = wn.evaluate_robustness(
        model, lambda model: model(torch.ones(1, size)).sum(), levels=[1.0], draws=4, progress=False
    )
    assert_close(torch.as_tensor(report.values), torch.as_tensor(one_by_one.values), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_compiled_code_sees_it_and_what_is_loaded_later(size: int) -> None:
    model = wn.add_weight_noise(nn.Linear(size, size), wn.Gaussian(std_of(size)))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, size)
    with wn.hold_noise(model, seed=0):
        assert_close(compiled(x), model(x))
    state = {**model.state_dict(), "parametrizations.weight.0.std": torch.zeros(size, size)}
    model.load_state_dict(state)
    with wn.no_noise(model):
        clean = model(x)
    assert_close(compiled(x), clean)
    with torch.no_grad(), wn.hold_noise(model, seed=0):
        assert_close(model(x), clean)


def test_configs_name_a_file(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    path = str(tmp_path / "std.pt")
    torch.save({name: torch.rand_like(parameter) for name, parameter in model.named_parameters()}, path)
    law = wn.Gaussian(path)
    config = wn.spec_to_config(law)
    assert config == {"type": "Gaussian", "std": path}
    assert wn.spec_from_config(json.loads(json.dumps(config))) == law
    assert read_spec(f"Gaussian({path!r})") == law
    wn.add_weight_noise(model, law)(torch.ones(1, 3))
    with pytest.raises(wn.SpecError, match=r"Save the tensors with torch\.save and give the name of the file"):
        wn.spec_to_config(wn.Gaussian(torch.ones(2, 3)))


def test_laws_are_equal_by_their_tensors() -> None:
    assert wn.Gaussian(torch.ones(2, 3)) == wn.Gaussian(torch.ones(2, 3))
    assert wn.Gaussian(torch.ones(2, 3)) != wn.Gaussian(torch.zeros(2, 3))
    assert wn.Gaussian({"a": torch.ones(2)}) == wn.Gaussian({"a": torch.ones(2)})
    assert wn.Gaussian({"a": torch.ones(2)}) != wn.Gaussian({"b": torch.ones(2)})
    assert hash(wn.Gaussian(torch.ones(2, 3))) == hash(wn.Gaussian(torch.ones(2, 3)))
    assert repr(wn.Gaussian(torch.ones(2, 3))) == "Gaussian(std=<tensor of shape (2, 3)>)"


@pytest.mark.parametrize(
    ("std", "text"),
    [
        (torch.ones(3), r"'weight': std has the shape \(3,\), the parameter \(2, 3\); expand it"),
        (torch.ones(2, 1), r"std has the shape \(2, 1\), the parameter \(2, 3\)"),
        ({"other": torch.ones(2, 3)}, "'weight': std has no tensor under its name, but for 'other'"),
        ({"weight": torch.ones(3, 2)}, r"std has the shape \(3, 2\), the parameter \(2, 3\)"),
    ],
)
def test_what_does_not_fit_a_parameter_is_refused(std: Any, text: str) -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(wn.UnsupportedParameterError, match=text):
        wn.add_weight_noise(model, wn.Gaussian(std))
    assert not wn.has_weight_noise(model)


@pytest.mark.parametrize(
    ("std", "text"),
    [
        (
            torch.tensor([-1.0]),
            "for each element: deviations, not logarithms",
        ),
        (torch.tensor([torch.inf]), "must be a finite number >= 0 for each"),
        (torch.ones(2, dtype=torch.int64), "must be a floating-point tensor"),
        ({"a": 0.1}, "of 'a' must be a floating-point tensor"),
        (nn.Parameter(torch.ones(2)), "without a gradient: std.detach"),
        ("none.pt", r"must be .* or the name of a file of torch\.save, got 'none\.pt'"),
    ],
)
def test_options_are_checked(std: Any, text: str) -> None:
    with pytest.raises(wn.OptionError, match=text):
        wn.Gaussian(std)


def test_activations_have_no_fixed_shape() -> None:
    with pytest.raises(wn.UnsupportedActivationError, match="a tensor as std has a fixed shape"):
        wn.add_activation_noise(nn.Linear(3, 2), wn.Gaussian(torch.ones(2)))
