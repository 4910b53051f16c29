"""Two lifetimes: what belongs to the chip is held, what belongs to a reading is drawn anew in each forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import weightnoise as wn

SIZES = [8, 64]  # Drawn by torch's generator, and by the engine.


def make(law: Any, size: int = 8) -> nn.Linear:
    torch.manual_seed(0)
    return wn.add_weight_noise(nn.Linear(size, size, bias=False), law)


def readings(model: nn.Linear, count: int = 4, **options: Any) -> list[Tensor]:
    """The noisy weights of some forwards in a hold of fresh reads."""
    x = torch.eye(model.in_features)
    with torch.no_grad(), wn.hold_noise(model, reads="fresh", **options):
        return [model(x).T for _ in range(count)]


def differ(one: Tensor, other: Tensor) -> Tensor:
    return ~torch.isclose(one, other, rtol=0, atol=1e-7)


class Stuck:
    """A law of a user whose draw belongs to the hardware."""

    of_chip = True

    def draw(self, weight: Tensor) -> Tensor:
        return torch.rand(weight.shape, dtype=weight.dtype, device=weight.device) < 0.5

    def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
        return torch.where(noise, 0.0, weight)


# Laws, and whether all of their draw belongs to the chip, none of it, or a part.
LIFETIMES: dict[str, tuple[Any, str]] = {
    "gaussian": (wn.Gaussian(0.1), "none"),
    "gaussian relative": (wn.Gaussian(0.1, relative_to="absmax", per=0), "none"),
    "uniform": (wn.Uniform(0.1), "none"),
    "dropconnect": (wn.DropConnect(0.5), "none"),
    "learned": (wn.LearnedGaussian(0.1), "none"),
    "protected": (wn.Protect(wn.Gaussian(0.1), 0.25), "none"),
    "stuck": (wn.StuckAt(0.3, chip=None), "all"),
    "stuck on a chip": (wn.StuckAt(0.3), "all"),
    "flips": (wn.BitFlip(0.1), "none"),  # Soft errors.
    "flips on a chip": (wn.BitFlip(0.1, chip=2), "all"),
    "stuck, protected": (wn.Protect(wn.StuckAt(0.3, chip=None), 0.25), "all"),
    "programmed": (wn.ProgrammingNoise(time=3600.0), "part"),
    "programmed, read exactly": (wn.ProgrammingNoise(time=3600.0, read=()), "all"),
    "frozen": (wn.Frozen(wn.Gaussian(0.1), chip=7), "all"),
    "frozen programming": (wn.Frozen(wn.ProgrammingNoise()), "all"),
    "frozen and fresh": ([wn.Frozen(wn.Gaussian(0.1)), wn.Gaussian(0.01)], "part"),
    "stuck and fresh": ([wn.StuckAt(0.3, chip=None), wn.Gaussian(0.01)], "part"),
    "of a user": (Stuck(), "all"),
    "of a user, protected": (wn.Protect(Stuck(), 0.25), "all"),
    "nothing random": (wn.Clip(0.5), "all"),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", LIFETIMES)
def test_the_chip_is_held_and_the_reading_is_fresh(case: str, size: int) -> None:
    law, of_chip = LIFETIMES[case]
    model = make(law, size)
    first, second, *_ = readings(model, seed=3)
    assert torch.equal(first, second) == (of_chip == "all")
    again = readings(model, seed=3)
    assert all(torch.equal(one, other) for one, other in zip(readings(model, seed=3), again, strict=True))
    if case == "nothing random":
        return
    other, _, *_ = readings(model, seed=4)
    assert differ(first, other).any()
    if of_chip == "part":  # Reading changes less than another chip.
        assert (first - second).square().mean() < 0.5 * (first - other).square().mean()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("case", LIFETIMES)
def test_readings_take_nothing_from_torchs_generator(case: str, seed: int | None, size: int) -> None:
    model = make(LIFETIMES[case][0], size)
    x = torch.eye(size)
    with torch.no_grad(), wn.hold_noise(model, seed=seed, reads="fresh"):
        before = torch.get_rng_state()
        model(x)
        model(x)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", SIZES)
def test_the_mean_of_many_readings_is_the_chip(size: int) -> None:
    # Perfect programming: the errors of one chip are those of reading alone, and the mean of n of them is
    # sqrt(n) times nearer. With everything held, n readings are one.
    model = make(wn.ProgrammingNoise(programming=()), size)
    reads, chips = 64, 8

    def spread(means: list[Tensor]) -> float:
        return float(torch.stack(means).std(dim=0).square().mean().sqrt())

    fresh = spread([torch.stack(readings(model, reads, seed=seed)).mean(dim=0) for seed in range(chips)])
    single = spread([readings(model, 1, seed=seed)[0] for seed in range(8 * chips)])
    # The relative error of an estimate from k degrees of freedom is about sqrt(1 / 2k); there are size^2 weights.
    assert single / fresh == pytest.approx(reads**0.5, rel=5 * (1 / (2 * (chips - 1) * size**2)) ** 0.5 + 0.05)


@pytest.mark.parametrize("size", SIZES)
def test_the_mirror_of_a_hold_mirrors_its_readings(size: int) -> None:
    model = make(wn.Gaussian(0.1), size)
    pairs = zip(readings(model, seed=3), readings(model, seed=3, sign=-1), strict=True)
    for one, other in pairs:
        torch.testing.assert_close((one + other) / 2, model.weight.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_one_forward_is_one_reading_and_its_gradient_is_at_it(size: int) -> None:
    class Twice(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight + x @ self.weight

    model = wn.add_weight_noise(Twice(size, size, bias=False), wn.Gaussian(0.1))
    x = torch.eye(size)
    with wn.hold_noise(model, seed=0, reads="fresh"):
        noisy = model(x).detach() / 2
        y = model(x)
        y.square().sum().backward()
    assert differ(noisy, y.detach() / 2).any()
    torch.testing.assert_close(model.get_parameter("weight").grad, 4 * y.detach())


@pytest.mark.parametrize("size", SIZES)
def test_reset_is_another_chip_and_nested_holds_keep_their_own(size: int) -> None:
    model = make([wn.StuckAt(0.3, chip=None), wn.Gaussian(0.01)], size)
    x = torch.eye(size)
    with torch.no_grad(), wn.hold_noise(model, seed=0, reads="fresh") as held:
        first = model(x)
        held.reset()
        assert (differ(model(x), first).float().mean()) > 0.2
        with wn.hold_noise(model, seed=0):
            one = model(x)
            assert torch.equal(one, model(x))
        assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize("rows", [20, 400])
def test_rows_that_are_looked_up_are_read_anew(rows: int) -> None:
    model = wn.add_weight_noise(nn.Embedding(rows, 32), [wn.Frozen(wn.Gaussian(0.1)), wn.Gaussian(0.01)])
    plain = wn.add_weight_noise(nn.Embedding(rows, 32), wn.Gaussian(0.1))
    tokens = torch.tensor([1, 2, 2])
    for one in (model, plain):
        for grad in (True, False):
            with torch.set_grad_enabled(grad), wn.hold_noise(one, seed=0, reads="fresh"):
                first, second = one(tokens), one(tokens)
            assert not torch.equal(first, second)
            assert torch.equal(first[1], first[2])
            with torch.set_grad_enabled(grad), wn.hold_noise(one, seed=0, reads="fresh"):
                assert torch.equal(one(tokens), first)


@pytest.mark.parametrize("at", ["input", "output"])
def test_noise_on_activations_is_a_readings(at: Any) -> None:
    model = wn.add_activation_noise(nn.Sequential(nn.Linear(4, 4)), wn.Gaussian(0.1), at=at)
    x = torch.ones(2, 4)

    def two() -> list[Tensor]:
        with torch.no_grad(), wn.hold_noise(model, seed=1, reads="fresh"):
            return [model(x), model(x), model(torch.ones(5, 4))]  # Of any shape.

    first, again = two(), two()
    assert not torch.equal(first[0], first[1])
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def in_checkpoint(model: nn.Module, x: Tensor, reentrant: bool) -> None:
    y: Any = checkpoint(model, x, use_reentrant=reentrant)
    y.sum().backward()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("add", [wn.add_weight_noise, wn.add_activation_noise])
@pytest.mark.parametrize("size", SIZES)
def test_a_checkpoint_is_refused(size: int, add: Callable[..., nn.Module], reentrant: bool) -> None:
    model = add(nn.Sequential(nn.Linear(size, size)), wn.Gaussian(0.1))
    x = torch.ones(2, size, requires_grad=True)
    with (
        wn.hold_noise(model, reads="fresh"),
        pytest.raises(wn.WeightNoiseError, match=r"'0.*reads='held'"),
    ):
        in_checkpoint(model, x, reentrant)


@pytest.mark.parametrize("estimator", ["flipout", "local"])
def test_noise_that_differs_by_example_is_refused(estimator: Any) -> None:
    model = wn.add_weight_noise(nn.Sequential(nn.Linear(4, 4)), wn.Gaussian(0.1), estimator=estimator)
    with pytest.raises(ValueError, match=r"'0\.weight'.*shared"):
        wn.hold_noise(model, reads="fresh").__enter__()
    assert not torch.equal(model(torch.ones(1, 4)), model(torch.ones(1, 4)))  # Nothing is left open.
    with pytest.raises(ValueError, match=r"hold_noise\(reads="):
        wn.hold_noise(model, reads="new")  # type: ignore[arg-type]


@pytest.mark.compile
@pytest.mark.parametrize("size", SIZES)
def test_compiled_code_reads_anew_and_keeps_the_chip(size: int) -> None:
    model = make([wn.StuckAt(0.5, chip=None), wn.Gaussian(0.001)], size)
    compiled = torch.compile(model, backend="aot_eager")
    x = torch.eye(size)
    with torch.no_grad(), wn.hold_noise(model, seed=0, reads="fresh"):
        eager, first, second = model(x), compiled(x), compiled(x)
    assert not torch.equal(first, second)
    torch.testing.assert_close(first, eager, rtol=0, atol=0.02)  # The same weights are stuck.
    torch.testing.assert_close(first, second, rtol=0, atol=0.02)


@pytest.mark.parametrize("size", SIZES)
def test_frozen_follows_the_number_of_the_chip_and_the_name(size: int) -> None:
    x = torch.eye(size)
    with torch.no_grad():
        outputs = [make(wn.Frozen(wn.Gaussian(0.1), chip=chip), size)(x) for chip in (7, 7, 8)]
        assert torch.equal(outputs[0], outputs[1])
        assert differ(outputs[0], outputs[2]).all()
        fresh = make([wn.Frozen(wn.Gaussian(0.1), chip=7), wn.Gaussian(0.001)], size)
        one, other = fresh(x), fresh(x)
    assert not torch.equal(one, other)
    assert 0 < (one - other).std() < 0.003


@pytest.mark.parametrize(
    "bad", [{"law": 0.1}, {"law": wn.Gaussian(0.1), "chip": None}, {"law": wn.Gaussian(0.1), "chip": -1}]
)
def test_frozen_refuses_what_it_cannot_freeze(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"Frozen\("):
        wn.Frozen(**bad)
