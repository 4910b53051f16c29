"""Errors, interrupts, threads, processes and surgery on the model: afterwards the state is exact and usable."""

from __future__ import annotations

import copy
import inspect
import linecache
import multiprocessing
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import weightnoise as wn
from tests.cases import CASES, kinds_of_noise
from weightnoise._attach.find import every_noise, module_noise
from weightnoise._random import common

X = torch.linspace(-1.0, 1.0, 20).reshape(5, 4)
PACKAGE = str(Path(wn.__file__).parent)


@dataclass
class Trap(nn.Module):
    """A part of a model that can be made to fail."""

    error: type[BaseException] | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        if self.error is not None:
            raise self.error("in the forward")
        return x

    __hash__ = nn.Module.__hash__


@dataclass(frozen=True, eq=False)
class Fragile:
    """Gaussian noise that fails at the chosen call, counted from now."""

    fails: dict[str, Any] = field(default_factory=dict)

    def arm(self, where: str, error: type[BaseException], after: int = 0) -> None:
        self.fails.update(where=where, error=error, after=after)

    def disarm(self) -> None:
        self.fails.clear()

    def _maybe(self, where: str) -> None:
        if self.fails.get("where") == where:
            if self.fails["after"] == 0:
                raise self.fails["error"](where)
            self.fails["after"] -= 1

    def draw(self, weight: Tensor) -> Tensor:
        self._maybe("draw")
        return torch.randn(weight.shape, dtype=weight.dtype)

    def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
        self._maybe("apply")
        return weight + 0.2 * factor * noise


@dataclass(frozen=True, eq=False)
class FragileToAdd(Fragile):
    """Fails also while it is added."""

    def strengths(self, weight: Tensor) -> dict[str, Tensor]:
        self._maybe("strengths")
        return {}

    def freeze(self, weight: Tensor, name: str) -> None:
        self._maybe("freeze")


KINDS = kinds_of_noise(0.2)
kinds = pytest.mark.parametrize("kind", KINDS)
ERRORS = [RuntimeError, MemoryError, KeyboardInterrupt, SystemExit]
errors = pytest.mark.parametrize("error", ERRORS)


def small() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), Trap(), nn.Linear(6, 3))


def state(model: nn.Module) -> list[Any]:
    """What a plain model is made of: objects, values, classes, attributes, hooks."""
    return [
        [(name, id(p), p.requires_grad, p.tolist()) for name, p in model.named_parameters()],
        [(name, type(module), sorted(vars(module))) for name, module in model.named_modules()],
        [(list(module._forward_hooks), list(module._forward_pre_hooks)) for module in model.modules()],
    ]


def assert_nothing_is_stuck(model: nn.Module) -> None:
    """No forward is running, no context is open, the noise is on and fresh, and it holds and switches off."""
    for module in model.modules():
        attached = module_noise(module)
        assert attached is None or attached.frames.running == []
    assert not model._forward_pre_hooks
    assert common._RUNNING.now() is None
    for noise in every_noise(model):
        control = noise.control
        assert (control.overrides, control.off, control.held, control.factor) == ([], False, None, 1.0)
    assert not torch.equal(model(X), model(X))
    with wn.hold_noise(model, seed=0):
        assert torch.equal(model(X), model(X))
    with wn.no_noise(model):
        assert torch.equal(model(X), model(X))


def assert_comes_off(model: nn.Module, plain: list[Any]) -> None:
    if wn.has_weight_noise(model):
        wn.remove_weight_noise(model)
    if wn.noisy_activations(model):
        wn.remove_activation_noise(model)
    assert state(model) == plain
    assert torch.equal(model(X), model(X))


def assert_sound(model: nn.Module, plain: list[Any]) -> None:
    assert_nothing_is_stuck(model)
    assert_comes_off(model, plain)


@errors
@kinds
def test_a_failure_inside_a_forward(kind: str, error: type[BaseException]) -> None:
    model = small()
    plain = state(model)
    KINDS[kind](model)
    trap = model[1]
    assert isinstance(trap, Trap)
    trap.error = error
    for context in (wn.scale_noise(model, 1.0), wn.hold_noise(model), wn.no_noise(model)):
        with pytest.raises(error, match="in the forward"), context:
            model(X)
    with pytest.raises(error, match="in the forward"):
        model(X)
    trap.error = None
    assert_sound(model, plain)


@kinds
def test_a_failure_inside_the_forward_of_the_layer_that_owns_the_weight(kind: str) -> None:
    model = small()
    plain = state(model)
    KINDS[kind](model)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.ones(5, 7))
    assert_sound(model, plain)


@pytest.mark.parametrize("case", ["lstm", "attention", "transformer"])
def test_a_failure_inside_the_forward_of_a_layer_with_many_weights(case: str) -> None:
    model = CASES[case].model()
    parameters = list(model.parameters())
    wn.add_weight_noise(model, 0.2)
    with pytest.raises((RuntimeError, AssertionError)):
        model(torch.ones(2, 5, 9))
    x = CASES[case].batch()
    assert not torch.equal(model(x), model(x))
    wn.remove_weight_noise(model)
    assert torch.equal(model(x), CASES[case].model()(x))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))


@errors
@pytest.mark.parametrize("where", ["draw", "apply"])
@pytest.mark.parametrize("add", [wn.add_weight_noise, wn.add_activation_noise])
def test_a_failure_inside_a_law(add: Any, where: str, error: type[BaseException]) -> None:
    model, law = small(), Fragile()
    plain = state(model)
    add(model, law)
    law.arm(where, error, after=1)  # The first layer goes well, the second does not.
    with pytest.raises(error, match=where):
        model(X)
    law.disarm()
    assert_sound(model, plain)


@errors
def test_a_failure_inside_a_hold_that_opens_or_resets(error: type[BaseException]) -> None:
    model, law = small(), Fragile()
    plain = state(model)
    wn.add_weight_noise(model, law)
    law.arm("draw", error, after=1)
    with pytest.raises(error), wn.hold_noise(model):
        raise AssertionError("not to be reached")
    law.disarm()
    with wn.hold_noise(model, seed=1) as held:
        before = model(X)
        law.arm("draw", error, after=1)
        with pytest.raises(error):
            held.reset()
        law.disarm()
        assert torch.equal(model(X), before)  # The draw that was held is held still.
        held.reset()
        after = model(X)
        assert not torch.equal(after, before)
    with wn.hold_noise(model, seed=1) as held:
        held.reset()
        assert torch.equal(model(X), after)  # The one that failed does not count in the series.
    assert_sound(model, plain)


@errors
@pytest.mark.parametrize("where", ["strengths", "freeze"])
def test_a_failure_inside_add_changes_nothing(where: str, error: type[BaseException]) -> None:
    model, law = small(), FragileToAdd()
    plain = state(model)
    law.arm(where, error, after=1)
    with pytest.raises(error, match=where):
        wn.add_weight_noise(model, law)
    law.disarm()
    assert state(model) == plain
    wn.add_weight_noise(model, law)
    assert_sound(model, plain)


@errors
def test_a_failure_inside_a_callable_spec_changes_nothing(error: type[BaseException]) -> None:
    model = small()
    plain = state(model)

    def fails_at_the_last(name: str, *_: Any) -> wn.Noise:
        if name == "2.bias":
            raise error(name)
        return wn.Gaussian(0.2)

    with pytest.raises(error, match="bias"):
        wn.add_weight_noise(model, fails_at_the_last)
    with pytest.raises(error, match="bias"):
        wn.add_activation_noise(model, lambda name, module: fails_at_the_last("2.bias" if name == "2" else name))
    assert state(model) == plain


@errors
def test_a_failure_inside_a_removal_that_bakes_leaves_the_noise_and_the_weights(
    error: type[BaseException],
) -> None:
    model, law = small(), Fragile()
    plain = state(model)
    wn.add_weight_noise(model, law)
    law.arm("draw", error, after=1)
    with pytest.raises(error):
        wn.remove_weight_noise(model, bake=True)
    law.disarm()
    assert_sound(model, plain)


@cache
def is_guarded(code: CodeType, number: int) -> bool:
    """Whether something can be done about an interrupt at a line.

    Python comes back to the line of a `with` before it leaves it, where no signal is handled. Nothing in Python
    guards the step before a `try`, the first one of an __exit__ or a `finally`, or the end of a call.
    """
    begins = code.co_name == "__exit__" and number <= code.co_firstlineno + len(_SIGNATURE) + 1
    return not begins and not linecache.getline(code.co_filename, number).strip().startswith(_UNGUARDED)


class Interrupt:
    """Raises KeyboardInterrupt at one line of the package, and tells where it was."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.where = ""
        self.passed: Counter[tuple[str, int]] = Counter()

    def trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE):
            return None
        if event != "line" or not is_guarded(code, frame.f_lineno):
            return self.trace
        line = code.co_filename, frame.f_lineno
        self.passed[line] += 1
        if self.passed[line] > 2:  # The model has two layers.
            return self.trace
        self.left -= 1
        if self.left == 0:
            source = linecache.getline(*line).strip()
            self.where = f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_name}: {source}"
            raise KeyboardInterrupt
        return self.trace


_UNGUARDED = ("with ", "try:", "running.pop()", "return model")
_SIGNATURE = inspect.getsource(wn._contexts.NoiseContext.__exit__).partition("-> None:")[0].splitlines()


@contextmanager
def tracing(interrupt: Interrupt) -> Iterator[None]:
    before = sys.gettrace()
    sys.settrace(interrupt.trace)
    try:
        yield
    finally:
        sys.settrace(before)


def interrupted_at_every_line(
    make: Callable[[], nn.Module], act: Callable[[nn.Module], object], check: Callable[[nn.Module], None]
) -> int:
    """Run ``act``, interrupted where it passes each line of the package for the first and second time.

    Each time, ``check`` the model.
    """
    act(make())  # What is cached for good is made before.
    lines = 0
    while True:
        model, interrupt = make(), Interrupt(lines + 1)
        try:
            with tracing(interrupt):
                act(model)
        except KeyboardInterrupt:
            assert interrupt.where
        if not interrupt.where:
            return lines
        try:
            check(model)
        except Exception as error:
            raise AssertionError(f"interrupted at {interrupt.where}") from error
        lines += 1


def noisy() -> nn.Module:
    return wn.add_weight_noise(small(), 0.2)


def works_and_comes_off(model: nn.Module) -> None:
    """Plain, noisy or part of each: it runs, and what is left of the noise comes off without a trace."""
    model(X)
    never_noisy = small()
    for mine, module in zip(never_noisy.children(), model.children(), strict=True):
        mine._parameters.update(module._parameters)
    assert_comes_off(model, state(never_noisy))


ADDING: dict[str, Callable[[nn.Module], object]] = {
    "weights": lambda model: wn.add_weight_noise(model, [wn.StuckAt(0.1), wn.Gaussian(0.2)]),
    "activations": lambda model: wn.add_activation_noise(model, 0.2),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ADDING)
def test_an_interrupt_at_any_line_of_add_leaves_a_model_that_works_and_comes_off(kind: str) -> None:
    assert interrupted_at_every_line(small, ADDING[kind], works_and_comes_off) > 50


def test_an_interrupt_at_any_line_of_removing_activation_noise_leaves_a_model_that_works_and_comes_off() -> None:
    make = partial(lambda: wn.add_activation_noise(small(), 0.2))
    assert interrupted_at_every_line(make, wn.remove_activation_noise, works_and_comes_off) > 20


@pytest.mark.slow
def test_an_interrupt_at_any_line_of_removing_weight_noise_leaves_a_model_that_works_and_comes_off() -> None:
    assert interrupted_at_every_line(noisy, wn.remove_weight_noise, works_and_comes_off) > 50

    def stacked() -> nn.Module:
        model = small()
        parametrizations.weight_norm(model[0])
        return wn.add_weight_noise(model, 0.2)

    def works_and_keeps_the_norm(model: nn.Module) -> None:
        if wn.has_weight_noise(model):
            wn.remove_weight_noise(model)
        assert parametrize.is_parametrized(model.get_submodule("0"), "weight")
        assert torch.equal(model(X), model(X))
        assert type(model.get_submodule("2")) is nn.Linear

    assert interrupted_at_every_line(stacked, wn.remove_weight_noise, works_and_keeps_the_norm) > 50


def reset(model: nn.Module) -> None:
    with wn.hold_noise(model, seed=0) as held:
        held.reset()


def advance(model: nn.Module) -> None:
    with wn.hold_noise(model, seed=0, every=1, rho=0.5) as held:
        held.advance()


def enter(context: Callable[[nn.Module], Any], model: nn.Module) -> None:
    with context(model):
        pass


CONTEXTS: dict[str, Callable[[nn.Module], object]] = {
    "no_noise": partial(enter, wn.no_noise),
    "hold_noise": partial(enter, partial(wn.hold_noise, seed=0)),
    "scale_noise": partial(enter, partial(wn.scale_noise, factor=0.5)),
    "force_noise": partial(enter, wn.force_noise),
    "reset": reset,
    "advance": advance,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::weightnoise.ForwardsNotCountedWarning")
@pytest.mark.parametrize("context", CONTEXTS)
def test_an_interrupt_at_any_line_of_a_context_leaves_it_closed(context: str) -> None:
    assert interrupted_at_every_line(noisy, CONTEXTS[context], assert_nothing_is_stuck) > 50


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["weights", "flipout", "activations"])
def test_an_interrupt_at_any_line_of_a_training_step_leaves_no_trace(kind: str) -> None:
    def step(model: nn.Module) -> None:
        model(X).sum().backward()

    assert interrupted_at_every_line(lambda: KINDS[kind](small()), step, assert_nothing_is_stuck) > 20


def test_a_context_that_is_entered_again_while_it_is_open_stays_open_until_its_last_exit() -> None:
    model = noisy()
    for context in (wn.no_noise(model), wn.hold_noise(model, seed=0), wn.scale_noise(model, 0.0)):
        with context:
            with context:
                assert torch.equal(model(X), model(X))
            assert torch.equal(model(X), model(X))
        assert not torch.equal(model(X), model(X))
    halved = wn.scale_noise(model, 0.5)
    with halved, halved:
        assert every_noise(model)[0].control.factor == 0.25


@contextmanager
def switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def run_in_threads(*works: Callable[[], None]) -> None:
    failures: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    with switching_often():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert failures == []


def test_two_threads_with_two_models_do_not_touch_each_other() -> None:
    models = [noisy(), noisy()]
    plain = [copy.deepcopy(wn.remove_weight_noise(copy.deepcopy(model)))(X) for model in models]

    def work(place: int) -> None:
        model = models[place]
        for _ in range(100):
            with wn.no_noise(model):
                assert torch.equal(model(X), plain[place])
            with wn.hold_noise(model):
                assert torch.equal(model(X), model(X))
            assert not torch.equal(model(X), model(X))
            wn.add_weight_noise(wn.remove_weight_noise(model), 0.2)

    run_in_threads(partial(work, 0), partial(work, 1))
    for model in models:
        assert_nothing_is_stuck(model)


def test_two_threads_that_hold_seeded_draws_get_those_of_their_seeds() -> None:
    # Seeding is for the whole process, so one waits for the other. Who draws without a seed does not wait.
    models = [noisy(), noisy()]
    expected = []
    for seed in range(100):
        with wn.hold_noise(models[0], seed=seed):
            expected.append(models[0](X))
    before = torch.get_rng_state()

    def work(model: nn.Module) -> None:
        for seed in range(100):
            with wn.hold_noise(model, seed=seed):
                assert torch.equal(model(X), expected[seed])

    run_in_threads(partial(work, models[0]), partial(work, models[1]))
    assert torch.equal(torch.get_rng_state(), before)


def test_two_threads_with_one_model_share_its_contexts_and_leave_none_open() -> None:
    model = noisy()
    weight = dict(model.named_parameters())["0.weight"]

    def work() -> None:
        for _ in range(200):
            with wn.no_noise(model):
                assert model[0].weight is weight  # Also while the other thread leaves its own.
            with wn.scale_noise(model, 0.5):
                pass
            with wn.hold_noise(model):
                pass

    run_in_threads(work, work, work)
    assert_nothing_is_stuck(model)


class Slow:
    """What a context says, in a way that takes its time when it is first asked."""

    off, scale, held = False, 1.0, None

    def __init__(self) -> None:
        self.asked, self.go_on = threading.Event(), threading.Event()

    @property
    def forced(self) -> bool:
        if not self.asked.is_set():
            self.asked.set()
            self.go_on.wait(20)
        return False


def test_contexts_that_open_at_the_same_time_are_both_open_and_readers_see_no_state_between() -> None:
    model, slow = noisy(), Slow()
    control = every_noise(model)[0].control
    with wn.no_noise(model), wn.scale_noise(model, 0.5) as scaled:
        first = threading.Thread(target=control.add, args=(slow,))
        second = threading.Thread(target=scaled.__enter__)
        first.start()
        assert slow.asked.wait(20)
        assert control.off  # The reader: what was off stays off while another context opens.
        second.start()
        second.join(0.1)  # It waits for the first one; else it would be done by now.
        slow.go_on.set()
        first.join()
        second.join()
        assert control.factor == 0.25
        scaled.__exit__(None, None, None)
        control.discard(slow)  # type: ignore[arg-type]
    assert_nothing_is_stuck(model)


def test_what_one_thread_switches_off_is_off_in_the_other() -> None:
    # Contexts belong to the model; docs/what-can-go-wrong.md says so.
    model = noisy()
    found: list[bool] = []
    with wn.no_noise(model):
        run_in_threads(lambda: found.append(torch.equal(model(X), model(X))))
    run_in_threads(lambda: found.append(torch.equal(model(X), model(X))))
    assert found == [True, False]


def test_one_thread_trains_while_the_other_evaluates() -> None:
    model = noisy()
    for parameter in model.parameters():
        parameter.requires_grad_(True)

    def forwards(context: Callable[[], Any]) -> None:
        for _ in range(100):
            with context():
                loss = model(X).square().sum()
                if loss.requires_grad:
                    loss.backward()

    run_in_threads(lambda: forwards(torch.enable_grad), lambda: forwards(torch.inference_mode))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert_nothing_is_stuck(model)


def _worker(model: nn.Module, seed: int | None, results: Any) -> None:
    if seed is not None:
        torch.manual_seed(seed)
    with wn.hold_noise(model, seed=0):
        held = model(X).tolist()
    free = model(X).tolist()
    wn.remove_weight_noise(model)
    results.put((held, free, model(X).tolist()))


def results_of_workers(method: str, model: nn.Module, seeds: list[int | None]) -> list[Any]:
    context: Any = multiprocessing.get_context(method)
    results = context.SimpleQueue()
    found = []
    for seed in seeds:
        process = context.Process(target=_worker, args=(model, seed, results))
        process.start()
        found.append(results.get())
        process.join(60)
        assert process.exitcode == 0
    return found


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 about threads and fork.
def test_forked_workers_have_the_noise_and_draw_alike_unless_seeded() -> None:
    model = noisy()
    plain = [p.tolist() for p in model.parameters()]
    with wn.hold_noise(model, seed=0):
        held = model(X).tolist()
    first, second, seeded = results_of_workers("fork", model, [None, None, 5])
    assert first[0] == second[0] == seeded[0] == held
    assert first[1] == second[1]  # As everything that forked workers draw with torch.
    assert seeded[1] != first[1]
    assert [p.tolist() for p in model.parameters()] == plain
    assert_nothing_is_stuck(model)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_worker_forked_inside_a_context_is_inside_it() -> None:
    model = noisy()
    with wn.no_noise(model):
        ((held, free, removed),) = results_of_workers("fork", model, [1])
    assert held == free == removed
    assert_nothing_is_stuck(model)


@pytest.mark.slow
def test_a_worker_that_was_spawned_inside_a_context_is_not_inside_it() -> None:
    model = noisy()
    with wn.hold_noise(model, seed=0):
        held = model(X).tolist()
    with wn.no_noise(model):
        clean = model(X).tolist()
        ((found, free, removed),) = results_of_workers("spawn", model, [1])
    assert (found, removed) == (held, clean)
    assert free != clean
    assert_nothing_is_stuck(model)


@kinds
def test_adding_twice_and_removing_twice_are_errors_that_change_nothing(kind: str) -> None:
    model = small()
    plain = state(model)
    KINDS[kind](model)
    once = state(model)
    with pytest.raises(wn.AlreadyNoisyError):
        KINDS[kind](model)
    assert state(model) == once
    assert_sound(model, plain)
    for remove in (wn.remove_weight_noise, wn.remove_activation_noise):
        with pytest.raises(wn.NotNoisyError):
            remove(model)
    assert state(model) == plain


REMOVALS: dict[str, list[Callable[[nn.Module], object]]] = {
    "weights first": [wn.remove_weight_noise, wn.remove_activation_noise],
    "activations first": [wn.remove_activation_noise, wn.remove_weight_noise],
    "from the last layer on": [
        lambda model: wn.remove_weight_noise(model[2]),  # type: ignore[index, unused-ignore]
        lambda model: wn.remove_activation_noise(model[2]),  # type: ignore[index, unused-ignore]
        wn.remove_weight_noise,
        wn.remove_activation_noise,
    ],
}


@pytest.mark.parametrize("order", REMOVALS)
def test_removing_in_another_order_than_added(order: str) -> None:
    model = small()
    plain = state(model)
    wn.add_weight_noise(model, {"0.weight": 0.2})
    wn.add_activation_noise(model, 0.2)
    wn.add_weight_noise(model, {"0.bias": 0.2, "2.weight": wn.Uniform(0.2), "2.bias": 0.2})
    wn.add_activation_noise(model, {nn.Linear: 0.1}, at="input")
    for remove in REMOVALS[order]:
        assert not torch.equal(model(X), model(X))
        remove(model)
    assert state(model) == plain
    assert torch.equal(model(X), model(X))


@pytest.mark.parametrize(
    "context", [wn.no_noise, partial(wn.hold_noise, seed=0), partial(wn.scale_noise, factor=0.5)]
)
@pytest.mark.parametrize("how", ["replaced", "deleted", "moved"])
def test_a_module_that_goes_while_a_context_is_open_on_it(how: str, context: Any) -> None:
    model = noisy()
    schedule = wn.NoiseScheduler(model, lambda step: 1.0)
    last = model[2]
    with context(model):
        if how == "deleted":
            del model[2]
        else:
            model[2] = nn.Linear(6, 3)
        other = nn.Sequential(last)
    assert list(wn.noisy_parameters(model)) == ["0.weight"]
    assert list(wn.noisy_parameters(other)) == ["0.weight"]
    schedule.step()
    assert_nothing_is_stuck(model)
    assert not torch.equal(*(other[0](torch.ones(6)) for _ in range(2)))  # The context is closed for it, too.
    wn.remove_weight_noise(model)
    wn.remove_weight_noise(last)
    assert type(last) is nn.Linear
    assert torch.equal(model(X), model(X))


def test_noise_that_is_removed_or_added_while_a_context_is_open() -> None:
    model = small()
    plain = state(model)
    wn.add_weight_noise(model, 0.2)
    with wn.no_noise(model):
        wn.remove_weight_noise(model)
        wn.add_weight_noise(model, 0.2)
        assert not torch.equal(model(X), model(X))  # A context lies on the noise that it found on entry.
    assert_sound(model, plain)


def replaced(model: nn.Linear, rows: int) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        model.weight = nn.Parameter(torch.randn(rows, 4))
    model.register_parameter("bias", None)
    return model


@pytest.mark.parametrize(
    "law", [wn.Gaussian(0.2), wn.Uniform(0.2, relative_to="absmax", per=0), wn.DropConnect(0.5)]
)
def test_a_parameter_that_is_resized_gets_noise_of_its_new_shape(law: wn.Noise) -> None:
    model = wn.add_weight_noise(nn.Linear(4, 6), law)
    for rows in (1, 9):
        replaced(model, rows)
        assert model(X).shape == (5, rows)
        assert not torch.equal(model(X), model(X))
    assert wn.remove_weight_noise(model).weight.shape == (9, 4)


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize(
    "law",
    [wn.StuckAt(0.3), wn.ProgrammingNoise(chip=0), wn.LearnedGaussian(), [wn.Clip(), wn.BitFlip(0.1, chip=1)]],
)
def test_what_is_learned_or_frozen_does_not_fit_a_parameter_of_another_shape(law: Any, rows: int) -> None:
    # One row would be broadcast to all six without a word.
    model = replaced(wn.add_weight_noise(nn.Linear(4, 6), law), rows)
    with pytest.raises(wn.UnsupportedParameterError, match=r"'weight' has the shape .* now") as caught:
        model(X)
    assert "weightnoise.remove_weight_noise(model)" in str(caught.value)
    with wn.no_noise(model):
        assert model(X).shape == (5, rows)
    wn.add_weight_noise(wn.remove_weight_noise(model), law)
    assert model(X).shape == (5, rows)


@pytest.mark.parametrize("rows", [1, 9])
def test_a_held_draw_does_not_fit_a_parameter_of_another_shape(rows: int) -> None:
    model = wn.add_weight_noise(nn.Linear(4, 6), 0.2)
    with wn.hold_noise(model) as held:
        replaced(model, rows)
        with pytest.raises(wn.WeightNoiseError, match=r"call reset\(\) on it"):
            model(X)
        held.reset()
        assert torch.equal(model(X), model(X))
        assert model(X).shape == (5, rows)
    assert not torch.equal(model(X), model(X))


@kinds
def test_frozen_and_unfrozen_while_noisy(kind: str) -> None:
    model = small()
    plain = state(model)
    KINDS[kind](model)
    model.requires_grad_(False)
    assert not model(X).requires_grad
    assert not torch.equal(model(X), model(X))
    model.requires_grad_(True)
    model(X).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert_sound(model, plain)


def test_freezing_by_attribute() -> None:
    model = wn.add_weight_noise(nn.Linear(4, 6), 0.2)
    parameter = dict(model.named_parameters())["weight"]
    model.weight.requires_grad_(False)
    assert not parameter.requires_grad
    model.weight.requires_grad_(True)
    assert parameter.requires_grad
