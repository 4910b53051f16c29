"""A held draw is made once, whoever asks first and however often the asking fails."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightnoise as wn
from tests.helpers import seen
from weightnoise._noise.control import NoiseControl
from weightnoise._noise.held import HeldDraw

SIZES = [8, 64]  # From 2048 numbers on the C engine draws.


def at_once(call: Callable[[], Any], threads: int = 4) -> list[Any]:
    """What the call returns in each of some threads that start together."""
    barrier = threading.Barrier(threads)

    def run(_: int) -> Any:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, range(threads)))


@dataclass(frozen=True, eq=False)
class Slow:
    """Gaussian noise that takes its time, and fails at first where it is told to."""

    failures: list[int] = field(default_factory=list)

    def draw(self, weight: Tensor) -> Tensor:
        time.sleep(0.05)
        if self.failures:
            self.failures.pop()
            raise OSError("out of luck")
        return torch.randn(weight.shape)

    def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
        return weight + 0.1 * factor * noise

    def freeze(self, weight: Tensor, name: str) -> Tensor:
        return self.draw(weight)

    def redraw(self, weight: Tensor, frozen: Tensor) -> Tensor:
        return frozen


class SlowFresh(Slow):
    """As `Slow`, on no chip."""

    freeze = None  # type: ignore[assignment]
    redraw = None  # type: ignore[assignment]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("law", [SlowFresh(), wn.Gaussian(0.1)], ids=repr)
def test_a_draw_is_made_once(law: Any, seed: int | None, size: int) -> None:
    held, weight = HeldDraw(seed, 1), torch.randn(size, size)
    first, *others = at_once(lambda: held.draw(law, weight))
    assert isinstance(first, Tensor)
    assert all(other is first for other in others)


@pytest.mark.parametrize("seed", [None, 3])
def test_a_key_is_made_once(seed: int | None) -> None:
    held = HeldDraw(seed, 1)

    def make() -> Tensor | None:
        held.make_key()
        return held.key

    first, *others = at_once(make)
    assert all(other is first for other in others)


@pytest.mark.parametrize("size", SIZES)
def test_a_draw_that_failed_is_made_when_asked_again(size: int) -> None:
    held, weight, law = HeldDraw(None, 1), torch.randn(size, size), SlowFresh([1])
    with pytest.raises(OSError, match="out of luck"):
        held.draw(law, weight)
    assert isinstance(held.draw(law, weight), Tensor)


@pytest.mark.parametrize("size", SIZES)
def test_held_noise_on_activations_is_one_for_all_threads(size: int) -> None:
    model = wn.add_activation_noise(nn.Linear(size, size), SlowFresh())
    with wn.hold_noise(model), torch.no_grad():
        first, *others = at_once(lambda: model(torch.ones(size, size)))
        assert all(torch.equal(other, first) for other in others)


@pytest.mark.parametrize("size", SIZES)
def test_held_noise_on_activations_that_failed_takes_another_shape(size: int) -> None:
    model = wn.add_activation_noise(nn.Linear(size, size), SlowFresh([1]))
    with wn.hold_noise(model), torch.no_grad():
        with pytest.raises(OSError, match="out of luck"):
            model(torch.ones(2, size))
        assert torch.equal(model(torch.ones(3, size)), model(torch.ones(3, size)))


@pytest.mark.parametrize("size", SIZES)
def test_a_weight_that_comes_within_the_hold_has_one_draw(size: int) -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(size, size))
    wn.add_weight_noise(module, SlowFresh())
    module.weight = None
    with wn.hold_noise(module):
        module.weight = nn.Parameter(torch.zeros(size, size))
        first, *others = at_once(lambda: module.weight)
        assert all(torch.equal(other, first) for other in others)


@pytest.mark.parametrize("size", SIZES)
def test_what_a_chip_freezes_late_is_frozen_once(size: int) -> None:
    with torch.device("meta"):
        model = nn.Linear(size, size)
    wn.add_weight_noise(model, Slow([1]))
    model.to_empty(device="cpu")
    nn.init.zeros_(model._parameters["weight"])
    with pytest.raises(OSError, match="out of luck"):
        seen(model)
    first, *others = at_once(lambda: seen(model))
    assert first.any()
    assert all(torch.equal(other, first) for other in others)


def test_a_schedule_is_never_read_half_made() -> None:
    for _ in range(20):
        control = NoiseControl("always")
        stop = threading.Event()
        seen: set[float] = set()

        def read(control: NoiseControl = control, stop: threading.Event = stop, seen: set[float] = seen) -> None:
            while not stop.is_set():
                seen.add(float(control.compiled_factor()))

        thread = threading.Thread(target=read)
        thread.start()
        control.schedule(None, 0.25, torch.device("cpu"))
        time.sleep(0.001)
        stop.set()
        thread.join()
        assert seen <= {1.0, 0.25}


def test_a_held_draw_can_be_copied_and_pickled() -> None:
    held = HeldDraw(3, 1)
    held.draw(wn.Gaussian(0.1), torch.zeros(8, 8))
    for other in (copy.deepcopy(held), pickle.loads(pickle.dumps(held))):
        assert torch.equal(other.kept[0], held.kept[0])


def test_equal_blocks_made_noisy_by_several_threads_share_their_class() -> None:
    class Own(nn.Linear):
        pass

    made = at_once(lambda: wn.add_weight_noise(Own(4, 4), 0.1), 8)
    assert len({type(model) for model in made}) == 1


@pytest.mark.parametrize("seed", [None, 3])
def test_threads_leave_the_hold_that_they_entered(seed: int | None) -> None:
    model = wn.add_weight_noise(nn.Linear(8, 8), 0.1)
    held = wn.hold_noise(model, seed=seed)
    entered, left = threading.Event(), threading.Event()

    def other() -> None:
        with held:
            entered.set()
            left.wait()

    thread = threading.Thread(target=other)
    with held:
        own = model.parametrizations.weight[0].control.overrides[0]
        thread.start()
        entered.wait()
    overrides = model.parametrizations.weight[0].control.overrides
    assert len(overrides) == 1
    assert overrides[0] is not own
    left.set()
    thread.join()
    assert not model.parametrizations.weight[0].control.overrides
