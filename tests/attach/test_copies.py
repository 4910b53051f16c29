"""Copies, pickles, other processes, averages, conversions and replicas."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel

import weightnoise as wn
from tests.cases import CASES
from tests.helpers import Counting, seen
from weightnoise._attach.find import every_noise

PICKLED = [name for name in CASES if name != "weight_norm"]  # torch refuses to pickle its own parametrizations.


def pickled(model: nn.Module) -> nn.Module:
    copied: nn.Module = pickle.loads(pickle.dumps(model))
    return copied


def saved(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded: nn.Module = torch.load(buffer, weights_only=False)
    return loaded


def held_output(model: nn.Module, case: str) -> Tensor:
    with wn.hold_noise(model, seed=0):
        output: Tensor = model(CASES[case].batch())
        return output


@pytest.mark.parametrize("way", [copy.deepcopy, pickled, saved])
@pytest.mark.parametrize("case", PICKLED)
def test_a_copy_is_noisy_equal_and_independent(case: str, way: Callable[[nn.Module], nn.Module]) -> None:
    model = wn.add_weight_noise(CASES[case].model(), 0.1)
    model(CASES[case].batch()).sum().backward()
    other = way(model)
    assert list(wn.noisy_parameters(other)) == list(wn.noisy_parameters(model))
    assert torch.equal(held_output(other, case), held_output(model, case))
    assert not {id(p) for p in other.parameters()} & {id(p) for p in model.parameters()}
    other(CASES[case].batch()).sum().backward()
    with wn.no_noise(model):
        assert not torch.equal(other(CASES[case].batch()), other(CASES[case].batch()))
    wn.remove_weight_noise(other)
    assert not torch.equal(model(CASES[case].batch()), model(CASES[case].batch()))
    assert torch.equal(*(other(CASES[case].batch()) for _ in range(2)))


def test_torchs_own_removal_on_a_copy_leaves_the_original() -> None:
    model = wn.add_weight_noise(nn.Linear(3, 2), 0.1)
    other = copy.deepcopy(model)
    parametrize.remove_parametrizations(other, "weight", leave_parametrized=False)
    assert type(other) is nn.Linear
    assert not torch.equal(seen(model), seen(model))


def test_a_shallow_copy_shares_its_parameters() -> None:
    model = wn.add_weight_noise(nn.Linear(3, 2), 0.1)
    other = copy.copy(model)
    assert other._parameters["weight"] is model._parameters["weight"]
    assert not torch.equal(other(torch.ones(1, 3)), other(torch.ones(1, 3)))


def test_a_shallow_copy_that_goes_away_leaves_the_original() -> None:
    model = wn.add_weight_noise(nn.Linear(3, 2), 0.1)
    weight = model._parameters["weight"]
    copy.copy(model)
    assert model.parametrizations.weight.original is weight


@pytest.mark.parametrize("make", [lambda layer: layer, parametrizations.weight_norm])
def test_removal_from_a_shallow_copy_leaves_the_original_noisy(make: Any) -> None:
    model = wn.add_weight_noise(make(nn.Linear(3, 2)), 0.1)
    wn.remove_weight_noise(copy.copy(model))
    assert wn.has_weight_noise(model)
    assert not torch.equal(seen(model), seen(model))


class OwnState(nn.Linear):
    """Pickles in a format of its own, as modules with handles that cannot be copied do."""

    def __getstate__(self) -> dict[str, Any]:
        return {"version": 2, "attributes": self.__dict__.copy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state["attributes"])


@pytest.mark.parametrize("way", [copy.deepcopy, pickled])
def test_a_copy_of_a_module_that_has_a_state_of_its_own_format(way: Callable[[nn.Module], nn.Module]) -> None:
    model = OwnState(3, 2)
    assert "attributes" not in vars(way(model))
    other = way(wn.add_weight_noise(model, 0.1))
    assert "attributes" not in vars(other)
    assert not torch.equal(seen(other), seen(other))
    assert type(wn.remove_weight_noise(other)) is OwnState


def test_a_copy_in_one_thread_does_not_switch_the_noise_off_in_another() -> None:
    inside, go_on = threading.Event(), threading.Event()

    class SlowToCopy(nn.Linear):
        def __getstate__(self) -> dict[str, Any]:
            inside.set()
            assert go_on.wait(20)
            return self.__dict__.copy()

    model = wn.add_weight_noise(SlowToCopy(3, 2), 0.1)
    copying = threading.Thread(target=copy.deepcopy, args=(model,))
    copying.start()
    assert inside.wait(20)
    noisy = seen(model) is not model._parameters["weight"]
    go_on.set()
    copying.join()
    assert noisy


@pytest.mark.parametrize(
    "context", [wn.no_noise, wn.hold_noise, wn.force_noise, lambda model: wn.scale_noise(model, 0.0)]
)
@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("through", [lambda copied: copied, copy.deepcopy], ids=["a copy", "a copy of a copy"])
def test_a_copy_made_inside_a_context_is_inside_it_until_it_closes(context: Any, through: Any, size: int) -> None:
    model = wn.add_weight_noise(nn.Sequential(nn.Linear(size, size)), 0.1)
    wn.add_activation_noise(model, 0.1)
    x = torch.randn(2, size)
    opened = context(model)
    with opened:
        other = through(copy.deepcopy(model))
        for own, copied in zip(said(model), said(other), strict=True):
            assert own == copied
        if context is wn.no_noise:
            assert torch.equal(other(x), model(x))
        if context is wn.hold_noise:
            before = seen(other[0])
            opened.reset()
            assert torch.equal(seen(other[0]), seen(model[0]))
            assert not torch.equal(seen(other[0]), before)
        with wn.no_noise(other):  # Of the copy alone.
            assert seen(other[0]) is other[0]._parameters["weight"]
            assert [one[1] for one in said(model)] == [context is wn.no_noise] * 2
    assert said(model) == said(other) == [([], False, None, 1.0)] * 2
    assert not torch.equal(other(x), other(x))
    wn.remove_weight_noise(other)


def said(model: nn.Module) -> list[Any]:
    """What the open contexts say about each noise of a model."""
    controls = [noise.control for noise in every_noise(model)]
    return [(control.overrides, control.off, control.held, control.factor) for control in controls]


@pytest.mark.parametrize("size", [8, 64])
def test_what_copies_before_it_converts_can_do_so_inside_no_noise(size: int) -> None:
    model, x = wn.add_weight_noise(nn.Sequential(nn.Linear(size, size)), 0.5), torch.randn(2, size)
    with wn.no_noise(model):
        average = AveragedModel(model)
        assert torch.equal(average(x), model(x))
    assert not torch.equal(average(x), average(x))


def test_a_pickle_is_in_no_context() -> None:
    model = wn.add_weight_noise(nn.Linear(3, 2), 0.1)
    with wn.no_noise(model):
        other = pickled(model)
        assert not torch.equal(seen(other), seen(other))


def _in_child(model: nn.Module, results: Any) -> None:
    results.put(held_output(model, "mlp").detach().numpy().tolist())


def test_a_spawned_process_gets_the_model_and_the_same_held_draw() -> None:
    model = wn.add_weight_noise(CASES["mlp"].model(), 0.1)
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=_in_child, args=(model, results))
    process.start()
    found = results.get()
    process.join()
    assert process.exitcode == 0
    assert found == held_output(model, "mlp").detach().numpy().tolist()


@pytest.mark.parametrize("case", ["mlp", "lstm", "weight_norm"])
def test_averaged_models(case: str) -> None:
    model = wn.add_weight_noise(CASES[case].model(), 0.1)
    if case != "weight_norm":  # torch itself cannot copy one that has been run.
        model(CASES[case].batch()).sum().backward()
    average = AveragedModel(model)
    average.update_parameters(model)
    assert [n.removeprefix("module.") for n, _ in average.named_parameters()] == [
        n for n, _ in model.named_parameters()
    ]
    assert not torch.equal(average(CASES[case].batch()), average(CASES[case].batch()))
    wn.remove_weight_noise(average)
    assert wn.has_weight_noise(model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_conversions_convert_the_parameter_and_the_noise(dtype: torch.dtype) -> None:
    model = wn.add_weight_noise(nn.Linear(3, 2), 0.1).to(dtype)
    assert model.weight.dtype == model._parameters["weight"].dtype == dtype
    assert not torch.equal(seen(model), seen(model))
    assert type(wn.remove_weight_noise(model)) is nn.Linear


def replicate(model: nn.Module) -> nn.Module:
    """What `nn.parallel.replicate` does for one device, which it has to be a GPU for."""
    modules = list(model.modules())
    replicas: list[Any] = [module._replicate_for_data_parallel() for module in modules]
    for module, replica in zip(modules, replicas, strict=True):
        for name, child in module._modules.items():
            setattr(replica, name, replicas[modules.index(child)])
        for name, parameter in module._parameters.items():
            setattr(replica, name, None if parameter is None else parameter * 1)
    copied: nn.Module = replicas[0]
    return copied


@pytest.mark.parametrize("case", ["mlp", "lstm", "attention", "weight_norm", "reads_twice"])
def test_replicas_are_noisy_and_pass_the_gradient_on(case: str) -> None:
    model = wn.add_weight_noise(CASES[case].model(), 0.1)
    with wn.hold_noise(model, seed=0):
        output = replicate(model)(CASES[case].batch())
        assert torch.equal(output, model(CASES[case].batch()))
        output.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with wn.no_noise(model):
        assert torch.equal(replicate(model)(CASES[case].batch()), model(CASES[case].batch()))


def test_a_replica_of_a_recurrent_layer_draws_once_for_each_weight() -> None:
    layer, law = nn.LSTM(4, 3), Counting()
    wn.add_weight_noise(layer, law)
    for forwards in (1, 2):
        replicate(layer)(torch.randn(5, 2, 4))
        assert len(law.draws) == 2 * forwards


class Waits(nn.Module):
    """Reads its weight twice while the other thread is in its forward, too."""

    def __init__(self, barrier: threading.Barrier) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.barrier = [barrier]

    def forward(self) -> tuple[Tensor, Tensor]:
        first = self.weight
        self.barrier[0].wait(timeout=20)
        second = self.weight
        self.barrier[0].wait(timeout=20)
        return first, second


@pytest.mark.parametrize("replicas", [True, False])
def test_two_threads_keep_their_draws_apart(replicas: bool) -> None:
    model = wn.add_weight_noise(Waits(threading.Barrier(2)), {"weight": 0.1})
    models = [replicate(model), replicate(model)] if replicas else [model, model]
    found: dict[int, tuple[Tensor, Tensor]] = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: models[i]()})) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for first, second in found.values():
        assert torch.equal(first, second)
    assert not torch.equal(found[0][0], found[1][0])


def test_torchs_cache_of_parametrizations_is_not_used() -> None:
    model = wn.add_weight_noise(nn.Linear(3, 2), 0.1)
    with parametrize.cached():
        assert not torch.equal(seen(model), seen(model))
