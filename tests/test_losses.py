"""Noise on the loss, and the penalty on gradients: exact factors, closed forms, central differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import weightnoise as wn
from tests.cases import CASES, LAWS, single_loss
from tests.reference import held_weights, plain_copy_with
from weightnoise._losses import Entry, Tensors, gradient_penalty, perturb_loss
from weightnoise._recording import record_activations


def drawn(shape: tuple[int, ...], std: float, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """The n that `perturb_loss` adds after `torch.manual_seed(seed)`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.randn(shape, dtype=dtype) * std


def phi(x: float) -> float:
    """The normal distribution function."""
    return 0.5 * math.erfc(-x / math.sqrt(2))


# perturb_loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 4)])
def test_value_and_factor_are_exact(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    loss = (torch.rand(shape, dtype=dtype) + 0.1).requires_grad_()
    n = drawn(shape, 0.3, dtype=dtype)
    torch.manual_seed(0)
    noisy = perturb_loss(loss, 0.3)
    assert torch.equal(noisy, loss + n)
    noisy.sum().backward()
    assert loss.grad is not None
    assert torch.equal(loss.grad, 1 + n / loss.detach())


@pytest.mark.parametrize("shape", [(), (7,)])
def test_relative_value_and_factor_are_exact(shape: tuple[int, ...]) -> None:
    loss = torch.rand(shape).requires_grad_()
    n = drawn(shape, 0.3)
    torch.manual_seed(0)
    noisy = perturb_loss(loss, 0.3, relative=True)
    assert torch.equal(noisy, loss * (1 + n))
    noisy.sum().backward()
    assert loss.grad is not None
    assert torch.equal(loss.grad, 1 + n)


def test_one_factor_for_every_parameter_of_a_model() -> None:
    model, x = CASES["float64"].model(), CASES["float64"].batch()
    loss = single_loss(model, x)
    clean = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    n = drawn((), 0.3, dtype=torch.float64)
    torch.manual_seed(0)
    noisy = torch.autograd.grad(perturb_loss(loss, 0.3), list(model.parameters()))
    factor = 1 + n / loss.detach()
    assert abs(factor - 1) > 0.1
    for one, other in zip(clean, noisy, strict=True):
        assert_close(other, factor * one, rtol=1e-12, atol=0)


def test_per_sample_losses_have_factors_of_their_own() -> None:
    model, x = nn.Linear(3, 1, bias=False).double(), torch.randn(5, 3, dtype=torch.float64)
    losses = model(x).square().squeeze(1)
    each = torch.stack([torch.autograd.grad(one, model.weight, retain_graph=True)[0] for one in losses])
    n = drawn((5,), 0.3, dtype=torch.float64)
    torch.manual_seed(0)
    (found,) = torch.autograd.grad(perturb_loss(losses, 0.3).mean(), model.weight)
    factors = 1 + n / losses.detach()
    assert_close(found, (factors[:, None, None] * each).mean(dim=0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("relative", [False, True])
def test_per_sample_noise_is_normal_and_independent(relative: bool) -> None:
    count, std = 40_000, 0.2
    losses = torch.full((count,), 0.5, dtype=torch.float64)
    noise = perturb_loss(losses, std, relative=relative) - losses
    z = noise / (std * 0.5 if relative else std)
    # The standard errors of the moments of a standard normal: var z = 1, var z^2 = 2, var z^3 = 15, var z^4 = 96.
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(z.pow(power).mean() - moment) < 4 * math.sqrt(variance / count), power
    assert abs((z[1:] * z[:-1]).mean()) < 4 / math.sqrt(count)


@pytest.mark.parametrize("value", [0.3, 0.1, 0.05, -0.1])
def test_probability_that_the_step_goes_uphill(value: float) -> None:
    count, std = 40_000, 0.1
    losses = torch.full((count,), value, requires_grad=True)
    perturb_loss(losses, std).sum().backward()
    assert losses.grad is not None
    p = phi(-abs(value) / std)
    flipped = (losses.grad < 0).float().mean().item()
    assert abs(flipped - p) < 4 * math.sqrt(p * (1 - p) / count)


def test_relative_form_flips_with_the_same_probability_at_every_loss() -> None:
    count, std = 40_000, 0.8
    losses = torch.logspace(-6, 2, count).requires_grad_()
    perturb_loss(losses, std, relative=True).sum().backward()
    assert losses.grad is not None
    p = phi(-1 / std)
    flipped = (losses.grad < 0).double()
    assert abs(flipped.mean().item() - p) < 4 * math.sqrt(p * (1 - p) / count)
    halves = flipped[: count // 2].mean() - flipped[count // 2 :].mean()
    assert abs(halves.item()) < 4 * math.sqrt(4 * p * (1 - p) / count)


@pytest.mark.parametrize("value", [1.0, 1e-3, 1e-6])
def test_factor_is_right_on_average_and_diverges_at_small_losses(value: float) -> None:
    count, std = 20_000, 0.1
    losses = torch.full((count,), value, dtype=torch.float64, requires_grad=True)
    perturb_loss(losses, std).sum().backward()
    assert losses.grad is not None
    spread = std / value
    assert abs(losses.grad.mean() - 1) < 4 * spread / math.sqrt(count)
    # The standard error of a standard deviation is sd / sqrt(2 n).
    assert abs(losses.grad.std() - spread) < 4 * spread / math.sqrt(2 * count)


@pytest.mark.parametrize("relative", [False, True])
def test_draw_comes_from_torchs_generator_alone(relative: bool) -> None:
    loss = torch.tensor(2.0)
    torch.manual_seed(3)
    first = perturb_loss(loss, 0.1, relative=relative)
    state = torch.get_rng_state()
    assert not torch.equal(perturb_loss(loss, 0.1, relative=relative), first)
    torch.manual_seed(3)
    assert torch.equal(perturb_loss(loss, 0.1, relative=relative), first)
    torch.manual_seed(3)
    perturb_loss(loss, 0.0, relative=relative)
    assert torch.equal(torch.get_rng_state(), state)  # The strength does not change how much is drawn.
    torch.manual_seed(3)
    torch.randn(())
    assert torch.equal(torch.get_rng_state(), state)  # One number for a scalar.


@pytest.mark.parametrize("relative", [False, True])
def test_std_zero_is_the_loss_itself_even_at_zero(relative: bool) -> None:
    losses = torch.tensor([0.0, 2.0], requires_grad=True)
    noisy = perturb_loss(losses, 0.0, relative=relative)
    assert torch.equal(noisy, losses)
    assert noisy is not losses
    noisy.sum().backward()
    assert losses.grad is not None
    assert torch.equal(losses.grad, torch.ones(2))


def test_no_graph_and_no_samples() -> None:
    with torch.no_grad():
        assert not perturb_loss(torch.ones(3), 0.1).requires_grad
    assert perturb_loss(torch.ones(0), 0.1).shape == (0,)


@pytest.mark.parametrize("std", [-0.1, math.nan, math.inf, True, "0.1", None, torch.ones(2)])
def test_impossible_std(std: object) -> None:
    with pytest.raises(ValueError, match=r"perturb_loss\(std=\.\.\.\) must be a finite number >= 0, got "):
        perturb_loss(torch.tensor(1.0), std)  # type: ignore[arg-type]


def test_impossible_relative() -> None:
    with pytest.raises(ValueError, match=r"perturb_loss\(relative=\.\.\.\) must be one of False, True, got 'yes'"):
        perturb_loss(torch.tensor(1.0), 0.1, relative="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize(
    "call", [lambda loss: perturb_loss(loss, 0.1), lambda loss: gradient_penalty(loss, [loss])]
)
def test_losses_of_other_dtypes(call: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    with pytest.raises(wn.WeightNoiseError, match=rf"\(loss\) must be of a floating-point dtype, got {dtype}\.$"):
        call(torch.ones((), dtype=dtype))


def test_losses_that_are_no_tensors() -> None:
    with pytest.raises(TypeError, match=r"^perturb_loss\(loss\) must be a tensor, got float\.$"):
        perturb_loss(0.5, 0.1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^gradient_penalty\(loss\) must be a tensor, got float\.$"):
        gradient_penalty(0.5, torch.ones(1))  # type: ignore[arg-type]


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_losses_that_are_not_finite(value: float, relative: bool) -> None:
    for loss in (torch.tensor(value), torch.tensor([1.0, value])):
        with pytest.raises(wn.WeightNoiseError, match=rf"^perturb_loss\(loss\) must be finite, got {value}\.$"):
            perturb_loss(loss, 0.1, relative=relative)


def test_losses_at_zero_have_no_factor() -> None:
    expected = (
        "perturb_loss(loss) got a loss of 0, where the factor 1 + n / L of noise with std=0.1 is not finite. "
        "Use perturb_loss(loss, std, relative=True), or leave out the losses that are 0."
    )
    for loss in (torch.tensor(0.0), torch.tensor([1.0, 0.0])):
        with pytest.raises(wn.WeightNoiseError) as caught:
            perturb_loss(loss, 0.1)
        assert str(caught.value) == expected
        assert torch.equal(perturb_loss(loss, 0.1, relative=True) == 0, loss == 0)
    with pytest.raises(wn.WeightNoiseError, match="a loss of 1e-39, where the factor"):
        perturb_loss(torch.tensor(1e-39), 10.0)  # n / L overflows float32.


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_without_fullgraph() -> None:
    def noisy(x: Tensor) -> Tensor:
        return perturb_loss(x.square().sum(), 0.1)

    x = torch.ones(3, requires_grad=True)
    found = torch.compile(noisy, backend="aot_eager")(x)
    found.backward()
    assert found != 3
    assert x.grad is not None
    assert_close(x.grad, 2 * x.detach() * found.detach() / 3)
    with pytest.raises(wn.WeightNoiseError, match="a loss of 0, "):
        torch.compile(noisy, backend="aot_eager")(torch.zeros(3))


# gradient_penalty

SMOOTH = ["gaussian", "gaussian_absmax_exact", "gaussian_std_per_channel", "gaussian_value_exact", "drop_connect"]
Penalty = Callable[[nn.Module, Tensor], Tensor]


def in_double(case: str) -> tuple[nn.Module, Tensor]:
    model, x = CASES[case].model().double(), CASES[case].batch()
    return model, x.double() if x.is_floating_point() else x


def on_clean_weights(model: nn.Module, x: Tensor) -> Tensor:
    return gradient_penalty(single_loss(model, x), dict(model.named_parameters()))


def on_noisy_weights(model: nn.Module, x: Tensor) -> Tensor:
    noisy = {name: attrgetter(name)(model) for name in wn.noisy_parameters(model)}
    with wn.no_noise(model):
        output = functional_call(model, noisy, (x,), tie_weights=False)
    loss = (output.square() + output.tanh()).mean()
    return gradient_penalty(loss, noisy)


def on_activations(model: nn.Module, x: Tensor) -> Tensor:
    with record_activations(model, "*") as recorded:
        loss = single_loss(model, x)
    return gradient_penalty(loss, recorded)


def central_differences(value: Callable[[], Tensor], parameter: Tensor, entries: Sequence[int]) -> Tensor:
    found, flat = [], parameter.detach().view(-1)
    for entry in entries:
        before, sides = flat[entry].item(), []
        for step in (1e-5, -1e-5):
            flat[entry] = before + step
            sides.append(value().item())
        flat[entry] = before
        found.append((sides[0] - sides[1]) / 2e-5)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("penalty", [on_clean_weights, on_noisy_weights, on_activations])
@pytest.mark.parametrize("law", SMOOTH)
@pytest.mark.parametrize("case", ["mlp", "conv", "lstm", "tied", "shared"])
def test_penalty_is_differentiable_at_the_draw_of_the_loss(case: str, law: str, penalty: Penalty) -> None:
    model, x = in_double(case)
    wn.add_weight_noise(model, LAWS[law])
    with wn.hold_noise(model, seed=3):
        penalty(model, x).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            entries = list(range(0, parameter.numel(), max(1, parameter.numel() // 3)))
            expected = central_differences(lambda: penalty(model, x), parameter, entries)
            # Central differences with step 1e-5 of numbers of order 1 are good to about 1e-9.
            assert_close(parameter.grad.flatten()[entries], expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("case", ["mlp", "conv", "lstm", "attention", "tied", "shared", "reads_twice"])
def test_penalty_is_that_of_a_plain_model_that_holds_the_draw(case: str) -> None:
    model, x = in_double(case)
    wn.add_weight_noise(model, 0.2)
    plain = plain_copy_with(model, held_weights(model, seed=3))
    with wn.hold_noise(model, seed=3):
        found = on_clean_weights(model, x)
    expected = on_clean_weights(plain, x)
    assert torch.equal(found, expected)
    with wn.no_noise(model):
        assert not torch.allclose(on_clean_weights(model, x), expected)
    found.backward()
    expected.backward()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


def test_penalty_draws_nothing_and_a_fresh_draw_gives_another() -> None:
    model, x = in_double("mlp")
    wn.add_weight_noise(model, 0.2)
    loss = single_loss(model, x)
    state = torch.get_rng_state()
    first = gradient_penalty(loss, model.parameters())
    assert torch.equal(gradient_penalty(loss, model.parameters()), first)
    first.backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(on_clean_weights(model, x), first)


@pytest.mark.parametrize("law", ["gaussian_absmax", "gaussian_value_exact"])
def test_noisy_and_clean_weights_differ_by_the_derivative_of_the_law(law: str) -> None:
    model, x = nn.Linear(4, 3, bias=False).double(), torch.randn(5, 4, dtype=torch.float64)
    wn.add_weight_noise(model, LAWS[law])
    with wn.hold_noise(model, seed=0):
        loss, noisy = model(x).square().mean(), held_weights(model, seed=0)["weight"]
        clean = model.state_dict()["weight"]
        (gradient,) = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        derivative = noisy / clean if law == "gaussian_value_exact" else torch.ones_like(clean)
        assert_close(on_clean_weights_of(loss, model), gradient.square().sum())
        output = on_noisy_weights_squared(model, x)
    assert_close(output, (gradient / derivative).square().sum())


def on_clean_weights_of(loss: Tensor, model: nn.Module) -> Tensor:
    return gradient_penalty(loss, model.parameters()).detach()


def on_noisy_weights_squared(model: nn.Module, x: Tensor) -> Tensor:
    noisy = {"weight": attrgetter("weight")(model)}
    with wn.no_noise(model):
        loss = functional_call(model, noisy, (x,)).square().mean()
    return gradient_penalty(loss, noisy).detach()


def test_closed_form() -> None:
    matrix = torch.randn(4, 4, dtype=torch.float64)
    hessian = matrix + matrix.T
    w = torch.randn(4, dtype=torch.float64, requires_grad=True)
    penalty = gradient_penalty(w @ hessian @ w / 2, w)
    assert_close(penalty, (hessian @ w).square().sum())
    penalty.backward()
    assert w.grad is not None
    assert_close(w.grad, 2 * hessian @ hessian @ w.detach())


def test_scaling_the_loss_squares_and_perturbing_it_squares_the_factor() -> None:
    model, x = in_double("mlp")
    loss = single_loss(model, x)
    penalty = gradient_penalty(loss, model.parameters())
    assert torch.equal(gradient_penalty(2 * loss, model.parameters()), 4 * penalty)
    noisy = perturb_loss(loss, 0.3)
    factor = noisy.detach() / loss.detach()
    assert_close(gradient_penalty(noisy, model.parameters()), factor.square() * penalty)


def test_with_a_mean_over_the_batch_the_one_on_activations_falls_as_one_over_batch() -> None:
    model, x = in_double("mlp")
    repeated = x.repeat(8, 1)
    assert_close(8 * on_activations(model, repeated), on_activations(model, x))
    assert_close(on_clean_weights(model, repeated), on_clean_weights(model, x))


def test_nobodys_grad_is_touched() -> None:
    model, x = CASES["mlp"].model(), CASES["mlp"].batch().requires_grad_()
    wn.add_weight_noise(model, 0.1)
    weight, *others = model.parameters()
    kept = weight.grad = torch.randn(weight.shape)
    before = kept.clone()
    with record_activations(model, "*") as recorded:
        loss = single_loss(model, x)
    penalty = gradient_penalty(loss, [*model.parameters(), *(one for calls in recorded.values() for one in calls)])
    assert weight.grad is kept
    assert torch.equal(kept, before)
    assert x.grad is None
    assert all(other.grad is None for other in others)
    assert all(one.is_leaf or not one.retains_grad for calls in recorded.values() for one in calls)
    (loss + penalty).backward()
    assert weight.grad is kept
    assert not torch.equal(kept, before)


def test_forms_of_one_choice_agree_and_a_tensor_counts_once() -> None:
    model, x = in_double("mlp")
    loss, parameters = single_loss(model, x), list(model.parameters())
    expected = sum(grad.square().sum() for grad in torch.autograd.grad(loss, parameters, retain_graph=True))
    named = dict(model.named_parameters())
    for form in (parameters, tuple(parameters), model.parameters(), named, {"all": parameters}, [parameters]):
        assert_close(gradient_penalty(loss, form), expected)
    for twice in (parameters * 2, {"one": parameters, "other": parameters}, {**named, "again": parameters[0]}):
        assert_close(gradient_penalty(loss, twice), expected)
    first = gradient_penalty(loss, parameters[:1])
    assert torch.equal(gradient_penalty(loss, parameters[0]), first)
    assert torch.equal(gradient_penalty(loss.reshape(1), parameters[0]), first)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_it_is_the_value_alone(context: Callable[[], torch.no_grad]) -> None:
    model, x = in_double("mlp")
    loss = single_loss(model, x)
    with context():
        penalty = gradient_penalty(loss, model.parameters())
    assert not penalty.requires_grad
    assert penalty.item() == gradient_penalty(loss, model.parameters()).item()
    loss.backward()  # The graph of the loss is still there.


def test_small_and_mixed_precision() -> None:
    low = torch.full((4,), 1e-3, dtype=torch.float16, requires_grad=True)
    high = torch.ones(2, dtype=torch.float64, requires_grad=True)
    loss = low.float().square().sum() * 0.1 + high.square().sum()
    penalty = gradient_penalty(loss, [low, high])
    assert penalty.dtype == torch.float64
    assert_close(gradient_penalty(loss, low), torch.tensor(4 * (2e-4) ** 2), rtol=2e-3, atol=0)  # float16: 2^-11.
    assert_close(penalty, torch.tensor(8.0, dtype=torch.float64))


def test_sparse_and_complex_gradients() -> None:
    embedding, tokens = nn.Embedding(5, 3), torch.tensor([1, 1, 2])
    found: list[tuple[Tensor, Tensor]] = []
    for sparse in (False, True):
        embedding.sparse, embedding.weight.grad = sparse, None
        penalty = gradient_penalty(embedding(tokens).sum(dim=1).tanh().sum(), embedding.weight)
        penalty.backward()
        assert embedding.weight.grad is not None
        found.append((penalty.detach(), embedding.weight.grad.to_dense()))
    assert_close(found[1][0], found[0][0])
    assert_close(found[1][1], found[0][1])
    z = torch.tensor([3 + 4j, 1j], requires_grad=True)
    assert gradient_penalty(z.abs().square().sum(), z).item() == pytest.approx(4 * 26)


class Checkpointed(nn.Module):
    """A network whose forward is run again in the backward."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = checkpoint(self.inner, x, use_reentrant=False)
        return output


@pytest.mark.parametrize("on_weights", [False, True])
def test_checkpointing_without_reentry_changes_nothing(on_weights: bool) -> None:
    model, x = in_double("mlp")
    wn.add_weight_noise(model, 0.2)
    found = []
    for network, pattern in ((model, "*"), (Checkpointed(model), "inner.*")):
        torch.manual_seed(5)  # Not held: the recomputation has to draw the same numbers again.
        model.zero_grad()
        with record_activations(network, pattern) as recorded:
            loss = single_loss(network, x)
            penalty = gradient_penalty(loss, network.parameters() if on_weights else recorded)
            (loss + penalty).backward()
        assert [len(calls) for calls in recorded.values()] == [1, 1, 1]
        found.append([penalty.detach(), *(parameter.grad for parameter in model.parameters())])
    for one, other in zip(*found, strict=True):
        assert_close(one, other)


def test_reentrant_checkpointing_says_what_to_do() -> None:
    model, x = CASES["mlp"].model(), CASES["mlp"].batch().requires_grad_()
    with record_activations(model, "0") as recorded:
        loss = checkpoint(model, x, use_reentrant=True).square().mean()
    with pytest.raises(wn.WeightNoiseError, match=r"Tensor '0'\[0\] needs no gradient: .*use_reentrant=True"):
        gradient_penalty(loss, recorded)
    with pytest.raises(wn.WeightNoiseError, match=r"The tensor takes no part .* pass use_reentrant=False\."):
        gradient_penalty(loss, model[0].weight)
    with pytest.raises(RuntimeError, match="use_reentrant=True"):  # torch's own.
        gradient_penalty(loss, x)


def test_fused_attention_needs_the_plain_one() -> None:
    model, x = CASES["transformer"].model(), CASES["transformer"].batch()
    with sdpa_kernel(SDPBackend.MATH):
        on_clean_weights(model, x).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# What is refused


def test_tensors_outside_of_the_loss_are_all_named() -> None:
    w = torch.ones(2, requires_grad=True)
    other = torch.ones(1, requires_grad=True)
    tensors: dict[str, Entry] = {"used": [w], "other": [w, other], "call": other.clone()}
    with pytest.raises(wn.WeightNoiseError) as caught:
        gradient_penalty(w.square().sum(), tensors)
    assert caught.value.problems == tuple(
        f"{name} takes no part in the loss, so there is no gradient to penalise. Give the very tensor that the "
        "loss was computed from (a read of a noisy `module.weight` makes another), or leave it out. Weights used "
        "inside checkpoint(use_reentrant=True) are cut off from the loss: pass use_reentrant=False."
        for name in ("Tensor 'other'[1]", "Tensor 'call'")
    )


def test_a_noisy_weight_that_is_read_again_is_not_the_one_of_the_loss() -> None:
    model = wn.add_weight_noise(nn.Linear(3, 2), 0.1)
    with wn.hold_noise(model, seed=0):
        loss = model(torch.ones(1, 3)).square().sum()
        with pytest.raises(wn.WeightNoiseError, match=r"^The tensor takes no part in the loss"):
            gradient_penalty(loss, model.weight)


def test_tensors_without_a_gradient_are_all_named() -> None:
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(wn.WeightNoiseError) as caught:
        gradient_penalty(w.square().sum(), [w, w.detach(), torch.ones(1), torch.tensor(1)])
    assert caught.value.problems == tuple(
        f"tensors[{index}] needs no gradient: it was made under torch.no_grad() (as in "
        "checkpoint(use_reentrant=True)), is detached or frozen, or holds whole numbers. Make it with gradients "
        "enabled, or leave it out."
        for index in (1, 2, 3)
    )


def losses_without_a_graph() -> Iterator[Tensor]:
    w = torch.ones(2, requires_grad=True)
    with torch.no_grad():
        yield w.sum()
    yield w.sum().detach()
    yield (w.argmax() == 0).float()


def test_losses_without_a_graph_are_refused() -> None:
    for loss in losses_without_a_graph():
        with pytest.raises(wn.WeightNoiseError) as caught:
            gradient_penalty(loss, torch.ones(2, requires_grad=True))
        assert str(caught.value) == (
            "gradient_penalty(loss) has no graph: it was computed under torch.no_grad(), is detached, or comes "
            "from an operation without a gradient, such as argmax. Compute it with gradients enabled."
        )


def test_per_sample_losses_are_refused() -> None:
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(wn.WeightNoiseError) as caught:
        gradient_penalty(w.square(), w)
    assert (
        str(caught.value) == "gradient_penalty(loss) must be one number, got shape (2,). Reduce it: loss.mean()."
    )


def test_nothing_to_penalise() -> None:
    w = torch.ones(2, requires_grad=True)
    nothing: list[Tensors] = [[], {}, iter(())]
    for empty in nothing:
        with pytest.raises(wn.WeightNoiseError, match=r"^gradient_penalty\(tensors\) is empty: there is nothing"):
            gradient_penalty(w.sum(), empty)
    with pytest.raises(
        wn.WeightNoiseError, match=r"^Tensor 'layer' is an empty list: the module has not been called"
    ):
        gradient_penalty(w.sum(), {"layer": [], "other": [w]})


def test_things_that_are_no_tensors() -> None:
    model = nn.Linear(2, 1)
    loss = model(torch.ones(1, 2)).sum()
    with pytest.raises(TypeError, match=r"^gradient_penalty: tensors\[0\]\[0\] must be a tensor, got str\.$"):
        gradient_penalty(loss, model.named_parameters())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^gradient_penalty: Tensor 'layer' must be a tensor, got Linear\.$"):
        gradient_penalty(loss, {"layer": model})  # type: ignore[arg-type]
