"""Draws that other processes measure: the same bits, the model sent once, and workers that die."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import weightnoise as wn
from tests.robustness.subjects import Counted, Deadly, Failing, Meeting, total, with_noise
from tests.robustness.test_syntax import GAUSSIAN, make
from weightnoise._robustness import workers as _workers

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.xdist_group("executors"),
]


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as made:
        yield made


def run(model: nn.Module, metric: Any = total, **options: Any) -> wn.RobustnessReport:
    options = {"levels": [0.0, 0.1, 0.3], "law": GAUSSIAN, "draws": 10, "progress": False, **options}
    return wn.evaluate_robustness(model, metric, **options)


def same(a: wn.RobustnessReport, b: wn.RobustnessReport) -> bool:
    first, second = a.to_dict(), b.to_dict()
    for one in (first, second):
        one["made_by"].pop("date")
    return first == second


@pytest.mark.filterwarnings("ignore::weightnoise.NondeterministicMetricWarning")
@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"antithetic": True, "seed": 4},
        {"by_parameter": True, "draws": 3},
        {"law": None, "laws": {"a": GAUSSIAN, "b": [wn.Clip(2.0), wn.StuckAt(zero=1.0)]}},
        {"law": lambda level: {"0.*": wn.Gaussian(level)}, "draws": range(3, 9)},
        {"until_sem": 0.5, "draws": 60, "levels": [0.1]},
        {"metric": with_noise},
        {"threshold": 0.0, "higher_is_better": False},
    ],
    ids=lambda one: ",".join(one) or "plain",
)
def test_the_report_is_that_of_one_process(pool: Executor, options: dict[str, Any], size: int) -> None:
    model = nn.Sequential(nn.Linear(8, size), nn.Tanh(), nn.Linear(size, size))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert same(run(model, executor=pool, **options), run(model, **options))
    finally:
        torch.set_num_threads(before)
    assert not wn.has_weight_noise(model)


def test_the_noise_that_a_model_carries_goes_along(pool: Executor) -> None:
    model, _ = make()
    wn.add_activation_noise(wn.add_weight_noise(model, wn.LearnedGaussian(0.3)), 0.1)
    wn.NoiseScheduler(model, lambda step: 0.5)
    assert same(run(model, law=None, executor=pool), run(model, law=None))
    with wn.scale_noise(model, 0.5), pytest.raises(wn.OptionError, match="does not go inside a context"):
        run(model, law=None, executor=pool)


def test_a_tolerance_is_that_of_one_process(pool: Executor) -> None:
    model, _ = make()
    options: Any = {"at_least": -3.0, "draws": 6, "progress": False}
    one, many = (wn.find_level(model, total, GAUSSIAN, executor=executor, **options) for executor in (None, pool))
    assert many.level == one.level
    assert many.interval == one.interval
    assert same(many.report, one.report)


def test_threads_and_their_own_models() -> None:
    model, _ = make()
    with ThreadPoolExecutor(3) as threads:
        assert same(run(model, executor=threads), run(model))


def test_the_model_is_sent_once_to_each_worker(tmp_path: Path) -> None:
    Counted.folder = str(tmp_path)
    model = nn.Sequential(Counted(8, 8), nn.Linear(8, 8))
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        run(model, executor=pool, draws=20)
    by_process = [path.name.partition("-")[0] for path in tmp_path.iterdir()]
    assert str(os.getpid()) not in by_process
    # A worker may be handed a second one at the start, while the other one is still waking up.
    assert 1 <= len(set(by_process)) <= 2
    assert len(by_process) <= 4


def test_draws_are_shared_out_in_whole_pairs() -> None:
    assert _workers.chunks(range(20), 2, pairs=False)[0] == (0, 1)
    assert all(len(piece) % 2 == 0 for piece in _workers.chunks(range(20), 3, pairs=True))
    assert sum(_workers.chunks(range(7), 2, pairs=False), ()) == tuple(range(7))


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_worker_that_dies_is_told_and_its_draws_are_done_again(tmp_path: Path, deaths: int) -> None:
    model, _ = make()
    metric = Deadly(tmp_path, deaths, os.getpid())
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        with pytest.warns(wn.WorkerLostWarning, match="draws that were on their way are done again") as caught:
            report = run(model, metric, executor=pool)
        assert caught[0].filename == __file__
    assert report.values.equal(run(model, metric).values)


def test_workers_that_always_die(tmp_path: Path) -> None:
    model, _ = make()
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool,
        pytest.warns(wn.WorkerLostWarning),
        pytest.raises(wn.WeightNoiseError, match="Workers have died 4 times"),
    ):
        run(model, Deadly(tmp_path, 100, os.getpid()), executor=pool)
    assert not wn.has_weight_noise(model)


def test_an_error_of_the_metric_comes_through(pool: Executor) -> None:
    model, _ = make()
    with pytest.raises(ZeroDivisionError, match="mine"):
        run(model, Failing(os.getpid()), executor=pool)
    assert run(model, executor=pool).draws.tolist() == [10, 10, 10]


class Unpicklable:
    """A metric with a lock in it, so to say."""

    def __call__(self, model: nn.Module) -> float:
        return 0.0

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle a lock")


def test_what_cannot_be_sent_is_named(pool: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = make()
    text = "The metric tests.robustness.test_executors.Unpicklable cannot be sent .*a lock. Define it at the top"
    with pytest.raises(wn.OptionError, match=text):
        run(model, Unpicklable(), executor=pool)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(wn.OptionError, match=r"The metric .*<lambda> of line \d+ cannot be sent"):
        run(model, lambda model: 0.0, executor=pool)
    model.register_buffer("hook", None)
    model[0].register_forward_hook(lambda *args: None)
    with pytest.raises(wn.OptionError, match="The model Sequential cannot be sent"):
        run(model, executor=pool)


@pytest.mark.parametrize("executor", [3, "pool", multiprocessing])
def test_what_is_no_executor(executor: Any) -> None:
    with pytest.raises(wn.OptionTypeError, match=r"takes an executor of concurrent\.futures"):
        run(make()[0], executor=executor)


def test_a_closed_executor_and_vectorized_draws() -> None:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(wn.OptionError, match=r"takes no work: .* Give an open one"):
        run(make()[0], executor=pool)
    with pytest.raises(wn.OptionError, match=r"vectorize=True\) goes without executor"):
        run(make()[0], executor=pool, vectorize=True)


class Shuffled(Executor):
    """An executor whose answers come in an order of their own."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Any]] = []
        self._max_workers = 3

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        self.waiting.append((future, lambda: function(*args, **kwargs)))
        if len(self.waiting) >= (6 if args else 1):
            self.answer()
        return future

    def answer(self) -> None:
        for future, call in reversed(self.waiting):
            future.set_result(call())
        self.waiting.clear()


def test_the_order_of_answers_changes_nothing() -> None:
    model, _ = make()
    options: Any = {"until_sem": 0.5, "draws": 48, "levels": [0.1]}
    assert same(run(model, executor=Shuffled(), **options), run(model, **options))


def test_two_workers_measure_at_the_same_time(pool: Executor, tmp_path: Path) -> None:
    model, _ = make()
    run(model, Meeting(tmp_path, os.getpid()), levels=[0.1], executor=pool)  # One alone would wait for ever.
    assert len(list(tmp_path.iterdir())) == 2
