"""A held draw that moves on in time: AR(1) processes, and noise that is refreshed every so many forwards."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import weightnoise as wn

SIZES = [8, 64]  # Drawn by torch's generator, and by the engine.


def make(law: Any = 1.0, size: int = 8, **options: Any) -> nn.Linear:
    """A layer with weights of 1."""
    layer = nn.Linear(size, size, bias=False, dtype=options.pop("dtype", None))
    nn.init.ones_(layer.weight)
    return wn.add_weight_noise(layer, law, **options)


def noise(model: nn.Linear) -> Tensor:
    """What the held draw adds to the weights."""
    return model.weight.detach().double() - 1


def path(model: nn.Linear, steps: list[int], **options: Any) -> Tensor:
    """The noise at the start and after each advance."""
    with torch.no_grad(), wn.hold_noise(model, **options) as held:
        found = [noise(model)]
        for count in steps:
            held.advance(count)
            found.append(noise(model))
    return torch.stack(found)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.95, (0.5, 0.9, 0.99)])
def test_variance_and_autocorrelation_are_those_of_the_process(rho: Any, size: int) -> None:
    model = make(1.0, size)
    chips = 4096 // size**2
    found = torch.cat([path(model, [1, 2, 4], seed=seed, rho=rho).flatten(1) for seed in range(chips)], dim=1)
    count = found.shape[1]  # 4096 numbers, all of them independent.
    each = rho if isinstance(rho, tuple) else (rho,)
    for one, time in enumerate((0, 1, 3, 7)):
        # The variance of a product of two standard normals is at most 2; four standard errors.
        assert abs(found[one].square().mean() - 1) < 4 * (2 / count) ** 0.5
        expected = sum(r**time for r in each) / len(each)
        assert abs((found[0] * found[one]).mean() - expected) < 4 * (2 / count) ** 0.5


@pytest.mark.parametrize("size", SIZES)
def test_a_step_is_the_formula(size: int) -> None:
    # With the same seed the increments are the same, so that rho can be read off two paths exactly.
    model = make(1.0, size)
    start, fresh = path(model, [3], seed=1)
    first, moved = path(model, [3], seed=1, rho=0.7)
    assert_close(first, start, rtol=0, atol=0)  # It starts at the draw of the plain hold.
    rho = 0.7**3
    assert_close(moved, rho * start + (1 - rho**2) ** 0.5 * fresh, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_several_processes_start_at_the_draw_of_the_hold(size: int) -> None:
    model = make(1.0, size)
    assert_close(path(model, [], seed=1, rho=(0.9, 0.5, 0.1)), path(model, [], seed=1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rho", [0.0, 0.9, (0.9, 0.99)])
def test_a_seed_makes_the_path_again_and_torchs_generator_gives_nothing(rho: Any, size: int) -> None:
    model = make(1.0, size)
    before = torch.get_rng_state()
    one, again, other = (path(model, [1, 5], seed=seed, rho=rho) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, again)
    assert not torch.isclose(one, other).any()
    with wn.hold_noise(model, rho=rho, every=1):
        inside = torch.get_rng_state()
        model(torch.ones(1, size))
        model(torch.ones(1, size))
        assert torch.equal(torch.get_rng_state(), inside)


@pytest.mark.parametrize("size", SIZES)
def test_the_mirror_goes_the_mirrored_way(size: int) -> None:
    model = make(0.5, size)
    one, other = (path(model, [1, 2], seed=0, rho=0.9, sign=sign) for sign in (1, -1))
    assert_close(one, -other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("law", "moves"),
    [
        ([wn.StuckAt(0.3, chip=None), wn.Gaussian(0.1)], True),
        ([wn.Frozen(wn.Gaussian(1.0)), wn.Gaussian(0.01)], True),
        (wn.Protect(wn.Gaussian(0.1), 0.5), True),
        (wn.Correlated(wn.Gaussian(0.1), shared=1), True),
        (wn.Correlated(wn.LogNormal(0.1), length=2.0), True),
        ([wn.Clip(0.5), wn.StateDependentNoise((0.1,))], True),
        (wn.ProgrammingNoise(time=3600.0), True),
        (wn.LearnedGaussian(0.1), True),
        (wn.ProgrammingNoise(time=3600.0, read=()), False),
        (wn.Frozen(wn.Uniform(0.1)), False),
        (wn.StuckAt(0.3, chip=None), False),
    ],
)
def test_the_chip_stays_and_the_reading_moves_a_little(law: Any, moves: bool, size: int) -> None:
    model = make(law, size)
    start, near, far = path(model, [1, 1000], seed=2, rho=0.999)
    if not moves:
        assert torch.equal(start, far)
        return
    # sqrt(1 - rho^2) is 0.045: a step is small beside what two readings differ by, sqrt(2).
    assert 0 < (near - start).square().mean() < 0.05 * (far - start).square().mean()
    if isinstance(law, list) and isinstance(law[0], wn.StuckAt):
        assert torch.equal(start == -1, far == -1)
    if isinstance(law, list) and isinstance(law[0], wn.Frozen):
        assert (far - start).abs().max() < 0.1


@pytest.mark.parametrize("size", SIZES)
def test_short_numbers_move_on_by_less_than_their_spacing(size: int) -> None:
    # A step of rho = 1 - 1e-6 is 1.4e-3, less than the spacing of bfloat16 at 1: the process is in float32.
    model = wn.add_weight_noise(nn.Linear(size, size, bias=False, dtype=torch.bfloat16), 1.0)
    nn.init.zeros_(model._parameters["weight"])  # type: ignore[arg-type]
    with torch.no_grad(), wn.hold_noise(model, seed=0, rho=1 - 1e-6) as held:
        start = model.weight.clone()
        for _ in range(64):
            held.advance()
        moved = (model.weight - start).double()
    assert model.weight.dtype == torch.bfloat16
    expected = (2 * (1 - (1 - 1e-6) ** 64)) ** 0.5
    assert abs(moved.std() / expected - 1) < 4 / (2 * size**2) ** 0.5 + 0.05


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("every", [1, 3])
def test_noise_is_refreshed_every_so_many_forwards(every: int, size: int) -> None:
    model = nn.Sequential(make(1.0, size), make(1.0, size))
    x = torch.ones(1, size)
    with wn.hold_noise(model, seed=0, every=every) as held:
        outputs = [model(x).detach() for _ in range(3 * every)]
        assert [bool(torch.equal(one, outputs[0])) for one in outputs] == [n < every for n in range(3 * every)]
        held.reset()  # Counting begins again.
        assert sum(torch.equal(model(x), outputs[-1]) for _ in range(every)) == 0
    assert not model._forward_pre_hooks
    with wn.hold_noise(model, seed=0) as held:
        for number in range(3):
            assert torch.equal(model(x), outputs[number * every])
            held.advance()


@pytest.mark.parametrize("size", SIZES)
def test_uses_of_a_tied_weight_move_on_together_and_once(size: int) -> None:
    one, other = (nn.Linear(size, size, bias=False) for _ in range(2))
    other.weight = nn.init.zeros_(one.weight)
    model = wn.add_weight_noise(nn.Sequential(one, other), 1.0)
    with torch.no_grad(), wn.hold_noise(model, seed=0, rho=0.5) as held:
        start = one.weight.clone()
        held.advance()
        later = one.weight.clone()
        assert torch.equal(later, other.weight)
    assert abs((start * later).mean() - 0.5) < 4 * (2 / size**2) ** 0.5


@pytest.mark.parametrize("at", ["input", "output"])
@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_noise_on_activations_moves_on(rho: float, at: Any) -> None:
    model = wn.add_activation_noise(nn.Sequential(nn.Identity()), {"0": wn.Gaussian(1.0)}, at=at)
    x = torch.zeros(4096)

    def forwards() -> list[Tensor]:
        with torch.no_grad(), wn.hold_noise(model, seed=1, rho=rho, every=2):
            return [model(x) for _ in range(4)]

    first, same, later, _ = forwards()
    assert torch.equal(first, same)
    assert abs((first * later).mean() - rho) < 4 * (2 / 4096) ** 0.5
    assert all(torch.equal(one, other) for one, other in zip(forwards(), (first, same, later, later), strict=True))


@pytest.mark.parametrize("estimator", ["flipout", "local"])
def test_noise_that_differs_by_example_is_refreshed_too(estimator: Any) -> None:
    model = make(1.0, estimator=estimator)
    x = torch.ones(4, 8)
    with torch.no_grad(), wn.hold_noise(model, seed=0, every=2):
        first, same, later = (model(x) for _ in range(3))
    assert torch.equal(first, same)
    assert not torch.isclose(first, later).any()
    with pytest.raises(wn.OptionError, match=r"rho.*'weight' has estimator='(flipout|local)'.*rho=0"):
        wn.hold_noise(model, rho=0.5).__enter__()


@pytest.mark.parametrize("size", SIZES)
def test_an_inner_hold_stays_the_innermost(size: int) -> None:
    model, x = make(1.0, size), torch.ones(1, size)
    with torch.no_grad(), wn.hold_noise(model, every=1) as outer:
        with wn.hold_noise(model, seed=1):
            one, other = model(x), model(x)
            outer.reset()
            assert torch.equal(one, other)
            assert torch.equal(model(x), one)
        assert not torch.equal(model(x), one)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_a_checkpoint_computes_again_with_the_draw_of_its_forward(size: int, whole: bool, reentrant: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(size, size), nn.Dropout(0.5), nn.Tanh())
    wn.add_weight_noise(model, 0.3)
    weight = model.get_parameter("0.weight")
    x = torch.randn(2, size, requires_grad=True)

    def gradient(call: Callable[[Tensor], Any]) -> Tensor:
        model.zero_grad()
        with wn.hold_noise(model, seed=0, every=1, rho=0.5) as held:
            call(x)
            torch.manual_seed(1)
            y = call(x)
            held.advance()  # After the forward, before the backward.
            y.sum().backward()
        assert weight.grad is not None
        return weight.grad.clone()

    class Inside(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return checkpoint(nn.Sequential.forward, model, x, use_reentrant=reentrant)

    expected = gradient(model)
    if whole:
        assert_close(gradient(lambda x: checkpoint(model, x, use_reentrant=reentrant)), expected)
        return
    model.forward = Inside().forward  # type: ignore[method-assign]
    assert_close(gradient(model), expected)


def test_copies_are_in_the_hold_and_are_not_counted() -> None:
    model, x = nn.Sequential(make()), torch.ones(1, 8)
    with torch.no_grad(), wn.hold_noise(model, seed=0, every=2):
        first = model(x)
        twin = copy.deepcopy(model)
        assert all(torch.equal(twin(x), first) for _ in range(4))
        assert torch.equal(model(x), first)
        assert not torch.equal(model(x), first)
        assert torch.equal(model(x), twin(x))
        buffer = io.BytesIO()
        torch.save(model, buffer)
        loaded = pickle.loads(pickle.dumps(model))
    assert not torch.equal(loaded(x), loaded(x))


def test_forwards_of_parts_are_not_counted_and_the_hold_says_so() -> None:
    model, x = nn.Sequential(make()), torch.ones(1, 8)
    with pytest.warns(wn.ForwardsNotCountedWarning, match="counted no forward"), wn.hold_noise(model, every=1):
        model[0](x)


@pytest.mark.parametrize(
    "law", [wn.Uniform(0.1), wn.DropConnect(0.1), wn.BitFlip(0.1), wn.LearnedGaussian(factorised=True)], ids=repr
)
@pytest.mark.parametrize("size", SIZES)
def test_laws_without_normal_numbers_are_refused_by_name(size: int, law: Any) -> None:
    model = make([wn.Clip(2.0), law], size)
    with pytest.raises(wn.OptionError, match=f"{type(law).__name__}.*rho=0"):
        wn.hold_noise(model, rho=0.5).__enter__()
    assert not torch.equal(*path(model, [1], seed=0))  # Drawn anew they are at each step.


class Mine:
    """A law of a user, of normal numbers."""

    def __init__(self, normal: bool) -> None:
        self.normal_draw = normal

    def draw(self, weight: Tensor) -> Tensor:
        return torch.randn(weight.shape, dtype=weight.dtype, device=weight.device)

    def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
        return weight + factor * noise


def test_a_law_of_a_user_says_that_its_numbers_are_normal() -> None:
    start, moved = path(make(Mine(True)), [1], seed=0, rho=0.99)
    assert 0 < (moved - start).abs().max() < 1
    with pytest.raises(wn.OptionError, match="Mine"):
        path(make(Mine(False)), [1], seed=0, rho=0.99)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"every": 0}, r"hold_noise\(every=...\)"),
        ({"every": 1.5}, r"hold_noise\(every=...\)"),
        ({"rho": 1.0}, r"hold_noise\(rho=...\)"),
        ({"rho": -0.1}, r"hold_noise\(rho=...\)"),
        ({"rho": ()}, r"hold_noise\(rho=...\)"),
        ({"rho": (0.5, "x")}, r"hold_noise\(rho=...\)"),
        ({"rho": 0.5, "reads": "fresh"}, r"reads='fresh'.*every=1"),
        ({"every": 1, "reads": "fresh"}, r"reads='fresh'.*every=1"),
    ],
)
def test_options_are_checked(options: dict[str, Any], text: str) -> None:
    with pytest.raises(wn.OptionError, match=text):
        wn.hold_noise(make(), **options)


def test_advance_is_for_the_inside_and_takes_whole_steps() -> None:
    model = make()
    with pytest.raises(RuntimeError, match=r"advance\(\) is for use inside"):
        wn.hold_noise(model).advance()
    with wn.hold_noise(model) as held, pytest.raises(wn.OptionError, match="steps"):
        held.advance(0)
    with wn.hold_noise(model, reads="fresh") as held, pytest.raises(wn.OptionError, match="reads='fresh'"):
        held.advance()


@pytest.mark.compile
@pytest.mark.parametrize("size", SIZES)
def test_compiled_code_follows(size: int) -> None:
    model = nn.Sequential(make(0.1, size))
    compiled: Any = torch.compile(model, backend="aot_eager")
    x = torch.ones(1, size)
    with torch.no_grad(), wn.hold_noise(compiled, seed=0, every=1, rho=0.5):
        inside = [compiled(x) for _ in range(2)]
        with torch._dynamo.config.patch(error_on_recompile=True):
            inside += [compiled(x) for _ in range(3)]
    with torch.no_grad(), wn.hold_noise(model, seed=0, every=1, rho=0.5):
        assert_close(inside, [model(x) for _ in range(5)])


@pytest.mark.compile
def test_a_hook_in_compiled_code_leaves_the_graph() -> None:
    model, x = nn.Sequential(make(0.1)), torch.ones(1, 8)
    with torch.no_grad(), wn.hold_noise(model, seed=0, every=2):
        expected = [model(x) for _ in range(5)]
    with torch.no_grad(), wn.hold_noise(model, seed=0, every=2):
        compiled: Any = torch.compile(model, backend="aot_eager")
        assert_close([compiled(x) for _ in range(5)], expected)
