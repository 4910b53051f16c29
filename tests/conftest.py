"""Every test starts from the same random state on one thread; which tests are for a quick run."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("default")


@pytest.hookimpl(tryfirst=True)  # Before what several tests share is made.
def pytest_runtest_setup() -> None:
    """Begin from the same random state, on one thread."""
    torch.manual_seed(0)
    # The models here are tiny; two threads that wait for each other on a busy machine take many times longer.
    torch.set_num_threads(1)
    # What the inductor of torch 2.5 compiles switches subnormal numbers off for the whole process, once loaded.
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)  # What several tests share may have drawn.


@pytest.fixture(autouse=True)
def _fresh_compiler(request: pytest.FixtureRequest) -> Iterator[None]:
    """Give each test that is marked ``compile`` a compiler that has compiled nothing."""
    compiles = request.node.get_closest_marker("compile") is not None
    if compiles:
        # For a log alone, torch times the guards of each graph with the processor's caches emptied before.
        request.getfixturevalue("monkeypatch").setattr(
            "torch._dynamo.guards.profile_guard_manager", lambda *_: 0.0, raising=False
        )
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
    yield
    if compiles:
        torch._dynamo.reset()
        pytest_collection_finish()  # The compiler is there to stay.


# Markers of whole files and folders, by the beginning of their path.
MARKED = {
    "benchmarks": "slow",
    "ecosystem": "ecosystem",
    "pretrained": "pretrained",
    "sanitizers": "slow",
    "torch/test_checkpoint_compiled": "compile",
    "torch/test_compile": "compile",
    "torch/test_distributed": "distributed",
    "zoo": "full",
}
# Files whose tests share what takes long to make: one process makes it.
TOGETHER = ("cli/test_digits", "pretrained")
# What a quick run leaves out, but for tests that are marked with ``quick``: one of each kind.
LEFT_OUT = ("full", "exhaustive", "compile", "distributed", "ecosystem", "slow", "pretrained")
_MANY = 8
# Of the larger products, a run has as many cases as it takes to see every pair of values of two axes together.
_MANY_PAIRS = 16


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help=f"leave out what is {', '.join(LEFT_OUT)}")
    parser.addoption(
        "--product", action="store_true", help="all of large products, and what takes a billion numbers"
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out whole folders before their packages are imported."""
    whole = config.getoption("--quick") and MARKED.get(collection_path.name) in LEFT_OUT
    return True if whole and collection_path.parent == Path(__file__).parent else None


def pytest_configure(config: pytest.Config) -> None:
    """Let ``-n`` keep groups of tests together."""
    gc.disable()  # Until the tests are collected: nothing of them is garbage.
    if getattr(config.option, "dist", None) == "load":
        config.option.dist = "loadgroup"
    if hasattr(config, "workerinput"):  # A worker reads the command line again.
        config.option.loadgroup = True


@pytest.hookimpl(tryfirst=True)  # Before xdist looks at the groups.
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark whole folders and the larger part of large products; leave them out of a quick run."""
    products: dict[object, list[pytest.Item]] = {}
    for item in items:
        products.setdefault(_function(item), []).append(item)
    for item in items:
        path = item.path.relative_to(Path(__file__).parent).as_posix()
        for beginning, marker in MARKED.items():
            if path.startswith(beginning):
                item.add_marker(marker)
        if path.startswith(TOGETHER):
            item.add_marker(pytest.mark.xdist_group(path))
        if item.get_closest_marker("distributed"):
            item.add_marker(pytest.mark.xdist_group("distributed"))  # One pair of processes at a time.
        product = products[_function(item)]
        if len(product) > _MANY and _steps(_parameters(product[0]), _parameters(item)) > 1:
            item.add_marker("full")
    left: set[pytest.Item] = set()
    if config.getoption("--quick"):
        left = {item for item in items if _is_left_out(item)}
    elif not config.getoption("--product"):
        left = {item for item in items if item.get_closest_marker("exhaustive")}
        rest = ([item for item in product if item not in left] for product in products.values())
        large = [product for product in rest if len(product) > _MANY_PAIRS]
        left |= {item for product in large for item in product}.difference(*map(_pairs, large))
    config.hook.pytest_deselected(items=[item for item in items if item in left])
    items[:] = [item for item in items if item not in left]


def pytest_collection_finish() -> None:
    """Keep torch and the tests themselves out of what looks through the memory, such as collections of garbage."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


def _function(item: pytest.Item) -> tuple[Path, str]:
    return item.path, item.name.partition("[")[0]


def _parameters(item: pytest.Item) -> Mapping[str, object]:
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}


def _pairs(product: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Cases of a product in which each value of an axis meets each of another; those with most new pairs first."""
    axes = {item: [(name, id(value)) for name, value in _parameters(item).items()] for item in product}
    pairs = {item: frozenset(combinations(places, 2)) for item, places in axes.items()}
    most = max(map(len, pairs.values()))
    seen: set[object] = set()
    chosen = [item for item in product if not pairs[item]]  # Of one axis, or none.
    for new in range(most, 0, -1):
        for item, own in pairs.items():
            if len(own - seen) >= new:
                chosen.append(item)
                seen |= own
    return chosen


def _steps(first: Mapping[str, object], other: Mapping[str, object]) -> int:
    """Along how many axes a case of a product differs from the first: one for each law on one model, and so on."""
    return sum(value is not first[name] for name, value in other.items())


def _is_left_out(item: pytest.Item) -> bool:
    return not item.get_closest_marker("quick") and any(item.get_closest_marker(marker) for marker in LEFT_OUT)
