"""A forward in which a draw is held, gradients off, over the plain forward; and an evaluation of many draws."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import weightnoise as wn
from tests.benchmarks.contenders import Step
from tests.benchmarks.measure import Row, against, interleave
from tests.benchmarks.options import Options, markdown
from tests.benchmarks.workloads import mlp, resnet

BATCHES, DRAWS = 20, 20  # Of an evaluation; as many draws as it has by default.
EVALUATION = f"evaluate_robustness, {BATCHES} batches a draw"

LAWS: dict[str, wn.Noise] = {
    "Gaussian": wn.Gaussian(0.01),
    "per channel": wn.Gaussian(0.01, relative_to="absmax", per=0),
    "StuckAt": wn.StuckAt(0.01),
    "Quantize": wn.Quantize(8),
    "ProgrammingNoise": wn.ProgrammingNoise(),
}


class Decoder(nn.Module):
    """A Transformer's layer that decodes one token, with the keys and values of those before it at hand."""

    def __init__(self, width: int = 512, past: int = 128) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.past = torch.randn(2, 1, 8, past, width // 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(1, 8, 1, -1) for layer in (self.query, self.key, self.value))
        keys, values = torch.cat([self.past[0], k], dim=2), torch.cat([self.past[1], v], dim=2)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, keys, values).view(1, 1, -1))
        output: Tensor = x + self.down(nn.functional.gelu(self.up(x)))
        return output


@dataclass(frozen=True)
class Case:
    """What makes a model, and an input for it."""

    model: Callable[[], nn.Module]
    x: Callable[[], Tensor]


CASES: dict[str, Case] = {
    "MLP 784-784-10, batch 64": Case(lambda: mlp(784, 784, 10), lambda: torch.randn(64, 784)),
    "small ResNet, batch 16": Case(resnet, lambda: torch.randn(16, 3, 32, 32)),
    "LSTM 128-512, 20 steps": Case(lambda: nn.LSTM(128, 512), lambda: torch.randn(20, 16, 128)),
    "Embedding 10,000 x 512": Case(lambda: nn.Embedding(10_000, 512), lambda: torch.randint(10_000, (16, 128))),
    "one token, 4 layers of 512": Case(
        lambda: nn.Sequential(*(Decoder() for _ in range(4))), lambda: torch.randn(1, 1, 512)
    ),
    "24 x Linear(8, 8), batch 4": Case(
        lambda: nn.Sequential(*(nn.Linear(8, 8) for _ in range(24))), lambda: torch.randn(4, 8)
    ),
}


def forwards(case: Case, laws: Sequence[str]) -> dict[str, Step]:
    """A plain forward, and one in a hold for each law; the holds stay open."""
    torch.manual_seed(0)
    model, x = case.model().eval(), case.x()
    steps: dict[str, Step] = {"plain": lambda: model(x)}
    for name in laws:
        noisy = wn.add_weight_noise(copy.deepcopy(model), {"*weight*": LAWS[name]})
        contextlib.ExitStack().enter_context(wn.hold_noise(noisy, seed=0))
        steps[name] = lambda noisy=noisy: noisy(x)  # type: ignore[misc]
    return steps


def evaluations(case: Case) -> dict[str, Step]:
    """As many draws of an evaluation, and the same forwards of the plain model."""
    torch.manual_seed(0)
    model, x = case.model().eval(), case.x()

    def metric(evaluated: nn.Module) -> float:
        return sum(evaluated(x).mean().item() for _ in range(BATCHES))

    def plain() -> None:
        for _ in range(DRAWS + 2):  # Two of them ask what the clean model has, and whether it has it twice.
            metric(model)

    def ours() -> None:
        wn.evaluate_robustness(model, metric, levels=[1.0], law=LAWS["Gaussian"], draws=DRAWS, progress=False)

    return {"plain": plain, EVALUATION: ours}


def run(options: Options, cases: Sequence[str] = tuple(CASES), laws: Sequence[str] = tuple(LAWS)) -> list[Row]:
    """A row for each case and law, and one for the evaluation of the first case."""
    rows = []
    with torch.no_grad():
        for case in cases:
            times = interleave(forwards(CASES[case], laws), options.seconds, options.about(f"held: {case}"))
            rows += [against(times, name) | {"case": case} for name in times]
        times = interleave(evaluations(CASES[cases[0]]), options.seconds, options.about("held: evaluation"))
    return [*rows, against(times, EVALUATION) | {"case": cases[0]}]


def table(rows: Sequence[Row]) -> str:
    """A line for each model, a column for each law."""
    found = {(row["case"], row["contender"]): row["ratio"] for row in rows}
    laws = [name for name in dict.fromkeys(row["contender"] for row in rows) if name in LAWS]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    lines = [[case, *(f"{found[case, law]:.2f}" for law in laws)] for case in cases]
    lines += [
        [f"{EVALUATION}: {case}", f"{ratio:.2f}", *[""] * (len(laws) - 1)]
        for (case, name), ratio in found.items()
        if name == EVALUATION
    ]
    return markdown(["held / plain forward", *laws], lines)
