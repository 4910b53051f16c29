"""Each section of the benchmark at a small size: what it measures, and what its table says."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightnoise as wn
from tests.benchmarks import (
    compiled,
    draws,
    embeddings,
    growth,
    held,
    layers,
    memory,
    moves,
    numbers,
    prices,
    processes,
    small,
    tensors,
    together,
)
from tests.benchmarks.measure import Row, against, interleave
from tests.benchmarks.options import Options
from tests.benchmarks.workloads import WORKLOADS, Workload, labels, mlp

FAST = Options(seconds=0.0, threads=1)
NAME = next(iter(WORKLOADS))
SMALL = Workload(lambda: mlp(6, 5, 4), lambda: (torch.randn(8, 6), labels(8, 4)))


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line]


def columns(table: str) -> set[int]:
    return {len(line) for line in cells(table)}


def test_a_contender_is_compared_round_by_round() -> None:
    row = against({"plain": [1.0, 2.0, 4.0], "slow": [2.0, 4.0, 12.0]}, "slow")
    assert (row["ratio"], row["milliseconds"], row["extra"], row["rounds"]) == (2.0, 4000.0, 2000.0, 3)
    assert row["quartiles"] == [2.0, 3.0]


def test_every_round_has_every_contender_in_changing_order() -> None:
    calls: list[str] = []
    steps = {name: functools.partial(calls.append, name) for name in ("plain", "a", "b")}
    times = interleave(steps, 0.0, lambda text: None)
    assert {name: len(found) for name, found in times.items()} == {"plain": 5, "a": 5, "b": 5}
    timed = "".join(name[0] for name in calls).lstrip("p")
    assert len({timed.count(name) for name in "ab"}) == 1
    runs = [name for name, last in zip(calls[9:], calls[8:], strict=False) if name != last]
    assert len({tuple(runs[start : start + 3]) for start in range(0, 15, 3)}) > 1


def test_compiled_models_are_compared_with_compiled_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setitem(WORKLOADS, NAME, SMALL)
    rows = compiled.run(Options(seconds=0.0, workloads=[NAME]))
    assert [row["contender"] for row in rows] == list(compiled.WAYS)
    assert rows[0]["compiled"] == rows[0]["ratio"] == 1.0
    assert all(row["graphs"] == 1 and row["compiled"] > 0 for row in rows)
    found = cells(compiled.table(rows))
    assert [line[1] for line in found[2:]] == list(compiled.NOISY)
    times = rows[1]["compile_seconds"] / rows[0]["compile_seconds"]
    assert found[2][6].endswith(f"({times:.1f})")
    difference = rows[1]["compiled"] - rows[1]["ratio"]
    assert float(found[2][4]) == pytest.approx(difference, abs=0.0051)


def test_a_model_that_does_not_compile_is_told_and_takes_nothing_from_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: Any) -> list[Row]:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(compiled, "compare_compiled", fail)
    table = compiled.table(compiled.run(Options(workloads=list(WORKLOADS)[:2])))
    assert columns(table) == {7}
    assert table.count("RuntimeError: no such operator") == 2 * len(compiled.NOISY)


@pytest.mark.parametrize("name", compiled.WAYS)
def test_what_is_compiled_has_the_noise_that_it_is_called_after(name: str) -> None:
    model = SMALL.model()
    before = compiled.WAYS[name](model)
    x, _ = SMALL.batch()
    first, _ = model(x), before and before()
    assert torch.equal(first, model(x)) == (name in ("plain", "weightnoise, hold"))
    assert (before is not None) == (name == "weightnoise, schedule")
    assert wn.has_weight_noise(model) == (name.startswith("weightnoise") and "activations" not in name)


@pytest.mark.parametrize("size", growth.SIZES[:-1])
def test_the_family_has_the_size_it_says(size: int) -> None:
    with torch.device("meta"):
        model = growth.family(size).model()
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(size, rel=0.1)


def test_growth_is_per_parameter() -> None:
    rows = growth.run(FAST, sizes=(30, 300))
    assert [row["parameters"] for row in rows] == [30] * 5 + [300] * 5
    assert all(row["ns"] == pytest.approx(1e6 * row["extra"] / row["parameters"]) for row in rows)
    ratios, added = growth.table(rows).split("\n\n")
    assert columns(ratios) == {6}
    assert columns(added) == {5}


def test_tensors_share_out_a_million_parameters() -> None:
    for count, width in tensors.SHAPES[:4]:
        with torch.device("meta"):
            sizes = [p.numel() for p in tensors.family(count, width).model().parameters()]
        assert len(sizes) == count
        assert sum(sizes) == pytest.approx(1e6, rel=0.03)


def test_tensors_are_told_per_tensor() -> None:
    rows = tensors.run(FAST, shapes=((2, 4), (1, 32), (3, 32)))
    assert all(row["us"] == pytest.approx(1e3 * row["extra"] / row["tensors"]) for row in rows)
    ratios, added = tensors.table(rows).split("\n\n")
    assert [line[0] for line in cells(ratios)[2:]] == ["2 of 4 x 4"]
    assert [line[0] for line in cells(added)[2:]] == ["1 of 32 x 32", "3 of 32 x 32"]


def test_small_layers_are_told_beside_one_by_hand() -> None:
    rows = small.run(FAST, models=["Linear(8, 8), forward", "Linear(8, 8), step"])
    assert [row["contender"] for row in rows] == ["plain", *small.WAYS] * 2
    found = cells(small.table([{**row, "ratio": 1.5, "by_hand": 1.2, "milliseconds": 0.01} for row in rows]))
    assert found[3] == ["Linear(8, 8), step", "10", "1.50", "1.50", "1.50", "1.20"]


@pytest.mark.parametrize("name", [name for name in small.MODELS if "1,000" not in name])
def test_the_layer_by_hand_has_noise_and_the_gradient(name: str) -> None:
    model = small.MODELS[name].model()
    clean, (x, y) = model(small.MODELS[name].batch()[0]), small.MODELS[name].batch()
    small.by_hand(small.MODELS[name], model, 0.5)
    assert not torch.equal(model(x), clean)
    nn.functional.cross_entropy(model(x), y).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_forwards_in_a_hold_are_told_by_model_and_law() -> None:
    rows = held.run(FAST, cases=list(held.CASES)[-1:], laws=["Gaussian", "StuckAt"])
    found = cells(held.table([{**row, "ratio": 1.5} for row in rows]))
    assert found[2] == ["24 x Linear(8, 8), batch 4", "1.50", "1.50"]
    assert found[3] == [f"{held.EVALUATION}: 24 x Linear(8, 8), batch 4", "1.50", ""]
    assert [row["contender"] for row in rows] == ["plain", "Gaussian", "StuckAt", held.EVALUATION]


def test_calls_are_told_per_layer_with_the_collector_and_without() -> None:
    rows = layers.run(FAST, sizes=(10, 20))
    assert [(row["layers"], row["collected"]) for row in rows[:: len(layers.CALLS)]] == [
        (size, collected) for collected in (True, False) for size in (10, 20)
    ]
    assert all(row["us"] > 0 for row in rows)
    found = cells(layers.table([{**row, "us": float(row["layers"])} for row in rows]))
    assert [line[0] for line in found[2:]] == list(layers.CALLS)
    assert all(line[1:] == ["10.0", "20.0", "2.00", "2.00"] for line in found[2:])


class Kept(nn.Linear):
    """Keeps what it puts out."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        self.seen: list[tuple[float, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.seen.append(tuple(y.flatten().tolist()))
        return y


@pytest.mark.parametrize("contender", draws.CONTENDERS)
def test_an_evaluation_draws_as_often_as_it_says(contender: str) -> None:
    torch.manual_seed(0)
    model = Kept()
    parameter, before = model.weight, model.weight.detach().clone()
    with torch.no_grad():
        x = torch.randn(1, 3)
        clean = tuple(nn.functional.linear(x, model.weight, model.bias).flatten().tolist())
        draws.CONTENDERS[contender](model, x, 0.5)()
    # Also without noise: evaluate_robustness asks whether the metric gives the same twice.
    assert len({*model.seen, clean}) == (1 if contender == "plain" else 1 + draws.DRAWS)
    assert torch.equal(parameter, before)


def test_draws_are_told_per_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WORKLOADS, NAME, SMALL)
    rows = draws.run(Options(seconds=0.0, workloads=[NAME]))
    assert [row["contender"] for row in rows] == list(draws.CONTENDERS)
    assert columns(draws.table(rows)) == {len(draws.CONTENDERS) + 1}
    assert draws.per_draw({"milliseconds": 40.0, "extra": 20.0}, 20) == {"milliseconds": 2.0, "extra": 1.0}


def test_draws_together_are_compared_with_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    some = dict(list(together.models().items())[:2])
    monkeypatch.setattr(together, "models", lambda: some)
    rows = together.run(FAST, draws=(2,))
    assert [row["model"] for row in rows] == list(some)
    assert columns(together.table(rows)) == {3}


def test_the_embeddings_are_timed_four_ways() -> None:
    rows = embeddings.run(FAST, vocabulary=5000, width=16)
    assert [row["contender"] for row in rows] == [
        "plain",
        "weightnoise on",
        "weightnoise, whole matrix drawn",
        "naive parametrization",
    ]
    assert len(cells(embeddings.table(rows))) == 6


def test_numbers_are_told_per_number() -> None:
    rows = numbers.run(Options(seconds=0.0, threads=2))
    assert {row["threads"] for row in rows} == {1, 2}
    assert all(row["ns"] == pytest.approx(row["milliseconds"], rel=1e-3) for row in rows)
    assert columns(numbers.table(rows)) == {3}


def test_a_read_of_the_weight_alone_is_noisy() -> None:
    layer = wn.add_weight_noise(numbers.Weight(4, 4), 0.1)
    assert not torch.equal(layer(), layer())


def test_prices_are_told_per_weight_and_against_the_first_law() -> None:
    rows = prices.run(FAST, laws=list(prices.LAWS)[:2])
    found = cells(prices.table([{**row, "ns": 3.0, "ratio": 1.5} for row in rows]))
    assert [line[0].strip("`") for line in found[2:]] == [*list(prices.LAWS)[:2], prices.RANDN]
    assert all(line[1:] == ["3.00", "1.5", "3.00"] for line in found[2:])


def fake_peaks(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    commands: list[list[str]] = []

    def run(command: Sequence[str], *rest: Any) -> str:
        commands.append(list(command))
        return "100.0\n" if "plain" in command else "130.517578125\n"

    monkeypatch.setattr(processes, "run", run)
    return commands


def test_memory_is_what_a_way_takes_on_top_of_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = fake_peaks(monkeypatch)
    rows = memory.run(FAST, layers=3, width=2000, ways=["Gaussian, keep"])
    assert [command[:5] for command in commands] == [
        [sys.executable, "-m", "tests.benchmarks.memory", "--way", way] for way in ("plain", "Gaussian, keep")
    ]
    assert cells(memory.table(rows))[2] == ["Gaussian, keep", "31", "2.0", "0.67"]


def test_moves_are_timed_and_their_memory_is_that_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = fake_peaks(monkeypatch)
    rows = moves.run(FAST, layers=2, width=50)
    assert [row["contender"] for row in rows] == list(moves.WAYS)
    assert [command[2] for command in commands] == ["tests.benchmarks.moves"] * len(moves.WAYS)
    assert columns(moves.table(rows)) == {5}


@pytest.mark.parametrize("way", moves.WAYS)
def test_every_way_moves_there_and_back(way: str) -> None:
    model = moves.matrices(2, 50)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen: list[Tensor] = []
    moves.WAYS[way](model, lambda: seen.append(model[1].weight.detach().clone()))(0)
    with wn.no_noise(model):
        middle, start = (seen[0] + seen[1]) / 2, before["1.weight"]
        torch.testing.assert_close(middle, start, rtol=0, atol=1e-6)
        assert ((seen[0] - start).std() / moves.STD).item() == pytest.approx(0 if way == "no move" else 1, abs=0.1)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, before[name], rtol=0, atol=moves.STD / 50)


def test_gradients_are_kept_while_memory_is_measured() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = memory.sgd([parameter])
    parameter.sum().backward()
    gradient = parameter.grad
    optimizer.zero_grad()
    assert parameter.grad is gradient
    assert gradient is not None
    assert torch.equal(gradient, torch.zeros(2))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_recomputed_weights_take_the_memory_of_one() -> None:
    ways = ["Gaussian, keep", "Gaussian, recompute"]
    found = {row["contender"]: row["matrices"] for row in memory.run(FAST, layers=12, width=1500, ways=ways)}
    assert found["Gaussian, keep"] > 9
    assert found["Gaussian, recompute"] < 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("WARNING: old\nERROR: no matching version\nnote: more", "ERROR: no matching version"),
        ("Traceback:\n  File\nImportError: no module\n", "ImportError: no module"),
        ("", ""),
    ],
)
def test_a_failure_is_told_in_a_line(text: str, reason: str) -> None:
    assert processes.reason(text) == reason


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ValueError('this way')", "ValueError: this way"),
        ("raise SystemExit(3)", "exit status 3"),
        ("import time; time.sleep(20)", "took longer than 1 seconds"),
    ],
)
def test_a_process_that_fails_says_why(code: str, message: str) -> None:
    with pytest.raises(processes.ProcessError, match=f"^{message}$"):
        processes.run([sys.executable, "-c", code], 1)


def test_a_process_runs_in_the_repository_with_its_variables() -> None:
    code = "import os; print(os.path.exists('pyproject.toml'), os.environ['ONE'])"
    assert processes.run([sys.executable, "-c", code], 20, {"ONE": "two"}) == "True two\n"
