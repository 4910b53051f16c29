"""Checkpoints in every format, runs that are resumed, averaged weights, and weights that are packed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

import weightnoise as wn
from tests.cases import NOT_QUANTISED, needs_torch

X = torch.linspace(-1, 1, 32).reshape(8, 4)
SPEC = wn.Gaussian(0.3, relative_to="absmax", per=0)
State = dict[str, Any]


def make(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))


def through_torch(state: State, path: Path) -> State:
    torch.save(state, path / "state.pt")
    loaded: State = torch.load(path / "state.pt", weights_only=True)
    return loaded


def through_safetensors(state: State, path: Path) -> State:
    safetensors = pytest.importorskip("safetensors.torch", reason="needs the extra 'safetensors'")
    safetensors.save_file(state, path / "state.safetensors")
    loaded: State = safetensors.load_file(path / "state.safetensors")
    return loaded


def through_dcp(state: State, path: Path) -> State:
    save(state, checkpoint_id=path / "dcp")
    loaded = {name: torch.zeros_like(value) for name, value in state.items()}
    load(loaded, checkpoint_id=path / "dcp")
    return loaded


FORMATS = (through_torch, through_safetensors, through_dcp)
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),  # torch 2.5, of its own code.
]


@pytest.mark.parametrize("through", FORMATS)
@pytest.mark.parametrize("source", [True, False])
@pytest.mark.parametrize("target", [True, False])
def test_strict_between_noisy_and_plain(
    through: Callable[[State, Path], State], source: bool, target: bool, tmp_path: Path
) -> None:
    model, fresh = make(), make(seed=1)
    for each, noisy in ((model, source), (fresh, target)):
        if noisy:
            wn.add_weight_noise(each, SPEC)
    state = model.state_dict()
    assert list(state) == list(make().state_dict())
    fresh.load_state_dict(through(state, tmp_path), strict=True)
    assert all(torch.equal(fresh.state_dict()[name], value) for name, value in make().state_dict().items())
    assert wn.has_weight_noise(fresh) is target


@pytest.mark.parametrize("through", FORMATS)
def test_learned_strengths_have_keys_of_their_own(through: Callable[[State, Path], State], tmp_path: Path) -> None:
    law = wn.LearnedGaussian(0.25)
    model, fresh = wn.add_weight_noise(make(), law), wn.add_weight_noise(make(seed=1), law)
    with torch.no_grad():
        for strength in wn.learned_strengths(model).values():
            strength.mul_(2)
    loaded = through(model.state_dict(), tmp_path)
    fresh.load_state_dict(loaded, strict=True)
    assert all(torch.equal(s, torch.full_like(s, 0.5)) for s in wn.learned_strengths(fresh).values())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*parametrizations\.weight\.0\.std"):
        make().load_state_dict(loaded, strict=True)
    plain = {name: value for name, value in loaded.items() if name not in wn.learned_strengths(model)}
    make().load_state_dict(plain, strict=True)
    with pytest.warns(wn.LearnedStrengthWarning, match="they keep the values they have"):
        fresh.load_state_dict(plain, strict=True)


def test_safetensors_models_with_tied_weights(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="needs the extra 'safetensors'")

    def tied() -> nn.ModuleDict:
        model = nn.ModuleDict({"table": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
        model["head"].weight = model["table"].weight
        return model

    model, fresh, plain = wn.add_weight_noise(tied(), 0.1), wn.add_weight_noise(tied(), 0.1), tied()
    safetensors.save_model(model, str(tmp_path / "model.safetensors"))
    for each in (fresh, plain):
        safetensors.load_model(each, str(tmp_path / "model.safetensors"), strict=True)
        assert all(torch.equal(each.state_dict()[name], value) for name, value in model.state_dict().items())


def test_a_whole_module_is_saved_with_its_noise(tmp_path: Path) -> None:
    model = wn.add_weight_noise(make(), SPEC).eval()
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    with wn.hold_noise(model, seed=1), wn.hold_noise(loaded, seed=1):
        assert torch.equal(model(X), loaded(X))


@needs_torch("2.6", "its get_model_state_dict does not read the weights")
def test_get_model_state_dict_draws_nothing() -> None:
    model = wn.add_weight_noise(make(), SPEC)
    before = torch.get_rng_state()
    get_model_state_dict(model)
    assert torch.equal(torch.get_rng_state(), before)


def begin(law: Any) -> tuple[Any, ...]:
    model = wn.add_weight_noise(make(), law)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, amsgrad=True)
    return model, optimizer, CosineAnnealingLR(optimizer, 6), wn.NoiseScheduler(model, wn.cosine_ramp(6))


def train(run: tuple[Any, ...], steps: int) -> None:
    model, optimizer, rate, noise = run
    for _ in range(steps):
        model(X).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
        noise.step()


@pytest.mark.parametrize("law", [SPEC, wn.LearnedGaussian(0.3), wn.DropConnect(0.2), [wn.Quantize(6), SPEC]])
def test_a_resumed_run_has_the_same_bits(law: Any, tmp_path: Path) -> None:
    names = ("model", "optimizer", "rate", "noise")
    uninterrupted = begin(law)
    torch.manual_seed(5)
    train(uninterrupted, 6)
    first = begin(law)
    torch.manual_seed(5)
    train(first, 3)
    state = {name: part.state_dict() for name, part in zip(names, first, strict=True)}
    torch.save({**state, "random": torch.get_rng_state()}, tmp_path / "run.pt")
    second = begin(law)
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    for name, part in zip(names, second, strict=True):
        part.load_state_dict(saved[name])
    torch.set_rng_state(saved["random"])
    assert second[3].factor == first[3].factor
    train(second, 3)
    found, expected = second[0].state_dict(), uninterrupted[0].state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_adaptive_noise_is_resumed() -> None:
    model: Any = wn.add_weight_noise(make(), SPEC)
    first = wn.AdaptiveNoise(model, target=0.2)
    first.update(0.0)
    fresh: Any = wn.add_weight_noise(make(), SPEC)
    second = wn.AdaptiveNoise(fresh, target=0.2)
    second.load_state_dict(first.state_dict())
    with wn.hold_noise(model, seed=1), wn.hold_noise(fresh, seed=1):
        assert torch.equal(model[0].weight, fresh[0].weight)


@pytest.mark.parametrize("options", [{}, {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}, {"use_buffers": True}])
@pytest.mark.parametrize("before", [True, False])
def test_averaged_models(options: dict[str, Any], before: bool) -> None:
    model, plain = make(), make()
    if before:
        wn.add_weight_noise(model, SPEC)
    averages = [AveragedModel(each, **options) for each in (model, plain)]
    if not before:
        wn.add_weight_noise(model, SPEC)
    for number in range(3):
        for each, average in zip((model, plain), averages, strict=True):
            with torch.no_grad():
                for parameter in each.parameters():
                    parameter.add_(number)
            average.update_parameters(each)
    ours, theirs = (average.state_dict() for average in averages)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert wn.has_weight_noise(averages[0]) is before
    if before:
        assert not torch.equal(averages[0].eval()(X), averages[0](X))
        wn.remove_weight_noise(averages[0])
    assert torch.equal(averages[0].eval()(X), averages[1].eval()(X))
    assert wn.has_weight_noise(model)


def test_stochastic_weight_averaging_from_end_to_end() -> None:
    model = wn.add_weight_noise(make(), SPEC)
    average = AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rate = SWALR(optimizer, swa_lr=0.05)
    seen = []
    for _ in range(3):
        model(X).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        rate.step()
        seen.append(copy.deepcopy(model.state_dict()))
    mean = torch.stack([state["0.weight"] for state in seen]).mean(dim=0)
    torch.testing.assert_close(average.state_dict()["module.0.weight"], mean)
    # The statistics are those of whatever runs: with noise off, those of the clean average.
    clean = wn.remove_weight_noise(copy.deepcopy(average))
    with wn.no_noise(average):
        for each in (average, clean):
            update_bn([X], each)
    assert torch.equal(average.state_dict()["module.1.running_mean"], clean.state_dict()["module.1.running_mean"])


def quantised(test: Any) -> Any:
    """For tests that need what torch.ao is about to lose."""
    skip = pytest.mark.skipif(torch.backends.quantized.engine == "none", reason="no engine for quantised layers")
    return skip(pytest.mark.filterwarnings("ignore:.*(quantiz|TypedStorage).*")(test))


class Packed(nn.Module):
    """A layer of integer weights, as quantising libraries make them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 4, dtype=torch.int8), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(3, 1))


def test_integer_weights_are_refused_and_can_be_left_clean() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Packed())
    with pytest.raises(
        wn.UnsupportedParameterError, match=r"Parameter '1.weight' has dtype torch.int8.*with None"
    ):
        wn.add_weight_noise(model, SPEC)
    assert not wn.has_weight_noise(model)
    wn.add_weight_noise(model, {Packed: None, "*": SPEC})
    assert list(wn.noisy_parameters(model)) == ["0.weight"]


@quantised
def test_dynamically_quantised_layers_hold_no_parameters() -> None:
    from torch.ao.quantization import quantize_dynamic

    model = quantize_dynamic(make(), {nn.Linear}, dtype=torch.qint8)
    # Their weights are packed buffers: a number covers nothing, and a pattern that names them matches nothing.
    with pytest.raises(wn.NoMatchError, match="puts noise on none of the model's 2 parameters"):
        wn.add_weight_noise(model, 0.1)
    with pytest.raises(wn.NoMatchError, match=r"'0.weight' matches no parameter"):
        wn.add_weight_noise(model, {"0.weight": 0.1})


@quantised
def test_a_model_is_quantised_after_removal() -> None:
    from torch.ao.quantization import quantize_dynamic

    plain = quantize_dynamic(make().eval(), {nn.Linear}, dtype=torch.qint8)
    model = wn.remove_weight_noise(wn.add_weight_noise(make().eval(), SPEC))
    assert torch.equal(quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)(X), plain(X))
    noisy = wn.add_weight_noise(make().eval(), SPEC)
    for inside in (True, False):  # Never silently: torch.ao wants the class of the layer to be nn.Linear itself.
        with wn.no_noise(*([noisy] if inside else [])), pytest.raises(AssertionError, match=NOT_QUANTISED):
            quantize_dynamic(noisy, {nn.Linear}, dtype=torch.qint8)
