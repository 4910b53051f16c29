"""Training loops: autocast and scalers, accumulation, closures, clipping, optimizers, averages, hooks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.testing import assert_close

import weightnoise as wn
from tests.cases import CASES, kinds_of_noise
from tests.helpers import captured
from tests.reference import held_weights, plain_copy_with

X = torch.linspace(-1.0, 1.0, 32).reshape(8, 4)
Y = torch.linspace(1.0, -1.0, 24).reshape(8, 3)

KINDS = kinds_of_noise(0.2)


def make(kind: str = "weights") -> nn.Module:
    return KINDS[kind](CASES["mlp"].model())


def loss_of(model: nn.Module, x: Tensor = X, y: Tensor = Y) -> Tensor:
    return nn.functional.mse_loss(model(x).float(), y, reduction="sum")


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_draws_at_every_forward_and_keeps_what_is_trained_in_float32(
    kind: str, dtype: torch.dtype
) -> None:
    model = make(kind)
    with torch.autocast("cpu", dtype):  # One region, whose cache of converted weights must not hold a draw.
        first, second = model(X), model(X)
        with wn.no_noise(model):
            clean = model(X)
        third = model(X)
        with wn.no_noise(model):
            assert torch.equal(model(X), clean)
    assert first.dtype == dtype
    assert len({output.float().sum().item() for output in (first, second, clean, third)}) == 4
    first.float().sum().backward()
    assert {grad.dtype for grad in gradients(model)} == {torch.float32}
    with wn.no_noise(model):
        assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gradients_are_those_of_a_copy_that_holds_the_noisy_weights(dtype: torch.dtype) -> None:
    model = make()
    plain = plain_copy_with(model, held_weights(model, seed=0))
    with torch.autocast("cpu", dtype):
        with wn.hold_noise(model, seed=0):
            loss = loss_of(model)
        expected = loss_of(plain)
    loss.backward()
    expected.backward()
    assert torch.equal(loss, expected)
    for found, gradient in zip(gradients(model), gradients(plain), strict=True):
        assert torch.equal(found, gradient)


def test_a_grad_scaler_unscales_steps_and_skips() -> None:
    model = make()
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with wn.hold_noise(model, seed=0):
        loss_of(model).backward()
        expected = gradients(model)
        optimizer.zero_grad()
        scaler.scale(loss_of(model)).backward()
        scaler.unscale_(optimizer)
    for found, gradient in zip(gradients(model), expected, strict=True):
        assert_close(found, gradient)
    scaler.step(optimizer)
    scaler.update()
    before = [p.detach().clone() for p in parameters]
    optimizer.zero_grad()
    scaler.scale(loss_of(model) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 512.0
    assert all(torch.equal(p, value) for p, value in zip(parameters, before, strict=True))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert not torch.equal(model(X), model(X))


@pytest.mark.parametrize("kind", ["weights", "local"])
def test_accumulated_gradients_under_a_hold_are_those_of_the_whole_batch(kind: str) -> None:
    model = wn.add_weight_noise(CASES["mlp"].model(), 0.2) if kind == "weights" else make(kind)
    with wn.hold_noise(model, seed=0):
        loss_of(model).backward()
        whole = gradients(model)
        model.zero_grad()
        for x, y in zip(X.split(2), Y.split(2), strict=True):
            loss_of(model, x, y).backward()
    if kind == "weights":
        for found, expected in zip(gradients(model), whole, strict=True):
            assert_close(found, expected)
    else:  # The noise of an example goes by its place in the batch, so four batches of two share it.
        assert not torch.allclose(gradients(model)[0], whole[0])


def test_accumulated_gradients_are_the_sum_over_the_draws_of_the_parts() -> None:
    model = make()
    expected = []
    for part, (x, y) in enumerate(zip(X.split(4), Y.split(4), strict=True)):
        torch.manual_seed(part)
        model.zero_grad()
        loss_of(model, x, y).backward()
        expected.append(gradients(model))
    model.zero_grad()
    for part, (x, y) in enumerate(zip(X.split(4), Y.split(4), strict=True)):
        torch.manual_seed(part)
        loss_of(model, x, y).backward()
    for found, first, second in zip(gradients(model), *expected, strict=True):
        assert_close(found, first + second)


def test_lbfgs_with_a_held_draw_finds_the_weights_that_are_best_with_that_noise() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 2, dtype=torch.float64)
    model = wn.add_weight_noise(nn.Linear(3, 2, bias=False).double(), 0.3)
    weight = next(model.parameters())
    optimizer = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe", max_iter=50)

    def closure() -> float:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss.item()

    with wn.hold_noise(model, seed=0):
        noise = (model.weight - weight).detach()
        optimizer.step(closure)
    best = torch.linalg.lstsq(x, y).solution.T
    assert noise.abs().max() > 0.1
    assert_close(weight.detach() + noise, best, rtol=1e-5, atol=1e-5)


def test_clipped_gradients() -> None:
    model = make()
    loss_of(model).backward()
    before = gradients(model)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    assert_close(norm, torch.cat([grad.flatten() for grad in before]).norm())
    assert norm > 0.5
    assert_close(torch.cat([grad.flatten() for grad in gradients(model)]).norm(), torch.tensor(0.5))
    torch.nn.utils.clip_grad_value_(model.parameters(), 1e-3)
    assert max(grad.abs().max().item() for grad in gradients(model)) == pytest.approx(1e-3)


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_foreach_and_fused_optimizers_step_as_the_loop_does(kind: Any, options: dict[str, bool]) -> None:
    def trained(**options: bool) -> list[nn.Parameter]:
        model = make()
        parameters = list(model.parameters())
        optimizer = kind(parameters, lr=0.05, **options)
        torch.manual_seed(1)
        for _ in range(4):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
        assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
        return parameters

    started = list(CASES["mlp"].model().parameters())
    for found, expected, start in zip(trained(**options), trained(foreach=False), started, strict=True):
        assert_close(found, expected)
        assert not torch.allclose(found, start)


def test_an_optimizer_that_steps_in_the_backward() -> None:
    model, reference = make(), make()
    together = torch.optim.SGD(reference.parameters(), lr=0.05)
    for parameter in model.parameters():
        optimizer = torch.optim.SGD([parameter], lr=0.05)

        def step(parameter: Tensor, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.step()
            optimizer.zero_grad()

        parameter.register_post_accumulate_grad_hook(step)
    for seed in range(3):
        torch.manual_seed(seed)
        loss_of(model).backward()
        torch.manual_seed(seed)
        loss_of(reference).backward()
        together.step()
        together.zero_grad()
    for found, expected in zip(model.parameters(), reference.parameters(), strict=True):
        assert_close(found, expected)


def test_hooks_on_the_parameters_see_and_change_their_gradient() -> None:
    model = make()
    with wn.hold_noise(model, seed=0):
        loss_of(model).backward()
        expected = gradients(model)
        model.zero_grad()
        for parameter in model.parameters():
            parameter.register_hook(lambda grad: 2 * grad)
        loss_of(model).backward()
    for found, gradient in zip(gradients(model), expected, strict=True):
        assert_close(found, 2 * gradient)


@pytest.mark.parametrize("law", [wn.Gaussian(0.2), wn.Gaussian(0.2, relative_to="absmax")])
def test_a_step_between_forward_and_backward_leaves_the_gradient_of_the_forward(law: wn.Noise) -> None:
    # A plain Linear raises here, since the backward needs the weight that the step has changed.
    model = wn.add_weight_noise(CASES["mlp"].model(), law)
    with wn.hold_noise(model, seed=0):
        loss_of(model).backward()
        expected = gradients(model)
        model.zero_grad()
        loss = loss_of(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    loss.backward()
    for found, gradient in zip(gradients(model), expected, strict=True):
        assert_close(found, gradient)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_averages_are_those_of_the_clean_weights(decay: float | None) -> None:
    model = make()
    options: Any = {} if decay is None else {"multi_avg_fn": get_ema_multi_avg_fn(decay)}
    average = AveragedModel(model, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    seen: list[list[Tensor]] = []
    for _ in range(3):
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        seen.append([p.detach().clone() for p in model.parameters()])
    expected = seen[0]
    for count, values in enumerate(seen[1:], 1):
        weight = 1 - decay if decay is not None else 1 / (count + 1)
        expected = [old + weight * (new - old) for old, new in zip(expected, values, strict=True)]
    for found, mean in zip(average.parameters(), expected, strict=True):
        assert_close(found, mean)
    with wn.no_noise(average):
        assert torch.equal(average(X), average(X))
        assert not torch.equal(model(X), model(X))


def test_update_bn_follows_the_context_that_it_runs_in() -> None:
    model = wn.add_weight_noise(CASES["conv"].model(), 0.5)
    average, batches = AveragedModel(model), [CASES["conv"].batch(), CASES["conv"].batch() + 1]
    plain = wn.remove_weight_noise(copy.deepcopy(average))
    update_bn(batches, plain)
    with wn.no_noise(average):
        update_bn(batches, average)
    for found, expected in zip(average.buffers(), plain.buffers(), strict=True):
        assert torch.equal(found, expected)
    update_bn(batches, average)
    found = dict(average.named_buffers())["module.1.running_mean"]
    assert not torch.allclose(found, dict(plain.named_buffers())["module.1.running_mean"])


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
@pytest.mark.parametrize(
    "context",
    [
        deterministic,
        torch.autograd.graph.save_on_cpu,
        lambda: torch.autograd.set_detect_anomaly(True),
        torch.autograd.graph.allow_mutation_on_saved_tensors,
    ],
    ids=["deterministic", "saved on the CPU", "anomalies", "mutation"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_modes_of_autograd_change_nothing(kind: str, context: Any) -> None:
    model = make(kind)
    torch.manual_seed(1)
    loss_of(model).backward()
    expected = gradients(model)
    model.zero_grad()
    torch.manual_seed(1)
    with context():
        loss_of(model).backward()
    for found, gradient in zip(gradients(model), expected, strict=True):
        assert torch.equal(found, gradient)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs and streams need a GPU")


@needs_cuda
def test_a_cuda_graph_draws_at_every_replay() -> None:
    model = make().cuda()
    x = X.cuda()
    graph, output = captured(model, x)
    graph.replay()
    first = output.clone()
    graph.replay()
    assert not torch.equal(output, first)


@needs_cuda
def test_two_cuda_streams_use_a_held_draw() -> None:
    model = make().cuda()
    x, outputs = X.cuda(), []
    with wn.hold_noise(model, seed=0):
        expected = model(x)
        torch.cuda.synchronize()
        for stream in (torch.cuda.Stream(), torch.cuda.Stream()):
            with torch.cuda.stream(stream):
                outputs.append(model(x))
        torch.cuda.synchronize()
    assert all(torch.equal(output, expected) for output in outputs)
