"""Small layers, where noise costs what its calls cost: beside a noisy layer that is written by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.benchmarks.contenders import CONTENDERS, Contender, Step, plain_step
from tests.benchmarks.measure import Row, against, interleave, steps_for
from tests.benchmarks.options import Options, markdown
from tests.benchmarks.tensors import SMALL, family
from tests.benchmarks.workloads import Workload, labels

BY_HAND = "layer by hand"
WAYS = ("weightnoise on", "weightnoise off", BY_HAND)


class NoisyLinear(nn.Linear):
    """The least that noise on a weight can be in Python: no switch, and a draw that nobody keeps."""

    std = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + self.std * torch.randn_like(self.weight), self.bias)


def by_hand(workload: Workload, model: nn.Module, std: float) -> Step:
    """The model with that layer in the place of each Linear."""
    for layer in list(model.modules()):
        if isinstance(layer, nn.Linear):
            layer.__class__ = NoisyLinear
            layer.std = std  # type: ignore[assignment]
    return plain_step(workload, model)


def chain(layers: int, *, trains: bool) -> Workload:
    """As many Linear(8, 8), one after the other."""
    model: Callable[[], nn.Module] = lambda: nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers)))  # noqa: E731
    return Workload(model, lambda: (torch.randn(4, 8), labels(4, 8)), trains)


MODELS = {
    "Linear(8, 8), forward": chain(1, trains=False),
    "Linear(8, 8), step": chain(1, trains=True),
    "24 x Linear(8, 8), forward": chain(24, trains=False),
    "24 x Linear(8, 8), step": chain(24, trains=True),
    f"1,000 x Linear({SMALL}, {SMALL}), step": family(1000, SMALL),
}


def run(options: Options, models: Sequence[str] = tuple(MODELS)) -> list[Row]:
    """A row for each model and way; ``by_hand`` is the ratio to the layer by hand in the same rounds."""
    ways: dict[str, Contender] = {**CONTENDERS, BY_HAND: by_hand}
    rows = []
    for name in models:
        steps = steps_for(MODELS[name], WAYS, ways=ways)
        times = interleave(steps, options.seconds, options.about(name))
        for way in steps:
            rows.append({"model": name, **against(times, way), "by_hand": against(times, way, BY_HAND)["ratio"]})
    return rows


def table(rows: Sequence[Row]) -> str:
    """Microseconds of the plain model, each way over it, and weightnoise over the layer by hand."""
    found = {(row["model"], row["contender"]): row for row in rows}
    lines = []
    for name in dict.fromkeys(row["model"] for row in rows):
        ratios = [f"{found[name, way]['ratio']:.2f}" for way in WAYS]
        last = f"{found[name, WAYS[0]]['by_hand']:.2f}"
        lines.append([name, f"{1e3 * found[name, 'plain']['milliseconds']:.0f}", *ratios, last])
    return markdown(["", "plain, µs", *WAYS, "on / by hand"], lines)
