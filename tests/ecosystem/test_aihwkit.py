"""The devices of `ProgrammingNoise` beside those of aihwkit, which is not in the extras.

aihwkit requires torchvision, and with it a build of torch for GPUs; ``pip install --no-deps aihwkit==1.1.0`` does
for what is compared here.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import weightnoise as wn

inference = pytest.importorskip("aihwkit.inference", reason="needs aihwkit, without its dependencies")
reram = pytest.importorskip("aihwkit.inference.noise.reram")
conductance = pytest.importorskip("aihwkit.inference.converter.conductance")
pytestmark = pytest.mark.full

TARGETS = torch.tensor([0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 1.0, -0.3])  # Parts of the largest weight.
TIMES = (0.0, 25.0, 3600.0, 86400.0, 31536000.0)
COUNT = 40_000


def weights() -> torch.Tensor:
    """Each target often, and the largest weight among them, which is what the scale is taken from."""
    return (TARGETS * 0.4).repeat(COUNT, 1)


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("g_max", [25.0, 12.5])
def test_programmed_drifted_and_read_weights_have_the_same_distribution(time: float, g_max: float) -> None:
    torch.manual_seed(0)
    weight = weights()
    model = inference.PCMLikeNoiseModel(g_max=g_max)
    # At time 0 theirs is the programming alone; ours is read once, unless told not to.
    theirs = model.apply_noise(weight, time) if time else model.apply_programming_noise(weight)[0]
    law = wn.ProgrammingNoise(g_max, time) if time else wn.ProgrammingNoise(g_max, read=())
    ours = law.apply(weight, law.draw(weight), 1.0)
    same_distribution(ours, theirs)


def same_distribution(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Mean and variance at each target, within four standard errors; there are up to 110 comparisons in a test."""
    for level, mine, other in zip(TARGETS.tolist(), ours.double().T, theirs.double().T, strict=True):
        mean_error = ((mine.var() + other.var()) / COUNT).sqrt()
        assert abs(mine.mean() - other.mean()) <= 4.5 * mean_error + 1e-9, level
        # The error of a standard deviation, for any distribution, from its fourth moment.
        spread = sum(((x - x.mean()) ** 4).mean() - x.var() ** 2 for x in (mine, other)) / COUNT
        assert abs(mine.var() - other.var()) <= 4.5 * spread.sqrt() + 1e-12, level


@pytest.mark.parametrize("time", [1.0, 86400.0, 172800.0])
def test_the_resistive_memory_of_wan_has_the_same_distribution(time: float) -> None:
    # Their default is a g_max of 25 with the coefficients of 40, not scaled. Both are at 40 here.
    torch.manual_seed(0)
    theirs = inference.ReRamWan2022NoiseModel(g_max=40.0).apply_noise(weights(), time)
    law = replace(wn.devices.RERAM_WAN, time=0.0 if time == 1.0 else time)  # Theirs counts from the programming.
    same_distribution(law.apply(weights(), law.draw(weights()), 1.0), theirs)


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
@pytest.mark.parametrize("time", [1.0, 60.0, 3600.0, 86400.0, 3.15e8])
def test_the_resistive_memory_of_metal_oxide_has_the_same_distribution(time: float) -> None:
    # The read noise of ours is a table of theirs, and the shift comes before the programming: differences of 1e-3
    # of the deviation, a tenth of the standard error.
    torch.manual_seed(0)
    targets = weights()
    model = reram.ReRamCMONoiseModel()
    g, ways = model.g_converter.convert_to_conductances(targets)
    made = model.apply_drift_noise_to_conductance(model.apply_programming_noise_to_conductance(g), g, time)
    theirs = model.g_converter.convert_back_to_weights(made, ways)
    law = replace(wn.devices.RERAM_CMO, time=time - 1.0)
    same_distribution(law.apply(targets, law.draw(targets), 1.0), theirs)


@pytest.mark.parametrize("pairs", [(1.0, 3.0), (0.5, 1.0, 2.0)])
@pytest.mark.parametrize("g_min", [0.0, 2.0])
def test_several_pairs_and_an_empty_device_have_the_same_distribution(
    g_min: float, pairs: tuple[float, ...]
) -> None:
    torch.manual_seed(0)
    converter = conductance.NPairConductanceConverter(list(pairs), g_max=25.0, g_min=g_min)
    theirs = inference.PCMLikeNoiseModel(g_converter=converter).apply_noise(weights(), 3600.0)
    law = wn.ProgrammingNoise(time=3600.0, pairs=pairs, g_min=g_min)
    same_distribution(law.apply(weights(), law.draw(weights()), 1.0), theirs)


def test_a_modifier_of_theirs_is_a_gaussian_relative_to_the_largest_weight() -> None:
    configs = pytest.importorskip("aihwkit.simulator.configs")
    conversion = pytest.importorskip("aihwkit.nn.conversion")
    config = configs.TorchInferenceRPUConfig()
    config.forward.is_perfect = True
    config.modifier = configs.WeightModifierParameter(type=configs.WeightModifierType.ADD_NORMAL, std_dev=0.05)
    torch.manual_seed(0)
    plain = torch.nn.Linear(64, 64, bias=False)
    noisy = wn.add_weight_noise(torch.nn.Linear(64, 64, bias=False), wn.Gaussian(0.05, relative_to="absmax"))
    noisy.load_state_dict(plain.state_dict())
    analog = conversion.convert_to_analog(plain, config).train()
    x = torch.eye(64)
    with torch.no_grad():
        mine, other = (torch.stack([layer(x) for _ in range(400)]).std(dim=0).mean() for layer in (noisy, analog))
    assert mine.item() == pytest.approx(other.item(), rel=0.01)
