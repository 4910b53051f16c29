"""What each law costs for one weight: a read in a forward that draws anew, and one in a hold with gradients."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

import torch

import weightnoise as wn
from tests.benchmarks.contenders import Step
from tests.benchmarks.measure import Row, against, interleave, short
from tests.benchmarks.numbers import COUNT, Weight, forget
from tests.benchmarks.options import Options, markdown

RANDN = "w + 0.01 * torch.randn_like(w)"
DAY = 86400.0
LAWS: dict[str, wn.Noise] = {
    "Gaussian(0.01)": wn.Gaussian(0.01),
    "Gaussian(0.01, relative_to='absmax')": wn.Gaussian(0.01, relative_to="absmax"),
    "Gaussian(0.01, relative_to='absmax', per=0)": wn.Gaussian(0.01, relative_to="absmax", per=0),
    "Gaussian(0.01, relative_to='std')": wn.Gaussian(0.01, relative_to="std"),
    "Gaussian(0.01, relative_to='absmax', per=1)": wn.Gaussian(0.01, relative_to="absmax", per=1),
    "Uniform(0.01)": wn.Uniform(0.01),
    "LogNormal(0.01)": wn.LogNormal(0.01),
    "DropConnect(0.1)": wn.DropConnect(0.1),
    "QuantizationNoise(8)": wn.QuantizationNoise(8),
    "ParametricNoise(0.01)": wn.ParametricNoise(0.01),
    "Variational()": wn.Variational(),
    "VariationalDropout()": wn.VariationalDropout(),
    "SaltAndPepper(0.01)": wn.SaltAndPepper(0.01),
    "Quantize(8)": wn.Quantize(8),
    "StuckAt(0.01)": wn.StuckAt(0.01),
    "BitFlip(0.001)": wn.BitFlip(0.001),
    "Clip(2.5)": wn.Clip(2.5),
    "ProgrammingNoise()": wn.ProgrammingNoise(),
    "ProgrammingNoise(time=86400.0)": wn.ProgrammingNoise(time=DAY),
    "devices.SONOS": wn.devices.SONOS,
}


def run(options: Options, laws: Sequence[str] = tuple(LAWS)) -> list[Row]:
    """A row for each law, fresh and held, on one thread; ``ns`` is nanoseconds per weight."""
    fresh: dict[str, Step] = {}
    held: dict[str, Step] = {}
    with contextlib.ExitStack() as holds:
        for law in laws:
            noisy, kept = (wn.add_weight_noise(Weight(), LAWS[law]) for _ in range(2))
            kept.requires_grad_()  # Without gradients a held weight is made once: the section on holds.
            holds.enter_context(wn.hold_noise(kept, seed=0))
            fresh[law] = lambda noisy=noisy: forget(noisy())  # type: ignore[misc]
            held[law] = lambda kept=kept: forget(kept())  # type: ignore[misc]
        weight = Weight().weight
        fresh[RANDN] = held[RANDN] = lambda: forget(weight + 0.01 * torch.randn_like(weight))
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        rows = []
        try:
            for kind, steps in (("fresh", fresh), ("held", held)):
                # Of the processor: it works on one thread all the time, and other processes do not count.
                times = interleave(steps, options.seconds, options.about(kind), RANDN, time.process_time)
                rows += [against(times, law, laws[0]) | {"kind": kind} for law in steps]
        finally:
            torch.set_num_threads(before)
    return [row | {"ns": short(1e6 * row["milliseconds"] / COUNT)} for row in rows]


def table(rows: Sequence[Row]) -> str:
    """Nanoseconds per weight, and how many times the first law."""
    found = {(row["contender"], row["kind"]): row for row in rows}
    names = list(dict.fromkeys(row["contender"] for row in rows))
    lines = []
    for name in names:
        fresh, held = found[name, "fresh"], found[name, "held"]
        lines.append([f"`{name}`", f"{fresh['ns']:.2f}", f"{fresh['ratio']:.1f}", f"{held['ns']:.2f}"])
    return markdown(["one thread", "fresh, ns per weight", f"/ {names[0].partition('(')[0]}", "held, ns"], lines)
