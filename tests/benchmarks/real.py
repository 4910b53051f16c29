"""Models of real sizes: what noise costs a training step, an evaluation, memory, and the calls around them.

It takes minutes and some gigabytes, so that it runs only where it is asked for: ``--sections real``. The weights
are random and the models those of transformers' configurations; dropout is off: the steps differ by the noise.
"""

from __future__ import annotations

import argparse
import copy
import io
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import weightnoise as wn
from tests.benchmarks import processes
from tests.benchmarks.contenders import Step
from tests.benchmarks.layers import entered
from tests.benchmarks.measure import Row, against, interleave, short
from tests.benchmarks.options import Options, markdown
from tests.benchmarks.peaks import high_water

STD, ROUNDS = 0.01, 5
MEMORY = ("plain", "keep", "recompute")  # Of a training step.


@dataclass(frozen=True)
class Case:
    """A model of transformers, at its real size or a tiny one, and a batch of inputs for its ``forward``."""

    model: Callable[[bool], nn.Module]
    batch: Callable[[bool], dict[str, Tensor]]


def gpt2(tiny: bool) -> nn.Module:
    """GPT-2 small: 124 million parameters."""
    from transformers import GPT2Config, GPT2LMHeadModel

    options: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False}
    if tiny:
        options |= {"n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 32, "n_positions": 8}
        options |= {"bos_token_id": 1, "eos_token_id": 1}
    return GPT2LMHeadModel(GPT2Config(**options))


def tokens(tiny: bool) -> dict[str, Tensor]:
    """512 tokens, which are also what is to be predicted."""
    found = torch.randint(32 if tiny else 50_257, (1, 8 if tiny else 512))
    return {"input_ids": found, "labels": found}


def vit(tiny: bool) -> nn.Module:
    """ViT-B/16: 86 million parameters."""
    from transformers import ViTConfig, ViTForImageClassification

    options: dict[str, Any] = {"num_labels": 10}
    if tiny:
        options |= {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        options |= {"intermediate_size": 16, "image_size": 32}
    return ViTForImageClassification(ViTConfig(**options))


def resnet50(tiny: bool) -> nn.Module:
    """ResNet-50: 24 million parameters, with a head for ten classes."""
    from transformers import ResNetConfig, ResNetForImageClassification

    options: dict[str, Any] = {"num_labels": 10}
    if tiny:
        options |= {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    return ResNetForImageClassification(ResNetConfig(**options))


def images(tiny: bool) -> dict[str, Tensor]:
    """Four pictures of 224 x 224 and their classes."""
    side = 32 if tiny else 224
    return {"pixel_values": torch.randn(4, 3, side, side), "labels": torch.randint(10, (4,))}


CASES = {
    "GPT-2 small, 512 tokens": Case(gpt2, tokens),
    "ViT-B/16, 4 images": Case(vit, images),
    "ResNet-50, 4 images of 224": Case(resnet50, images),
}


def made(case: Case, way: str, tiny: bool) -> nn.Module:
    """A model with noise in one way, or without."""
    torch.manual_seed(0)
    model = case.model(tiny)
    return model if way == "plain" else wn.add_weight_noise(model, STD, memory=way)  # type: ignore[arg-type]


def training_step(model: nn.Module, batch: dict[str, Tensor]) -> Step:
    """Forward, backward and SGD, which keeps nothing of its own."""
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()

    return step


def calls(case: Case, tiny: bool) -> list[Row]:
    """Milliseconds of each call around the noise; a save and a load beside those of the plain model."""
    found: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[[], Any]) -> None:
        start = time.perf_counter()
        call()
        found.setdefault(name, []).append(1e3 * (time.perf_counter() - start))

    plain = made(case, "plain", tiny)
    for _ in range(ROUNDS):
        model = copy.deepcopy(plain)
        timed("plan", lambda: wn.plan_weight_noise(model, STD))  # noqa: B023  # It is called at once.
        timed("add", lambda: wn.add_weight_noise(model, STD))  # noqa: B023
        for context in (wn.no_noise, wn.hold_noise, wn.force_noise):
            timed(f"enter {context.__name__}", lambda: entered(context(model)))  # noqa: B023
        timed("enter scale_noise", lambda: entered(wn.scale_noise(model, 0.5)))  # noqa: B023
        for name, each in (("plain: ", plain), ("", model)):
            file = io.BytesIO()
            timed(f"{name}save", lambda: torch.save(each.state_dict(), file))  # noqa: B023
            file.seek(0)
            timed(f"{name}load", lambda: each.load_state_dict(torch.load(file)))  # noqa: B023
    return [{"what": name, "ms": short(statistics.median(times))} for name, times in found.items()]


def ratios(case: Case, tiny: bool, options: Options, about: str) -> list[Row]:
    """A training step with noise over the plain one, and a forward of a held draw over the plain forward."""
    batch = case.batch(tiny)
    steps = {way: training_step(made(case, way, tiny), batch) for way in MEMORY}
    times = interleave(steps, options.seconds, options.about(f"{about}: steps"))
    rows = [{"what": f"training step, {way}", **against(times, way)} for way in MEMORY]
    del steps
    plain, held = made(case, "plain", tiny).eval(), made(case, "keep", tiny).eval()
    with torch.no_grad(), wn.hold_noise(held, seed=0):
        forwards: dict[str, Step] = {"plain": lambda: plain(**batch), "held": lambda: held(**batch)}
        times = interleave(forwards, options.seconds, options.about(f"{about}: held"))
    return [*rows, *({"what": f"forward, {name}", **against(times, name)} for name in times)]


def peaks(name: str, tiny: bool, options: Options) -> list[Row]:
    """What noise adds to the peak memory of a training step, in MiB and in largest weights."""
    found = {}
    for way in MEMORY:
        options.progress(f"{name}: memory of {way}")
        command = [sys.executable, "-m", "tests.benchmarks.real", "--model", name, "--way", way]
        command += ["--threads", str(options.threads), *["--tiny"] * tiny]
        found[way] = float(processes.run(command, 1200, processes.TRIMMED))
    with torch.device("meta"):
        largest = max(p.numel() * 4 / 2**20 for p in CASES[name].model(tiny).parameters())
    more = {way: found[way] - found["plain"] for way in MEMORY[1:]}
    return [{"what": f"memory, {way}", "mib": short(m), "largest": short(m / largest)} for way, m in more.items()]


def run(options: Options, names: Iterable[str] = tuple(CASES), tiny: bool = False) -> list[Row]:
    """A row for each model and what is measured on it."""
    rows = []
    for name in names:
        case = CASES[name]
        found = [*calls(case, tiny), *ratios(case, tiny, options, name), *peaks(name, tiny, options)]
        rows += [{"model": name, **row} for row in found]
    return rows


def cell(row: Row) -> str:
    """Milliseconds, with a ratio to the plain model where there is one; or memory."""
    if "mib" in row:
        return f"{row['mib']:.0f} MiB, {row['largest']:.1f} largest weights"
    if "ratio" in row:
        return f"{row['milliseconds']:.1f} ms, {row['ratio']:.3f}"
    return f"{row['ms']:.1f} ms"


def table(rows: Sequence[Row]) -> str:
    """A line for each measure, a column for each model."""
    found = {(row["what"], row["model"]): cell(row) for row in rows}
    models = list(dict.fromkeys(row["model"] for row in rows))
    lines = [
        [what, *(found[what, model] for model in models)] for what in dict.fromkeys(row["what"] for row in rows)
    ]
    return markdown(["", *models], lines)


def main(argv: Sequence[str] | None = None) -> int:
    """A few training steps in one way; prints the peak of this process in MiB."""
    made_of = argparse.ArgumentParser(description=main.__doc__)
    made_of.add_argument("--model", choices=list(CASES), required=True)
    made_of.add_argument("--way", choices=MEMORY, required=True)
    made_of.add_argument("--threads", type=int, default=2)
    made_of.add_argument("--tiny", action="store_true")
    given = made_of.parse_args(argv)
    torch.set_num_threads(given.threads)
    case = CASES[given.model]
    step = training_step(made(case, given.way, given.tiny), case.batch(given.tiny))
    for _ in range(3):
        step()
    sys.stdout.write(f"{high_water()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
