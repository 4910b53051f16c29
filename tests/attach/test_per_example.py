"""Noise of its own for each example: against a loop over examples, closed forms, and the shared draw."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.utils import parametrizations
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import weightnoise as wn
from tests.cases import NO_CONTEXTS, needs_torch, single_loss
from tests.helpers import seen
from tests.laws.test_identities import DRAWS, assert_mean
from weightnoise._noise.weight_noise import Estimator
from weightnoise._random import keyed as _keyed
from weightnoise._random import seeds as _seeds
from weightnoise.testing import assert_restores, check_gradients

PER_EXAMPLE: list[Estimator] = ["flipout", "local"]

LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 4), (3, 5)),
    "linear_without_bias": (lambda: nn.Linear(5, 4, bias=False), (3, 5)),
    "linear_sequence": (lambda: nn.Linear(5, 4), (3, 2, 6, 5)),
    "linear_single": (lambda: nn.Linear(5, 4), (5,)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding="valid"), (3, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), padding=1), (3, 4, 5, 5)),
    "conv2d_groups": (lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2), (3, 4, 6, 6)),
    "conv2d_depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), (3, 4, 6, 6)),
    "conv2d_same": (lambda: nn.Conv2d(4, 6, 3, padding="same", bias=False), (3, 4, 5, 5)),
    "conv2d_reflect": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (3, 4, 5, 5)),
    "conv2d_circular": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (3, 4, 5, 5)),
    "conv2d_replicate": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="replicate"), (3, 4, 5, 5)),
    "conv2d_single": (lambda: nn.Conv2d(4, 6, 3), (4, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2, groups=2), (3, 2, 4, 3, 3)),
}

# The standard deviation of each weight, from the formulas of the laws.
FLIPPABLE: dict[str, tuple[wn.Noise, Callable[[Tensor], Tensor]]] = {
    "uniform": (wn.Uniform(0.3), lambda w: torch.full_like(w, 0.3 / math.sqrt(3))),
    "uniform_value": (wn.Uniform(0.3, relative_to="value"), lambda w: 0.3 / math.sqrt(3) * w),
    "quantization": (wn.QuantizationNoise(3), lambda w: w.abs().max() / 3 / math.sqrt(12) * torch.ones_like(w)),
    "factorised": (
        wn.LearnedGaussian(0.3, factorised=True),
        lambda w: torch.full_like(w, 0.3 * math.sqrt(2 / math.pi)),
    ),
}
GAUSSIAN: dict[str, tuple[wn.Noise, Callable[[Tensor], Tensor]]] = {
    "gaussian": (wn.Gaussian(0.3), lambda w: torch.full_like(w, 0.3)),
    "absmax": (wn.Gaussian(0.3, relative_to="absmax"), lambda w: 0.3 * w.abs().max() * torch.ones_like(w)),
    "rms_per_output": (
        wn.Gaussian(0.3, relative_to="rms", per=0, gradient="exact"),
        lambda w: 0.3 * torch.stack([row.square().mean().sqrt() * torch.ones_like(row) for row in w]),
    ),
    "std_per_input": (
        wn.Gaussian(0.3, relative_to="std", per=1),
        lambda w: (
            0.3
            * w.transpose(0, 1).flatten(1).std(1, correction=0).reshape(1, -1, *[1] * (w.ndim - 2))
            * torch.ones_like(w)
        ),
    ),
    "value": (wn.Gaussian(0.3, relative_to="value", gradient="exact"), lambda w: 0.3 * w),
    "learned": (wn.LearnedGaussian(0.3), lambda w: torch.full_like(w, 0.3)),
    "variational": (wn.Variational(-1.0), lambda w: torch.full_like(w, math.log1p(math.exp(-1.0)))),
    "parametric": (wn.ParametricNoise(0.3), lambda w: 0.3 * w.std(correction=0) * torch.ones_like(w)),
    "variational_dropout": (wn.VariationalDropout(0.09, per=0), lambda w: 0.3 * w),
}
ALL = {**GAUSSIAN, **FLIPPABLE}
CASES = [("flipout", name) for name in ALL] + [("local", name) for name in GAUSSIAN]


def make(estimator: Estimator, law: Any = 0.3) -> Any:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    return wn.add_weight_noise(model, law, estimator=estimator)


def batch(*shape: int) -> Tensor:
    return torch.randn(shape or (5, 4), dtype=torch.float64)


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters()]


def noise_of(layer: nn.Module) -> Any:
    return layer.parametrizations.weight[-1]


# What it is: reference implementations.


@pytest.mark.parametrize(
    "law", ["gaussian", "value", "uniform", "quantization", "factorised", "variational_dropout"]
)
@pytest.mark.parametrize("name", LAYERS)
def test_flipout_equals_a_layer_for_each_example_with_signs_on_its_rows_and_columns(name: str, law: str) -> None:
    layer, shape = LAYERS[name][0]().double(), LAYERS[name][1]
    x, plain = batch(*shape), copy.deepcopy(layer)
    wn.add_weight_noise(layer, ALL[law][0], estimator="flipout")
    with wn.hold_noise(layer, seed=5):
        moved = layer.weight.detach() - plain.weight  # A read outside of the forward: the shared draw.
        found = layer(x)
        key = noise_of(layer).control.held.key
    single = name.endswith("single")
    examples, outputs = (1 if single else shape[0]), plain.weight.shape[0]
    groups = getattr(plain, "groups", 1)
    inputs = plain.weight.shape[1] * groups
    where = 0 if single else 1  # The channels; all positions of an example have one sign.
    where = x.ndim - 1 if isinstance(plain, nn.Linear) else where
    lead = [1 if dim else examples for dim in range(where)]
    after = [1] * (x.ndim - where - 1)
    s = _keyed.signs(key, x, [*lead, inputs, *after], 0).reshape(examples, inputs)
    r = _keyed.signs(key, x, [*lead, outputs, *after], 1).reshape(examples, outputs)
    for n in range(examples):
        # Output o sees the input channels of its group.
        mine = s[n].reshape(groups, -1).repeat_interleave(outputs // groups, dim=0)
        signs = (r[n].unsqueeze(1) * mine).reshape(*plain.weight.shape[:2], *[1] * (plain.weight.ndim - 2))
        weights = {"weight": plain.weight + moved * signs}
        expected = functional_call(plain, weights, (x if single else x[n : n + 1],))
        assert_close(found if single else found[n : n + 1], expected)


@pytest.mark.parametrize("law", ["gaussian", "rms_per_output", "std_per_input", "value", "variational_dropout"])
@pytest.mark.parametrize("name", LAYERS)
def test_local_adds_the_root_of_the_variance_that_a_layer_of_variances_has(name: str, law: str) -> None:
    layer, shape = LAYERS[name][0]().double(), LAYERS[name][1]
    x, plain = batch(*shape), copy.deepcopy(layer)
    wn.add_weight_noise(layer, GAUSSIAN[law][0], estimator="local")
    with wn.hold_noise(layer, seed=5):
        found = layer(x)
        key = noise_of(layer).control.held.key
    std = GAUSSIAN[law][1](plain.weight.detach())
    silent = {"weight": std.square(), **({} if plain.bias is None else {"bias": torch.zeros_like(plain.bias)})}
    variance = functional_call(plain, silent, (x.square(),))
    assert_close(found, plain(x) + variance.sqrt() * _keyed.normal(key, found))


class Fixed:
    """The same noise in every forward."""

    sign_symmetric = True

    def draw(self, weight: Tensor) -> Tensor:
        return torch.arange(1.0, weight.numel() + 1).to(weight).reshape(weight.shape).square() / 10

    def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
        return weight + factor * noise


def test_flipout_enumerates_all_signs_equally_often() -> None:
    layer = nn.Linear(3, 2, bias=False).double()
    plain, x = copy.deepcopy(layer), batch(3)
    wn.add_weight_noise(layer, Fixed(), estimator="flipout")
    noise = Fixed().draw(plain.weight)
    possible = [
        (plain.weight + noise * torch.outer(torch.tensor(r), torch.tensor(s))) @ x
        for r in itertools.product((1.0, -1.0), repeat=2)
        for s in itertools.product((1.0, -1.0), repeat=3)
    ]  # Each value twice: (r, s) and (-r, -s).
    with torch.no_grad():
        found = layer(x.expand(DRAWS, 3))
    distance = (found.unsqueeze(1) - torch.stack(possible)[:16]).abs().sum(dim=2)
    assert distance.min(dim=1).values.max() < 1e-12
    counts = torch.bincount(distance.argmin(dim=1), minlength=32)
    counts = counts[counts > 0]
    assert len(counts) == 16
    # 4 s.e. of a count with probability 1/16.
    assert (counts - DRAWS / 16).abs().max() < 4 * math.sqrt(DRAWS / 16 * 15 / 16)
    assert_close(torch.stack(possible).mean(dim=0), plain(x))


# Moments, against closed forms and against the shared draw.


@pytest.mark.slow
@pytest.mark.parametrize(("estimator", "law"), [*CASES, ("shared", "gaussian"), ("shared", "value")])
def test_mean_and_variance_of_the_output_and_covariance_of_two_examples(estimator: Estimator, law: str) -> None:
    layer = nn.Linear(6, 4).double()
    x = torch.rand(2, 6, dtype=torch.float64) + 0.5
    clean, std = layer(x).detach(), ALL[law][1](layer.weight.detach())
    wn.add_weight_noise(layer, ALL[law][0], estimator=estimator)
    with torch.no_grad():
        moved = torch.stack([layer(x) for _ in range(DRAWS)]) - clean
    scaled = moved / (x.square() @ std.square().T).sqrt()
    assert_mean(scaled.mean(dim=(1, 2)), 0.0)
    assert_mean(scaled.square().mean(dim=(1, 2)), 1.0)
    together = (x[0] * x[1]) @ std.square().T if estimator == "shared" else torch.zeros(4)
    for output in range(4):
        assert_mean(moved[:, 0, output] * moved[:, 1, output], together[output].item())


@pytest.mark.slow
@pytest.mark.parametrize("estimator", PER_EXAMPLE)
@pytest.mark.parametrize("name", ["conv2d_groups", "conv3d", "conv2d_circular"])
def test_the_variance_of_a_convolution_is_that_of_shared_noise(name: str, estimator: Estimator) -> None:
    layer, shape = LAYERS[name][0]().double(), LAYERS[name][1]
    x, ratios = batch(*shape), []
    for kind in ("shared", estimator):
        wn.add_weight_noise(layer, wn.Gaussian(0.3, relative_to="rms"), estimator=kind)
        with torch.no_grad():
            outputs = torch.stack([layer(x) for _ in range(1000)])
        ratios.append(outputs.var(dim=0))
        assert_close(
            outputs.mean(dim=0), wn.remove_weight_noise(layer)(x), rtol=0, atol=5 * outputs.std() / 1000**0.5
        )
    # A variance from 1000 draws has an s.e. of sqrt(2 / 1000) = 4.5 %; two of them 6.3 %.
    ratio = ratios[1] / ratios[0]
    assert (ratio - 1).abs().max() < 5 * 0.063
    assert ratio.mean().item() == pytest.approx(1.0, abs=0.02)


def test_flipout_keeps_the_correlation_of_positions_and_local_does_not() -> None:
    x = batch(1, 1, 5).expand(1, 2, 5)  # Twice the same position.
    for estimator, equal in (("shared", True), ("flipout", True), ("local", False)):
        layer = wn.add_weight_noise(nn.Linear(5, 4).double(), 0.3, estimator=estimator)  # type: ignore[arg-type]
        y = layer(x)
        assert torch.allclose(y[:, 0], y[:, 1]) is equal


# Gradients.


def sampled_gradients(model: Any, loss: Callable[[Any], Tensor], draws: int) -> Tensor:
    found = []
    for _ in range(draws):
        model.zero_grad()
        loss(model).backward()
        found.append(torch.cat([grad.flatten() for grad in gradients(model)]))
    return torch.stack(found)


@pytest.mark.slow
@pytest.mark.parametrize("law", ["gaussian", "value", "learned", "variational_dropout"])
@pytest.mark.parametrize("estimator", PER_EXAMPLE)
def test_the_expected_gradient_is_that_of_the_shared_draw(estimator: Estimator, law: str) -> None:
    plain, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), batch(6, 3)
    found = []
    for kind in ("shared", estimator):
        model = wn.add_weight_noise(copy.deepcopy(plain), ALL[law][0], estimator=kind)
        found.append(sampled_gradients(model, lambda model: single_loss(model, x), DRAWS // 4))
    error = sum(one.var(dim=0) / (DRAWS // 4) for one in found).sqrt()
    scores = (found[0].mean(dim=0) - found[1].mean(dim=0)) / error
    # The largest of about 60 scores exceeds 4.5 once in 2,000 runs; the mean square has an s.e. below sqrt(2).
    assert scores.abs().max() < 4.5
    assert scores.square().mean() < 2.5


@pytest.mark.slow
@pytest.mark.parametrize("estimator", PER_EXAMPLE)
def test_exact_multiplicative_noise_adds_decay_and_straight_through_adds_none(estimator: Estimator) -> None:
    plain, x, target = nn.Linear(3, 2, bias=False).double(), batch(8, 3), batch(8, 2)
    clean = torch.autograd.grad((plain(x) - target).square().sum() / 8, plain.weight)[0]
    decay = 2 * 0.3**2 * plain.weight.detach() * x.square().mean(dim=0)
    for gradient, extra in (("exact", decay), ("straight-through", torch.zeros_like(decay))):
        law = wn.Gaussian(0.3, relative_to="value", gradient=gradient)  # type: ignore[arg-type]
        model = wn.add_weight_noise(copy.deepcopy(plain), law, estimator=estimator)
        found = sampled_gradients(model, lambda model: (model(x) - target).square().sum() / 8, DRAWS)
        for entry, expected in enumerate((clean + extra).flatten().tolist()):
            assert_mean(found[:, entry], expected)


@pytest.mark.parametrize("estimator", PER_EXAMPLE)
def test_the_gradient_varies_at_least_ten_times_less_at_batch_64(estimator: Estimator) -> None:
    # Linear regression on 64 inputs in [0, 1], as pixels: 1/30 at batch 64 is expected.
    x, target, plain = torch.rand(64, 64), torch.randn(64, 10), nn.Linear(64, 10)
    spread = {}
    for kind in ("shared", estimator):
        model = wn.add_weight_noise(copy.deepcopy(plain), 0.1, estimator=kind)
        found = sampled_gradients(model, lambda model: nn.functional.mse_loss(model(x), target), 300)
        spread[kind] = found.var(dim=0).sum().item()
    assert spread[estimator] < spread["shared"] / 10


@pytest.mark.parametrize(("estimator", "law"), CASES)
def test_central_differences_agree(estimator: Estimator, law: str) -> None:
    check_gradients(make(estimator, ALL[law][0]), single_loss, batch(), max_entries=6)


@pytest.mark.parametrize("gradient", ["straight-through", "exact"])
@pytest.mark.parametrize("relative_to", ["absmax", "std", "rms", "value"])
@pytest.mark.parametrize("estimator", PER_EXAMPLE)
def test_central_differences_agree_in_both_gradient_modes(
    estimator: Estimator, relative_to: Any, gradient: Any
) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(64, 2))
    law = wn.Gaussian(0.3, relative_to=relative_to, gradient=gradient)
    check_gradients(
        wn.add_weight_noise(model, law, estimator=estimator), single_loss, batch(3, 2, 4, 4), max_entries=6
    )


@pytest.mark.parametrize("estimator", PER_EXAMPLE)
def test_where_the_variance_is_zero_so_are_the_noise_and_its_gradient(estimator: Estimator) -> None:
    layer = wn.add_weight_noise(nn.Linear(4, 3), wn.LearnedGaussian(0.3), estimator=estimator)
    x = torch.zeros(2, 4, requires_grad=True)
    y = layer(x)
    assert torch.equal(y, layer.bias.expand(2, 3))
    y.square().sum().backward()
    assert all(bool(grad.isfinite().all()) for grad in [*gradients(layer), x.grad])


@pytest.mark.parametrize("estimator", PER_EXAMPLE)
def test_double_backward_passes(estimator: Estimator) -> None:
    model, x = make(estimator), batch().requires_grad_()
    with wn.hold_noise(model, seed=0):
        assert torch.autograd.gradgradcheck(model, (x,))


# Contexts.


@pytest.mark.parametrize("estimator", PER_EXAMPLE)
def test_what_is_off_is_the_clean_forward_bit_for_bit(estimator: Estimator) -> None:
    model, x = make(estimator), batch()
    clean = wn.remove_weight_noise(copy.deepcopy(model))(x)
    with wn.no_noise(model):
        assert torch.equal(model(x), clean)
    with wn.scale_noise(model, 0.0):
        assert torch.equal(model(x), clean)
    assert not torch.equal(model(x), clean)
    gated = wn.add_weight_noise(wn.remove_weight_noise(model), 0.3, when="training", estimator=estimator)
    assert not torch.equal(gated(x), clean)
    assert torch.equal(gated.eval()(x), clean)
    with wn.force_noise(gated):
        assert not torch.equal(gated(x), clean)


@pytest.mark.parametrize(("estimator", "law"), CASES)
def test_a_mirrored_hold_is_the_exact_mirror_and_a_factor_scales(estimator: Estimator, law: str) -> None:
    layer: Any = nn.Linear(4, 3, bias=False).double()
    x = batch()
    wn.add_weight_noise(layer, ALL[law][0], estimator=estimator)
    with wn.no_noise(layer):
        clean = layer(x)

    def moved(sign: int, factor: float) -> Tensor:
        with wn.hold_noise(layer, seed=2, sign=sign), wn.scale_noise(layer, factor):
            return layer(x) - clean

    once = moved(1, 1.0)
    assert once.abs().min() > 0
    assert_close(moved(-1, 1.0), -once)
    assert_close(moved(1, 2.0), 2 * once)
    assert_close(moved(-1, 0.5), -once / 2)
    nn.init.zeros_(layer._parameters["weight"])
    clean = torch.zeros_like(clean)
    assert torch.equal(moved(-1, 1.0), -moved(1, 1.0))  # Nothing rounds: bit for bit.


@pytest.mark.parametrize("estimator", PER_EXAMPLE)
def test_a_schedule_scales_too(estimator: Estimator) -> None:
    layer, x = wn.add_weight_noise(nn.Linear(4, 3).double(), 0.3, estimator=estimator), batch()
    with wn.no_noise(layer):
        clean = layer(x)
    with wn.hold_noise(layer, seed=0):
        full = layer(x) - clean
        wn.NoiseScheduler(layer, wn.linear_ramp(4)).step()
        assert_close(layer(x) - clean, full * noise_of(layer).control.factor)
    assert noise_of(layer).control.factor < 1


@pytest.mark.parametrize("estimator", PER_EXAMPLE)
def test_a_hold_is_one_draw_for_every_position_of_an_example(estimator: Estimator) -> None:
    model, x = make(estimator), batch(5, 7, 4)
    with wn.hold_noise(model, seed=4) as held:
        first = model(x)
        assert torch.equal(model(x), first)
        # The place of an example counts, not the size of its batch or the length of its sequence.
        assert_close(model(x[:3]), first[:3])
        assert_close(model(x[:, :4]), first[:, :4])
        assert not torch.allclose(model(x[1:]), first[1:])
        held.reset()
        assert not torch.equal(model(x), first)
    with wn.hold_noise(model, seed=4):
        assert torch.equal(model(x), first)
    with wn.hold_noise(model, seed=5):
        assert not torch.equal(model(x), first)


@pytest.mark.parametrize("estimator", PER_EXAMPLE)
def test_a_seeded_hold_draws_nothing_and_depends_on_no_order(estimator: Estimator) -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)}).double()
    model["b"].load_state_dict(model["a"].state_dict())
    wn.add_weight_noise(model, 0.3, estimator=estimator)
    x, state = batch(), torch.get_rng_state()
    with wn.hold_noise(model, seed=1):
        a, b = model["a"](x), model["b"](x)
    with wn.hold_noise(model, seed=1):
        other, again = model["b"](x), model["a"](x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a, again)
    assert torch.equal(b, other)
    assert not torch.equal(a, b)
    with wn.hold_noise(model["b"], seed=1):
        assert not torch.equal(model["b"](x), b)  # Its name there is another one.


@pytest.mark.parametrize("estimator", PER_EXAMPLE)
def test_an_unseeded_hold_draws_on_entry_alone(estimator: Estimator) -> None:
    model, x = make(estimator), batch()
    with wn.hold_noise(model):
        state = torch.get_rng_state()
        first = model(x)
        assert torch.equal(torch.get_rng_state(), state)
    with wn.hold_noise(model):
        assert not torch.equal(model(x), first)


def test_numbers_of_a_key_are_normal_independent_and_fair() -> None:
    key, like = torch.tensor(_seeds.derive_seed(3, "x")), torch.empty(1000, 1000)
    normal = _keyed.normal(key, like).double()
    signs = _keyed.signs(key, like, like.shape, 0).double()
    other = _keyed.normal(key + 1, like).double()
    # Standard errors of the first moments of a normal, and of products of independent numbers, over sqrt(n).
    for value, error in [
        (normal.mean(), 1.0),
        (normal.square().mean() - 1, math.sqrt(2)),
        (normal.pow(3).mean(), math.sqrt(15)),
        (normal.pow(4).mean() - 3, math.sqrt(96)),
        ((normal[1:] * normal[:-1]).mean(), 1.0),
        ((normal[:, 1:] * normal[:, :-1]).mean(), 1.0),
        ((normal[:, 1:] * normal[:, :-1]).square().mean() - 1, math.sqrt(8)),
        ((normal * other).mean(), 1.0),
        ((normal * signs).mean(), 1.0),
        (signs.mean(), 1.0),
        ((signs[1:] * signs[:-1]).mean(), 1.0),
        ((signs[:, 1:] * signs[:, :-1]).mean(), 1.0),
    ]:
        assert abs(value.item()) < 4 * error / math.sqrt(normal.numel())
    # Rows and columns too: sums over one have variance 1000.
    for dim in (0, 1):
        assert normal.sum(dim).square().mean().item() == pytest.approx(1000, abs=4 * 1000 * math.sqrt(2 / 1000))
    assert torch.equal(_keyed.normal(key, torch.empty(3, 1000)).double(), normal[:3])


# What torch does around it.


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("estimator", PER_EXAMPLE)
def test_activation_checkpointing(estimator: Estimator, use_reentrant: bool, held: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 4))
    wn.add_weight_noise(model, 0.3, estimator=estimator)
    x = torch.randn(3, 4, requires_grad=True)

    def both(call: Any) -> list[Tensor]:
        torch.manual_seed(3)
        with wn.hold_noise(model) if held else wn.scale_noise(model, 1.0):
            first, second = call(x), call(x + 1)  # Two forwards before one backward.
            model.zero_grad()
            (first.square().sum() + 2 * second.square().sum()).backward()
        return gradients(model)

    recomputed = both(lambda x: checkpoint(model, x, use_reentrant=use_reentrant))
    for found, expected in zip(recomputed, both(model), strict=True):
        assert_close(found, expected)


COMPILING = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.mark.compile
@COMPILING
@pytest.mark.parametrize("law", ["rms_per_output", "learned"])
@pytest.mark.parametrize("estimator", PER_EXAMPLE)
def test_compiled_whole_with_fresh_noise_holds_and_schedules(estimator: Estimator, law: str) -> None:
    model, x = make(estimator, ALL[law][0]), batch()
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert not torch.equal(compiled(x), compiled(x))
    wn.NoiseScheduler(model, lambda step: 0.5).step()
    assert not torch.equal(compiled(x), compiled(x))
    for sign in (1, -1):
        with wn.hold_noise(model, seed=0, sign=sign):
            model.zero_grad()
            single_loss(compiled, x).backward()
            found = gradients(model)
            model.zero_grad()
            single_loss(model, x).backward()
            assert_close(compiled(x), model(x))
        for mine, expected in zip(found, gradients(model), strict=True):
            assert_close(mine, expected)


@needs_torch("2.9", NO_CONTEXTS)
@pytest.mark.compile
@COMPILING
@pytest.mark.parametrize("estimator", PER_EXAMPLE)
def test_new_holds_recompile_nothing_and_a_compiled_step_may_hold(estimator: Estimator) -> None:
    model, x = make(estimator), batch()
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    outputs = []
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(4):
            with wn.hold_noise(model, seed=seed):
                outputs.append(compiled(x))
                assert torch.equal(compiled(x), outputs[-1])
    assert not torch.equal(outputs[0], outputs[1])

    def step(x: Tensor) -> Tensor:
        with wn.hold_noise(model):
            return model(x) - model(x)

    assert torch.equal(torch.compile(step, backend="eager", fullgraph=True)(x), torch.zeros(5, 3).double())


@pytest.mark.parametrize("estimator", PER_EXAMPLE)
def test_vmap_autocast_and_half_precision(estimator: Estimator) -> None:
    model, x = make(estimator), batch(6, 5, 4)
    found = vmap(model, randomness="different")(x)
    assert found.shape == (6, 5, 3)
    with wn.hold_noise(model, seed=0):
        assert_close(vmap(model)(x), torch.stack([model(part) for part in x]))
    small = wn.add_weight_noise(nn.Linear(4, 3), 0.3, estimator=estimator)
    with torch.autocast("cpu", torch.bfloat16):
        output = small(torch.ones(2, 4))
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert small._parameters["weight"].grad.dtype == torch.float32
    assert small.bfloat16()(torch.ones(2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert small.to("meta")(torch.ones(2, 4, device="meta")).shape == (2, 3)


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "average"])
@pytest.mark.parametrize("estimator", PER_EXAMPLE)
def test_copies_have_it_and_stand_alone(estimator: Estimator, way: str) -> None:
    model, x = make(estimator), batch()
    if way == "average":
        averaged = torch.optim.swa_utils.AveragedModel(model)
        averaged.update_parameters(model)
        other = averaged.module
    else:
        other = copy.deepcopy(model) if way == "deepcopy" else pickle.loads(pickle.dumps(model))
    assert f"estimator='{estimator}'" in repr(other)
    with wn.hold_noise(model, seed=1), wn.hold_noise(other, seed=1):
        assert torch.equal(model(x), other(x))
    y = other(x.expand(2, 5, 4).reshape(10, 4))
    assert not torch.equal(y[:5], y[5:])  # Still noise of its own for each example.
    wn.remove_weight_noise(other)
    assert torch.equal(other(x), other(x))
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize("estimator", PER_EXAMPLE)
def test_reads_inside_are_the_parameter_and_reads_outside_a_shared_draw(
    estimator: Estimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = wn.add_weight_noise(nn.Linear(4, 3), 0.3, estimator=estimator)
    assert not torch.equal(seen(layer), seen(layer))
    read: list[Tensor] = []
    plain: Any = nn.functional.linear

    def spy(x: Tensor, weight: Tensor, *rest: Any) -> Any:
        read.append(weight)
        return plain(x, weight, *rest)

    monkeypatch.setattr(nn.functional, "linear", spy)
    layer(torch.ones(2, 4))
    assert read[0] is layer._parameters["weight"]
    assert wn.noisy_parameters(layer) == {"weight": wn.Gaussian(0.3)}


def test_keyword_input_and_functional_call() -> None:
    layer = wn.add_weight_noise(nn.Linear(4, 3), 0.3, estimator="flipout")
    assert layer(input=torch.ones(2, 4)).shape == (2, 3)
    silent = functional_call(layer, {"weight": torch.full((3, 4), 1e6)}, (torch.ones(2, 4),))
    assert bool((silent > 1e6).all())


@pytest.mark.parametrize("other", [parametrizations.weight_norm, parametrizations.spectral_norm])
@pytest.mark.parametrize("estimator", PER_EXAMPLE)
def test_on_a_weight_that_another_parametrization_makes(estimator: Estimator, other: Any) -> None:
    layer = other(nn.Linear(4, 3)).eval()
    clean = layer(torch.ones(2, 4))
    wn.add_weight_noise(layer, 0.3, estimator=estimator)
    y = layer(torch.ones(2, 4))
    assert not torch.allclose(y[0], y[1])
    y.sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    assert torch.equal(wn.remove_weight_noise(layer)(torch.ones(2, 4)), clean)


def test_beside_shared_noise_on_the_bias() -> None:
    layer, x = nn.Linear(4, 3), torch.ones(2, 4)
    wn.add_weight_noise(layer, {"bias": 0.3}, min_ndim=0)
    wn.add_weight_noise(layer, {"weight": 0.3}, when="training", estimator="flipout")
    y = layer(x)
    assert not torch.allclose(y[0], y[1])
    y = layer.eval()(x)
    assert torch.equal(y[0], y[1])
    assert not torch.equal(y, layer(x))


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.trace"
)  # As deprecated; torch has changed the class of the warning.
@pytest.mark.parametrize("estimator", PER_EXAMPLE)
def test_it_comes_off_to_the_bit(estimator: Estimator) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2))
    state = torch.get_rng_state()
    classes = [type(module) for module in model]
    wn.remove_weight_noise(wn.add_weight_noise(model, 0.1, estimator=estimator))
    assert [type(module) for module in model] == classes
    assert torch.equal(torch.get_rng_state(), state)
    assert_restores(model, 0.1)
    with pytest.raises(wn.ExportError):
        torch.jit.trace(wn.add_weight_noise(model, 0.1, estimator=estimator), torch.ones(1, 2, 4, 4))


# Errors.


class OwnForward(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input).relu()


class OwnConvolution(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        return super()._conv_forward(input, weight - weight.mean(), bias)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.LSTM(3, 4), r"'weight_ih_l0' belongs to LSTM; estimator='flipout' is for the weight of nn.Linear"),
        (nn.Embedding(3, 4), "'weight' belongs to Embedding"),
        (nn.ConvTranspose2d(2, 2, 3), "'weight' belongs to ConvTranspose2d"),
        (nn.Bilinear(2, 2, 3), "'weight' belongs to Bilinear"),
        (nn.MultiheadAttention(4, 2), "'out_proj.weight' is read by nn.MultiheadAttention"),
        (OwnForward(3, 3), "belongs to OwnForward, which has a forward of its own"),
        (OwnConvolution(2, 2, 3), "belongs to OwnConvolution, which has a forward of its own"),
    ],
)
def test_modules_that_have_no_such_noise(module: nn.Module, message: str) -> None:
    model = nn.Sequential(module, nn.Linear(3, 3))
    before = [type(part) for part in model.modules()]
    with pytest.raises(wn.UnsupportedParameterError, match=message.replace("'", "'(?:0.)?", 1)):
        wn.add_weight_noise(model, 0.1, estimator="flipout")
    assert [type(part) for part in model.modules()] == before
    assert not wn.has_weight_noise(model)


@pytest.mark.parametrize(
    ("estimator", "law", "fits"),
    [
        ("flipout", wn.DropConnect(0.1), False),
        ("flipout", wn.LogNormal(0.1), False),
        ("flipout", wn.Quantize(4), False),
        ("flipout", wn.Chain((wn.Clip(2.0), wn.Gaussian(0.1))), False),
        ("flipout", wn.Uniform(0.1), True),
        ("local", wn.Uniform(0.1), False),
        ("local", wn.QuantizationNoise(4), False),
        ("local", wn.LearnedGaussian(factorised=True), False),
        ("local", wn.DropConnect(0.1), False),
        ("local", wn.Gaussian(0.1), True),
    ],
)
def test_laws_that_have_no_such_noise(estimator: Estimator, law: wn.Noise, fits: bool) -> None:
    if fits:
        wn.add_weight_noise(nn.Linear(3, 3), law, estimator=estimator)
        return
    reason = "sign_symmetric" if estimator == "flipout" else "not independent Gaussian noise"
    with pytest.raises(wn.UnsupportedParameterError, match=reason):
        wn.add_weight_noise(nn.Linear(3, 3), law, estimator=estimator)


def test_all_problems_come_in_one_error_with_the_way_out() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Embedding(3, 3), OwnForward(3, 3))
    vars(model[0])["forward"] = model[0].forward
    with pytest.raises(wn.UnsupportedParameterError) as caught:
        wn.add_weight_noise(model, {"0.bias": 0.1, "*": 0.1}, estimator="local")
    assert len(caught.value.problems) == 4
    assert caught.value.problems[0] == (
        "Parameter '0.bias' belongs to Linear; estimator='local' is for the weight of nn.Linear, nn.Conv1d, "
        "nn.Conv2d and nn.Conv3d. Cover this one in another call with estimator='shared', or leave it clean."
    )
    with pytest.raises(ValueError, match="must be one of 'shared', 'flipout', 'local', got 'flip'"):
        wn.add_weight_noise(nn.Linear(3, 3), 0.1, estimator="flip")  # type: ignore[arg-type]
    with pytest.raises(wn.UnsupportedParameterError, match="per=5 names a dimension"):
        wn.add_weight_noise(nn.Linear(3, 3), wn.VariationalDropout(per=5), estimator="local")


def test_what_comes_on_top_of_it_is_refused() -> None:
    layer = wn.add_weight_noise(nn.Linear(3, 3), 0.1, estimator="flipout")

    class Double(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    with pytest.raises(RuntimeError, match="Double cannot come after noise with estimator='flipout'"):
        nn.utils.parametrize.register_parametrization(layer, "weight", Double())
