"""Draw the figures of the guides: ``python docs/guide_figures.py [folder]``, docs/assets by default.

A figure shows what its page has computed: the code of the page runs, and what it leaves behind is drawn. It takes
about a minute.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from figures import BLUE, GREEN, GREY, ORANGE, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Page: TypeAlias = dict[str, Any]

GUIDES = Path(__file__).parent / "guides"


def run(name: str) -> Page:
    """What the code of a guide leaves behind."""
    text = (GUIDES / f"{name}.md").read_text()
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))
    module = types.ModuleType("page")
    sys.modules["page"] = module
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            exec(compile(code, name, "exec"), vars(module))
        finally:
            os.chdir(here)
            del sys.modules["page"]
    return vars(module)


def panels(count: int, size: tuple[float, float] = (7.2, 2.9)) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side, which share their vertical axis."""
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(1, count, sharey=True, squeeze=False)[0])
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def hardware_aware(page: Page) -> Figure:
    """Accuracy over the time since programming, for the two networks on each device."""
    figure, axes = panels(len(page["laws"]))
    titles = {
        "as_measured": "as measured",
        "compensated": "drift compensated",
        "coarse": "3 x the error, compensated",
    }
    for one, law in zip(axes, page["laws"], strict=True):
        for color, (name, report) in zip((ORANGE, BLUE), page["reports"].items(), strict=True):
            curve = report[law]
            mean, std = 100 * curve.mean, 100 * curve.std
            one.plot(curve.levels, mean, "o-", color=color, label=name, markersize=4)
            one.fill_between(curve.levels, mean - std, mean + std, color=color, alpha=0.2, linewidth=0)
        one.set_xscale("log")
        one.minorticks_off()
        one.set_xticks(page["times"], ["1 s", "1 h", "1 day"])
        one.set_title(titles[law], fontsize=9)
    axes[0].set_ylabel("accuracy, %")
    axes[0].legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def exploration(page: Page) -> Figure:
    """The return of each episode, for five agents of each kind."""
    figure, axes = panels(2)
    kinds = (("noisy weights", "noisy_agent", BLUE), ("random actions", "dithering_agent", ORANGE))
    for one, (title, agent, color) in zip(axes, kinds, strict=True):
        for seed in range(5):
            _, returns = page[agent](seed)
            one.plot(returns, color=color, linewidth=0.8, alpha=0.7)
            print(f"{title}, seed {seed}: first at the end in episode {page['first_success'](returns)}")
        one.axhline(12, color=GREY, linewidth=0.8, linestyle="--")
        one.set(xlabel="episode", title=title)
        one.title.set_fontsize(9)
    axes[0].set_ylabel("return")
    return figure


def variational(page: Page) -> Figure:
    """The held-out loss of both models over the epochs."""
    figure, (one,) = panels(1)
    one.plot(page["plain_history"], color=ORANGE, label="plain")
    one.plot(page["history"], color=BLUE, label="variational")
    one.set(xlabel="epoch", ylabel="held-out loss, nats", ylim=(1.6, 3.0))
    one.legend(frameon=False, fontsize=8)
    return figure


def uncertainty(page: Page) -> Figure:
    """How uncertain the network is about known and foreign images."""
    figure, axes = panels(2)
    bins = torch.linspace(0, 2.1, 22).tolist()
    for one, (title, scores) in zip(axes, (("clean", page["clean"]), ("with draws", page["whole"])), strict=True):
        for name, color in (("known", GREEN), ("foreign", ORANGE)):
            shares = torch.full((len(scores[name]),), 100 / len(scores[name])).tolist()
            one.hist(scores[name].tolist(), bins, weights=shares, color=color, alpha=0.6, label=f"{name} digits")
        one.set_xlabel("entropy, nats")
        one.set_title(title, fontsize=9)
    axes[0].set_ylabel("share of images, %")
    axes[0].set_yscale("log")
    axes[1].legend(frameon=False, fontsize=8)
    return figure


def strength(page: Page) -> Figure:
    """Accuracy over the noise at test time, for networks trained at each strength."""
    figure, (one,) = panels(1, (5.2, 3.1))  # It shrinks to the width of a telephone.
    colors = (ORANGE, GREY, GREEN, BLUE)
    for color, (strength, found) in zip(colors, page["table"].items(), strict=True):
        label = f"trained with {strength}" if strength else "trained without noise"
        one.plot(page["levels"], found.mean(dim=0), "o-", color=color, label=label, markersize=4)
        low, high = found.amin(dim=0), found.amax(dim=0)
        one.fill_between(page["levels"], low, high, color=color, alpha=0.15, linewidth=0)
    one.set(xlabel="noise at test time, of the largest weight of each layer", ylabel="accuracy, %")
    one.legend(frameon=False, fontsize=10, loc="lower left")
    return figure


FIGURES: dict[str, Callable[[Page], Figure]] = {
    "hardware-aware": hardware_aware,
    "exploration": exploration,
    "variational": variational,
    "uncertainty": uncertainty,
    "strength": strength,
}
VECTORS = {"strength"}  # What is saved as SVG: it stands on the front page.


def file_name(name: str) -> str:
    """The file that holds the figure of a guide."""
    return f"guide-{name}.{'svg' if name in VECTORS else 'png'}"


def main() -> None:
    """Draw the figures that the command line names, or all."""
    parser = argparse.ArgumentParser(description="Draw the figures of the guides.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent / "assets")
    parser.add_argument("--only", choices=list(FIGURES), nargs="+", default=list(FIGURES))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        with torch.random.fork_rng(devices=[]):
            save(FIGURES[name](run(name)), options.folder / file_name(name))


if __name__ == "__main__":
    main()
