"""Robustness evaluations on the executors of other libraries: joblib's loky, and a local cluster of dask."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import pytest

import weightnoise as wn
from tests.robustness.subjects import total
from tests.robustness.test_executors import run, same
from tests.robustness.test_syntax import make

pytestmark = pytest.mark.ecosystem


def test_loky() -> None:
    loky = pytest.importorskip("joblib.externals.loky", reason="needs joblib")
    model, _ = make()
    assert same(run(model, executor=loky.get_reusable_executor(2)), run(model))
    # It brings cloudpickle, so that a lambda goes along.
    options: Any = {"law": wn.Gaussian(1.0), "metric": lambda model: 2 * total(model)}
    assert same(run(model, executor=loky.get_reusable_executor(2), **options), run(model, **options))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray() -> None:
    ray = pytest.importorskip("ray", reason="needs ray")

    class RayExecutor(Executor):
        def submit(self, function: Any, /, *args: Any, **options: Any) -> Any:
            return ray.remote(function).remote(*args, **options).future()

    model, _ = make()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert same(run(model, executor=RayExecutor()), run(model))
    finally:
        ray.shutdown()


@pytest.mark.filterwarnings("ignore")
def test_dask() -> None:
    distributed = pytest.importorskip("distributed", reason="needs dask and distributed")
    model, _ = make()
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert same(run(model, executor=client.get_executor()), run(model))
