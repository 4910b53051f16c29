"""A hold keeps the draw or the noisy weight that is made of it, and never both where one can be made again."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, autograd, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import weightnoise as wn
from tests.cases import LAWS
from weightnoise._noise import resting

SIZES = (8, 64, 160)
# Laws of users may look at whatever they like; what is convolved has last bits that may hang on threads.
STAYS = {name for name in LAWS if name.startswith(("custom", "correlated_smooth"))}
REPEATS = [name for name in LAWS if name not in STAYS]
STATE = torch.get_rng_state().nbytes


@pytest.fixture(autouse=True)
def _nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests have compiled reads, which keep the draws."""
    monkeypatch.setattr(resting, "_compiled", False)


@contextmanager
def counting() -> Iterator[Callable[[], int]]:
    """A function that says how many bytes the tensors take that have come to life inside."""

    def storages() -> dict[int, int]:
        gc.collect()
        tensors = [one for one in gc.get_objects() if issubclass(type(one), Tensor)]
        return {one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in tensors}

    before = storages()
    gc.freeze()  # For good: what is there need not be looked through again.

    def count() -> int:
        return sum(size for where, size in storages().items() if where not in before)

    yield count


def layer(law: Any, size: int) -> nn.Linear:
    torch.manual_seed(0)
    return wn.add_weight_noise(nn.Linear(size, size, bias=False), law)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", REPEATS)
def test_there_is_one_copy(name: str, size: int) -> None:
    model, x = layer(LAWS[name], size), torch.ones(1, size)
    weight: Any = model._parameters["weight"]
    handed = model.parametrizations.weight[0].handed
    drawn = resting.size_of(handed.draw(weight))
    with counting() as count:
        with torch.no_grad(), wn.hold_noise(model, seed=3) as held:
            assert count() == 0
            model(x)
            assert count() <= weight.nbytes
            weight.mul_(0.5)
            model(x)
            assert count() <= weight.nbytes
            if handed.factor_problem(0.5) is None:
                with wn.scale_noise(model, 0.5):
                    model(x)
                    assert count() <= weight.nbytes
                model(x)
                assert count() <= weight.nbytes
            with torch.enable_grad():
                model(x).sum().detach()
            assert count() <= max(drawn, weight.nbytes)
            model(x)
            assert count() <= weight.nbytes
            held.advance()
            model(x)
            model(x)
            assert count() <= weight.nbytes + (drawn if handed.has_chip_part else 0)
            held.reset()
            model(x)
            assert count() <= weight.nbytes
        assert count() == 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", REPEATS)
def test_without_a_seed_the_state_of_the_generator_is_kept_for_it(name: str, size: int) -> None:
    model, x = layer(LAWS[name], size), torch.ones(1, size)
    weight: Any = model._parameters["weight"]
    with counting() as count, torch.no_grad(), wn.hold_noise(model):
        model(x)
        assert count() <= weight.nbytes + STATE
        weight.mul_(0.5)
        model(x)
        assert count() <= weight.nbytes + STATE


def _moved(model: nn.Linear) -> None:
    model._parameters["weight"] = nn.Parameter(model._parameters["weight"].detach() + 1)


def _given_data(model: nn.Linear) -> None:
    weight: Any = model._parameters["weight"]
    weight.data = weight.data + 1


def _swapped(model: nn.Linear) -> None:
    weight: Any = model._parameters["weight"]
    torch.utils.swap_tensors(weight, nn.Parameter(weight.detach() + 1))


def _assigned(model: nn.Linear) -> None:
    model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()}, assign=True)


CHANGES: dict[str, Callable[[nn.Linear], Any]] = {
    "nothing": lambda model: None,
    "replaced": _moved,
    ".data": _given_data,
    "swap_tensors": _swapped,
    "assign": _assigned,
    "double": lambda model: model.double(),
    "double and back": lambda model: model.double().float(),
    "bfloat16": lambda model: model.bfloat16(),
}


FEW = ("gaussian_absmax", "drop_connect", "programming", "chain_learned")
CHANGED = [(name, change) for name in LAWS for change in (CHANGES if name in FEW else ("nothing", "double"))]


@pytest.mark.parametrize("size", SIZES[:2])
@pytest.mark.parametrize(("name", "change"), CHANGED)
@pytest.mark.filterwarnings("ignore::weightnoise.NoiseRoundsAwayWarning")
def test_it_is_the_draw_that_it_was(name: str, change: str, size: int) -> None:
    for seed in (None, 3):
        model = layer(LAWS[name], size)
        kept = copy.deepcopy(model)
        torch.manual_seed(1)
        with wn.hold_noise(model, seed=seed):
            with torch.no_grad():
                for _ in range(2):
                    model(torch.ones(1, size))
            CHANGES[change](model)
            x = torch.eye(size, dtype=model._parameters["weight"].dtype)
            with torch.no_grad():
                found = [model(x), model(x)]
            found += [model(x).detach(), checkpoint(model, x, use_reentrant=False).detach()]
            with torch.inference_mode():
                found.append(model(x).clone())
        torch.manual_seed(1)
        with wn.hold_noise(kept, seed=seed):
            kept(torch.ones(1, size))  # With gradients, so that the draw is there all the time.
            CHANGES[change](kept)
            expected = kept(x).detach()
        for one in found:
            assert_close(one, expected, rtol=0, atol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # Of the import.
def test_it_is_made_past_what_watches_torch(size: int) -> None:
    x = torch.eye(size)

    def counted(model: nn.Module) -> Tensor:
        with FlopCounterMode(display=False) as flops:
            output: Tensor = model(x)
        assert flops.get_total_flops() == 2 * size**3  # What is drawn is not counted.
        return output

    ways: dict[str, Callable[[nn.Module], Tensor]] = {
        "vmap": lambda model: torch.vmap(lambda row: model(row))(x),
        "jacobian": lambda model: torch.func.jacrev(lambda row: model(row))(x[0]).T,
        "vmap of autograd": lambda model: autograd.functional.jacobian(model, x[0], vectorize=True).T,
        "forward mode": lambda model: (
            autograd.functional.jacobian(model, x[0], vectorize=True, strategy="forward-mode").T
        ),
        "counted": counted,
    }
    for name, way in ways.items():
        for law in (wn.Gaussian(0.1), wn.DropConnect(0.3), wn.ProgrammingNoise()):
            model = layer(law, size)
            with wn.hold_noise(model, seed=3):
                expected = model(x).detach()
            for first in (True, False):
                with wn.hold_noise(model, seed=3):
                    if not first:
                        with torch.no_grad():
                            model(x)
                    found = way(model).detach()
                    assert_close(found, expected, msg=name)
                    assert_close(model(x).detach(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("size", SIZES)
def test_holds_inside_holds_and_copies(size: int) -> None:
    model, x = layer(wn.LogNormal(0.3), size), torch.eye(size)
    with torch.no_grad(), wn.hold_noise(model, seed=3):
        outer = model(x)
        with wn.hold_noise(model, seed=4):
            inner = model(x)
            assert not torch.equal(inner, outer)
            twin = copy.deepcopy(model)
            assert_close(twin(x), inner, rtol=0, atol=0)
            with torch.enable_grad():
                assert_close(model(x).detach(), inner, rtol=0, atol=0)
            assert_close(twin(x), inner, rtol=0, atol=0)
        assert_close(model(x), outer, rtol=0, atol=0)
        assert_close(twin(x), outer, rtol=0, atol=0)


@pytest.mark.parametrize("size", SIZES)
def test_threads_with_and_without_gradients(size: int) -> None:
    model, x = layer(wn.Gaussian(0.1), size), torch.eye(size)
    wrong: list[bool] = []
    with wn.hold_noise(model, seed=3):
        expected = model(x).detach()

        def read(gradients: bool) -> None:
            for _ in range(100):
                with torch.set_grad_enabled(gradients):
                    if not torch.equal(model(x).detach(), expected):
                        wrong.append(gradients)

        threads = [threading.Thread(target=read, args=(bool(place % 2),)) for place in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize("size", SIZES)
def test_another_shape_is_still_refused(size: int) -> None:
    model = layer(wn.Gaussian(0.1), size)
    with torch.no_grad(), wn.hold_noise(model, seed=3) as held:
        model(torch.ones(1, size))
        model._parameters["weight"] = nn.Parameter(torch.ones(size + 1, size))
        for gradients in (False, True):
            with torch.set_grad_enabled(gradients), pytest.raises(wn.WeightNoiseError, match="one draw of shape"):
                model(torch.ones(1, size))
        held.reset()
        assert model(torch.ones(1, size)).shape == (1, size + 1)


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
@pytest.mark.parametrize("size", SIZES)
def test_compiled_code_finds_all_draws_and_they_stay(size: int) -> None:
    blocks = [layer(wn.Gaussian(0.1), size) for _ in range(12)]
    model, x = nn.ModuleList(blocks), torch.eye(size)
    with wn.hold_noise(model, seed=3):
        with torch.no_grad():
            expected = [block(x) for block in blocks]
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        for block in blocks:
            block.compile(backend="aot_eager", fullgraph=True)
        for gradients in (True, False, True):
            with torch.set_grad_enabled(gradients):
                assert_close([block(x).detach() for block in blocks], expected)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before <= 4
