"""Evaluations of robustness by peers that have one, beside `evaluate_robustness` on the same levels and draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import weightnoise as wn
from tests.benchmarks.contenders import Step
from tests.benchmarks.measure import Row, against, interleave
from tests.benchmarks.peers.adapters import load
from tests.benchmarks.workloads import WORKLOADS

MODEL = "MLP 784-100-100-10, batch 64"
DRAWS = 10


@dataclass(frozen=True)
class Sweep:
    """What is swept.

    Attributes:
        levels: strengths, or seconds after the programming.
        peer: makes a step that measures every level as often as there are draws, in the peer's way.
        law: the same noise as a law of ours, for a level.
    """

    levels: Sequence[float]
    peer: Callable[[nn.Module, Callable[[nn.Module], float], Sequence[float]], Step]
    law: Callable[[float], Any]


def noise_injection(model: nn.Module, metric: Callable[[nn.Module], float], levels: Sequence[float]) -> Step:
    """sweep_sigma_aggregated, which copies the weights once and adds to them in place."""
    package = load("noise_injection")
    options = {"selector": package.selectors.by_name(r"weight$"), "sigma_values": list(levels), "verbose": False}
    return lambda: package.sweep_sigma_aggregated(model, lambda: metric(model), range(DRAWS), **options)


def aihwkit(model: nn.Module, metric: Callable[[nn.Module], float], levels: Sequence[float]) -> Step:
    """program_analog_weights for each draw, and drift_analog_weights for each time after it."""
    config = load("aihwkit.simulator.configs").TorchInferenceRPUConfig()
    config.forward.is_perfect = True
    config.noise_model = load("aihwkit.inference").PCMLikeNoiseModel(g_max=25.0)
    config.drift_compensation = None
    analog = load("aihwkit.nn.conversion").convert_to_analog(model, config).eval()

    def step() -> None:
        for _ in range(DRAWS):
            analog.program_analog_weights()
            for seconds in levels:
                analog.drift_analog_weights(seconds)
                metric(analog)

    return step


def mrfi(model: nn.Module, metric: Callable[[nn.Module], float], levels: Sequence[float]) -> Step:
    """The preset for faults in floating-point weights: in each forward one bit of some weights flips."""
    package = load("mrfi")
    config = package.EasyConfig.load_preset("float_weight_fi")
    config.set_module_used(0, module_type=["Linear"])
    faulty = package.MRFI(model, config)
    selector = faulty.get_weights_configs("selector.args")

    def step() -> None:
        for rate in levels:
            selector.rate = rate
            for _ in range(DRAWS):
                metric(faulty)

    return step


SWEEPS = {
    "MRFI": Sweep((1e-4, 1e-3, 1e-2), mrfi, lambda rate: wn.BitFlip(rate / 32)),  # Of 32 bits, one.
    "noise-injection": Sweep((0.01, 0.02, 0.05, 0.1), noise_injection, lambda std: wn.Gaussian(std)),
    "aihwkit": Sweep((0.0, 3600.0, 86400.0), aihwkit, lambda seconds: wn.ProgrammingNoise(time=seconds)),
}


def measure_sweep(name: str, sweep: Sweep, seconds: float) -> list[Row]:
    """A row for the metric alone, for ours and for the peer's sweep, in the same rounds."""
    x, y = WORKLOADS[MODEL].batch()

    @torch.no_grad()
    def metric(model: nn.Module) -> float:
        return float((model(x).argmax(1) == y).float().mean())

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return WORKLOADS[MODEL].model().eval()

    plain, ours = fresh(), fresh()
    options: dict[str, Any] = {"levels": list(sweep.levels), "law": sweep.law, "draws": DRAWS, "progress": False}

    def alone() -> None:
        for _ in range(DRAWS * len(sweep.levels)):
            metric(plain)

    def evaluate() -> None:
        wn.evaluate_robustness(ours, metric, **options)

    peer = sweep.peer(fresh(), metric, sweep.levels)
    steps: dict[str, Step] = {"plain": alone, "weightnoise on": evaluate, name: peer}
    times = interleave(steps, seconds, lambda text: None)
    return [against(times, each) for each in steps]
