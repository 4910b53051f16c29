"""Schedulers for a part of the noise, and several that multiply."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.testing import assert_close

import weightnoise as wn
from tests.cases import LanguageModel
from weightnoise._attach.find import noises


class Model(nn.Module):
    """An encoder of two layers and a head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
        self.head = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.encoder(x))
        return output


def make(width: int = 8, law: wn.Noise | float = 0.1) -> Model:
    return wn.add_weight_noise(Model(width), law)


def factors(model: nn.Module) -> dict[str, float]:
    """What multiplies the noise of each weight, measured on a held draw of standard deviation 0.1."""
    once = wn.add_weight_noise(wn.remove_weight_noise(copy.deepcopy(model)), 0.1)
    moved, ones = moves(model), moves(once)
    return {name: (moved[name].norm() / ones[name].norm()).item() for name in moved}


def moves(model: nn.Module) -> dict[str, Tensor]:
    """Noisy less clean weight, in one draw."""
    names = list(wn.noisy_parameters(model))
    with wn.hold_noise(model, seed=0):
        noisy = [weight_of(model, name) for name in names]
    with wn.no_noise(model):
        return {name: more - weight_of(model, name) for name, more in zip(names, noisy, strict=True)}


def weight_of(model: nn.Module, name: str) -> Tensor:
    owner, _, tensor = name.rpartition(".")
    weight: Tensor = getattr(model.get_submodule(owner), tensor)
    return weight.detach()


def expect(model: nn.Module, encoder: float, head: float) -> None:
    found = factors(model)
    assert found == pytest.approx(
        {"encoder.0.weight": encoder, "encoder.2.weight": encoder, "head.weight": head}, rel=1e-3
    )


@pytest.mark.parametrize("width", [8, 64])
def test_a_part_of_the_noise_has_a_schedule_of_its_own(width: int) -> None:
    model = make(width)
    schedule = wn.NoiseScheduler(model, lambda step: 1 / (1 + step), which="encoder.*")
    expect(model, 1.0, 1.0)
    schedule.step()
    expect(model, 0.5, 1.0)
    assert schedule.factor == 0.5


@pytest.mark.parametrize("width", [8, 64])
def test_schedulers_multiply_where_they_overlap(width: int) -> None:
    model = make(width)
    whole = wn.NoiseScheduler(model, lambda step: 1 / (1 + step))
    part = wn.NoiseScheduler(model, lambda step: 0.5 + step, which="encoder.*")
    single = wn.NoiseScheduler(model, lambda step: 3.0, which=["encoder.0.*", "head.*"])
    found = factors(model)
    assert found["encoder.0.weight"] == pytest.approx(0.5 * 3.0, rel=1e-3)
    assert found["encoder.2.weight"] == pytest.approx(0.5, rel=1e-3)
    assert found["head.weight"] == pytest.approx(3.0, rel=1e-3)
    whole.step()
    part.step()
    single.step()
    found = factors(model)
    assert found["encoder.0.weight"] == pytest.approx(0.5 * 1.5 * 3.0, rel=1e-3)
    assert found["encoder.2.weight"] == pytest.approx(0.5 * 1.5, rel=1e-3)
    assert found["head.weight"] == pytest.approx(0.5 * 3.0, rel=1e-3)
    with wn.scale_noise(model, 2.0):
        assert factors(model)["head.weight"] == pytest.approx(0.5 * 3.0 * 2.0, rel=1e-3)


def test_a_scheduler_takes_the_place_of_one_for_the_same_part() -> None:
    model = make()
    wn.NoiseScheduler(model, lambda step: 0.0, which="encoder.*")
    wn.NoiseScheduler(model, lambda step: 0.25, which=("encoder.*",))
    expect(model, 0.25, 1.0)


def test_adaptive_noise_multiplies_too() -> None:
    model = make()
    wn.NoiseScheduler(model, lambda step: 0.5, which="head.*")
    adaptive = wn.AdaptiveNoise(model, target=1.0, rate=2.0)
    adaptive.update(0.5)
    expect(model, 2.0, 1.0)
    wn.AdaptiveNoise(model, target=1.0)
    expect(model, 1.0, 0.5)


def test_copies_and_pickles_keep_each_factor() -> None:
    model = make()
    wn.NoiseScheduler(model, lambda step: 0.5)
    wn.NoiseScheduler(model, lambda step: 0.5, which="encoder.*")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        expect(other, 0.25, 0.5)
        wn.NoiseScheduler(other, lambda step: 1.0)  # In the place of the one that was copied.
        expect(other, 0.5, 1.0)
    expect(model, 0.25, 0.5)


def test_saved_schedules_go_on() -> None:
    model, other = make(), make()
    ramp = wn.linear_ramp(10)
    saved = []
    for which in (None, "encoder.*"):
        schedule = wn.NoiseScheduler(model, ramp, which)
        for _ in range(5 if which else 2):
            schedule.step()
        saved.append(json.loads(json.dumps(schedule.state_dict())))
    for which, state in zip((None, "encoder.*"), saved, strict=True):
        wn.NoiseScheduler(other, ramp, which).load_state_dict(state)
    expect(other, 0.2 * 0.5, 0.2)


def test_one_name_of_a_tied_parameter_schedules_all_of_its_uses() -> None:
    model = wn.add_weight_noise(LanguageModel(), 0.1)
    wn.NoiseScheduler(model, lambda step: 0.0, which="head.*")
    found = moves(model)
    assert {name for name, move in found.items() if not move.any()} == {"embed.weight", "head.weight"}


def test_the_product_must_fit_the_law_and_nothing_changes_if_it_does_not() -> None:
    model = make(law=wn.DropConnect(0.4))
    wn.NoiseScheduler(model, lambda step: 2.0)
    with pytest.raises(wn.SpecError, match=r"would have a rate of 1\.6"):
        wn.NoiseScheduler(model, lambda step: 2.0, which="encoder.*")
    wn.NoiseScheduler(model, lambda step: 0.5)
    wn.NoiseScheduler(model, lambda step: 2.0, which="encoder.*")
    assert {name: noise.control.factor for name, _, noise in noises(model)} == {
        "encoder.0.weight": 1.0,
        "encoder.2.weight": 1.0,
        "head.weight": 0.5,
    }


def test_a_part_that_is_none_is_an_error_here_and_in_a_step() -> None:
    model = make()
    with pytest.raises(wn.NoMatchError, match=r"Pattern 'encodr\.\*' matches no noise\. Closest names: 'encoder"):
        wn.NoiseScheduler(model, lambda step: 1.0, which="encodr.*")
    with pytest.raises(wn.SpecError, match="Key 3 must be"):
        wn.NoiseScheduler(model, lambda step: 1.0, which=[3])  # type: ignore[list-item]
    schedule = wn.NoiseScheduler(model, lambda step: 1.0, which="head.*")
    wn.remove_weight_noise(model.head)
    with pytest.raises(wn.NoMatchError):
        schedule.step()
    wn.remove_weight_noise(model)
    with pytest.raises(wn.NotNoisyError):
        schedule.step()


def test_noise_on_activations_goes_by_the_name_of_its_module() -> None:
    model = wn.add_activation_noise(Model(8), {"encoder.0": 0.1, "head": 0.1})
    x = torch.ones(2, 8)
    wn.NoiseScheduler(model, lambda step: 0.0, which="head")
    clean = model.head(x)
    assert torch.equal(model.head(x), clean)
    assert not torch.equal(model.encoder[0](x), model.encoder[0](x))


@pytest.mark.parametrize("width", [8, 64])
def test_steps_of_several_recompile_nothing(width: int) -> None:
    torch._dynamo.reset()
    counters.clear()
    model, x = make(width), torch.randn(3, width)
    schedules = [
        wn.NoiseScheduler(model, wn.linear_ramp(10, first=0.2)),
        wn.NoiseScheduler(model, wn.cosine_ramp(7, first=1.0, last=0.1), which="encoder.*"),
    ]
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with wn.hold_noise(model, seed=0):
        for _ in range(5):
            assert_close(compiled(x), model(x))
            for schedule in schedules:
                schedule.step()
    assert counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()
