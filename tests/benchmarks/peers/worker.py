"""What runs in a peer's environment: ``python -m tests.benchmarks.peers.worker NAME``, JSON on the last line."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from importlib import metadata

import torch
from torch import nn
from torch.nn import functional as F

from tests.benchmarks import memory
from tests.benchmarks.contenders import Step
from tests.benchmarks.draws import DRAWS, ours, per_draw, plain
from tests.benchmarks.measure import Row, against, interleave, short, steps_for
from tests.benchmarks.peaks import high_water
from tests.benchmarks.peers.adapters import ADAPTERS, Adapter
from tests.benchmarks.peers.replacing import Noisy, share
from tests.benchmarks.peers.sweeps import SWEEPS, measure_sweep
from tests.benchmarks.workloads import WORKLOADS, Workload, mlp

STD = 0.01
LEAST = 0.1  # The share of the weights below which a peer has no way to put noise on a model.
DRAWING = {"plain": plain, "weightnoise on": ours}


def training_step(workload: Workload, noisy: Noisy) -> Step:
    """Forward and backward in the peer's way, then the optimizer."""
    x, y = workload.batch()
    optimizer = workload.optimizer([p for p in noisy.model.parameters() if p.requires_grad])

    def step() -> None:
        with noisy.around():
            F.cross_entropy(noisy.model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def evaluation(workload: Workload, noisy: Noisy) -> Step:
    """Draws in the peer's way."""
    x, _ = workload.batch()

    @torch.no_grad()
    def evaluate() -> None:
        for _ in range(DRAWS):
            with noisy.around():
                noisy.model(x)

    return evaluate


def measure(name: str, adapter: Adapter, models: Sequence[str], seconds: float) -> list[Row]:
    """Training steps and draws: without noise, with weightnoise and with the peer, in the same rounds."""
    rows = []
    for model in models:
        workload = WORKLOADS[model]
        steps = steps_for(workload, ["plain", "weightnoise on"])
        steps[name] = training_step(workload, adapter(_model(workload), STD))
        times = interleave(steps, seconds, lambda text: None)
        rows += [{"model": model, "what": "step", **against(times, each)} for each in steps]
        x, _ = workload.batch()
        draws = {way: torch.no_grad()(make(_model(workload), x, STD)) for way, make in DRAWING.items()}
        draws[name] = evaluation(workload, adapter(_model(workload), STD))
        times = interleave(draws, seconds / 2, lambda text: None)
        rows += [{"model": model, "what": "draw", **per_draw(against(times, each))} for each in draws]
    return rows


def measure_other(name: str, adapter: Adapter, models: Sequence[str], seconds: float) -> list[Row]:
    """Training steps of models of other layers, with the share of the weights that the peer's noise is on."""
    rows: list[Row] = []
    for model in models:
        workload = WORKLOADS[model]
        try:
            noisy = adapter(_model(workload), STD)
            found = share(noisy, _model(workload))
            if found < LEAST:
                rows.append({"model": model, "error": "no way"})
                continue
            steps = steps_for(workload, ["plain", "weightnoise on"])
            times = interleave({**steps, name: training_step(workload, noisy)}, seconds, lambda text: None)
        except Exception as error:  # Of the peer.
            rows.append({"model": model, "error": f"{type(error).__name__}: {error}"[:120]})
        else:
            rows += [{"model": model, "share": short(found), **against(times, each)} for each in times]
    return rows


def _model(workload: Workload) -> nn.Module:
    torch.manual_seed(0)
    return workload.model()


@torch.no_grad()
def strength(adapter: Adapter, width: int = 256, draws: int = 400) -> float:
    """The standard deviation of the noise on the weights, from the outputs of one layer."""
    torch.manual_seed(0)
    noisy = adapter(mlp(width, width), STD)
    x = torch.randn(8, width)
    outputs = []
    for _ in range(draws):
        with noisy.around():
            outputs.append(noisy.model(x).clone())
    variance = torch.stack(outputs).var(dim=0).mean(dim=1) / x.square().sum(dim=1)
    return short(float(variance.mean().sqrt()))


def peak(adapter: Adapter | None, layers: int, width: int) -> float:
    """The peak of this process, which does a few steps in the peer's way, or without noise."""

    def contender(workload: Workload, model: nn.Module, std: float) -> Step:
        return training_step(workload, adapter(model, std) if adapter else Noisy(model))

    memory.steps(contender, layers, width)
    return high_water()


def main(argv: Sequence[str] | None = None) -> int:
    """Measure one peer."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers.worker", description=main.__doc__)
    parser.add_argument("name", choices=["plain", *ADAPTERS, *SWEEPS])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", nargs="*", default=[], choices=list(WORKLOADS), metavar="MODEL")
    parser.add_argument("--other", nargs="*", default=[], choices=list(WORKLOADS), metavar="MODEL")
    parser.add_argument("--memory", nargs=2, type=int, metavar=("LAYERS", "WIDTH"))
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # Of the peers.
    adapter = ADAPTERS.get(options.name)
    if options.memory:
        sys.stdout.write(f"{peak(adapter, *options.memory)}\n")
    elif options.name != "plain":
        found: Row = {"version": metadata.version(options.name)}
        if adapter:
            found["strength"] = strength(adapter)
            found["rows"] = measure(options.name, adapter, options.models, options.seconds)
            found["other"] = measure_other(options.name, adapter, options.other, options.seconds)
        if options.name in SWEEPS:
            found["sweep"] = measure_sweep(options.name, SWEEPS[options.name], options.seconds)
        sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
