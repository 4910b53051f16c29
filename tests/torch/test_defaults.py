"""Nothing follows torch's defaults, which are for the tensors of the user: the same bits under any of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightnoise as wn
from tests.cases import LAWS, single_loss
from weightnoise import testing
from weightnoise.laws import Noise

DEFAULTS = ["float64", "bfloat16", "float16", "meta"]
SIZES = [8, 64]  # On both sides of what the engine draws.
Law = Noise | list[Noise]


@contextmanager
def default(name: str) -> Iterator[None]:
    """Dtype or device of what names none."""
    before = torch.get_default_dtype()
    try:
        if name != "meta":
            torch.set_default_dtype(getattr(torch, name))
        with torch.device("meta") if name == "meta" else nullcontext():
            yield
    finally:
        torch.set_default_dtype(before)


def layer(size: int, dtype: torch.dtype, **options: Any) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(size, size, dtype=dtype, device="cpu", **options)


def batch(size: int, dtype: torch.dtype) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(4, size, dtype=dtype, device="cpu")


def trained(model: nn.Module, inputs: Tensor) -> list[Any]:
    """What comes out of two forwards, and all gradients."""
    model.zero_grad()
    torch.manual_seed(2)
    outputs = [single_loss(model, inputs), single_loss(model, inputs)]
    sum(outputs, outputs[0] * 0).backward()
    return [*(output.detach() for output in outputs), *(parameter.grad for parameter in model.parameters())]


def noisy(law: Law, size: int, dtype: torch.dtype, **options: Any) -> nn.Module:
    model = wn.add_weight_noise(layer(size, dtype), law, **options)
    torch.manual_seed(3)
    return model


def plainly(law: Law, size: int, dtype: torch.dtype) -> Any:
    return trained(noisy(law, size, dtype), batch(size, dtype))


def recomputed(law: Law, size: int, dtype: torch.dtype) -> Any:
    return trained(noisy(law, size, dtype, memory="recompute"), batch(size, dtype))


def flipout(law: Law, size: int, dtype: torch.dtype) -> Any:
    model = noisy(law, size, dtype, estimator="flipout")
    with wn.hold_noise(model, seed=4):
        held = trained(model, batch(size, dtype))
    with wn.hold_noise(model):
        return held, trained(model, batch(size, dtype))


def local(law: Law, size: int, dtype: torch.dtype) -> Any:
    model = noisy(law, size, dtype, estimator="local")
    with wn.hold_noise(model, seed=4):
        return trained(model, batch(size, dtype))


def in_contexts(law: Law, size: int, dtype: torch.dtype) -> Any:
    model, inputs, found = noisy(law, size, dtype), batch(size, dtype), []
    with wn.hold_noise(model, seed=5, sign=-1):
        found.append(trained(model, inputs))
    with wn.hold_noise(model), wn.scale_noise(model, 0.5):
        found.append(trained(model, inputs))
    with wn.no_noise(model):
        found.append(trained(model, inputs))
    return found


def scheduled(law: Law, size: int, dtype: torch.dtype) -> Any:
    model = noisy(law, size, dtype)
    scheduler = wn.NoiseScheduler(model, lambda step: 0.1 * step)
    scheduler.step()
    return trained(model, batch(size, dtype)), scheduler.state_dict()


def on_activations(law: Law, size: int, dtype: torch.dtype) -> Any:
    model = wn.add_activation_noise(layer(size, dtype), law)
    return trained(model, batch(size, dtype))


def evaluated(law: Law, size: int, dtype: torch.dtype) -> Any:
    model, inputs = noisy(law, size, dtype), batch(size, dtype)

    def metric(model: nn.Module) -> float:
        return single_loss(model, inputs).item()

    report = wn.evaluate_robustness(model, metric, levels=[0.0, 0.5], draws=2, progress=False)
    return report.to_dict()["curves"], wn.RobustnessReport.from_json(report.to_json()).mean


def inspected(law: Law, size: int, dtype: torch.dtype) -> Any:
    model = noisy(law, size, dtype)
    plan = str(wn.plan_weight_noise(layer(size, dtype), law))
    wn.clip_weights(model, 1.5)
    wn.remove_weight_noise(model, bake=True)
    return plan, list(model.parameters())


def learned(law: Law, size: int, dtype: torch.dtype) -> Any:
    model = noisy(law, size, dtype)
    strengths = list(wn.learned_strengths(model).values())
    return strengths, wn.kl_divergence(model).detach()


TASKS: dict[str, Callable[[Law, int, torch.dtype], Any]] = {
    "trained": plainly,
    "recomputed": recomputed,
    "flipout": flipout,
    "local": local,
    "in contexts": in_contexts,
    "scheduled": scheduled,
    "on activations": on_activations,
    "evaluated": evaluated,
    "inspected": inspected,
    "learned": learned,
}


def outcome(task: str, law: str, size: int, dtype: torch.dtype) -> Any:
    """What a task gives, or its error where a law is not for it."""
    try:
        return TASKS[task](LAWS[law], size, dtype)
    except (wn.WeightNoiseError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


expected_outcome = functools.cache(outcome)


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for mine, other in zip(found, expected, strict=True):
            assert_same(mine, other)
    elif isinstance(expected, dict):
        assert_same(list(found.items()), list(expected.items()))
    elif isinstance(expected, Tensor):
        assert (found.dtype, found.device) == (expected.dtype, expected.device)
        assert torch.equal(found, expected)
    else:
        assert found == expected


def dtypes(name: str) -> list[torch.dtype]:
    return [torch.float32] if name == "meta" else [torch.float32, getattr(torch, name)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", DEFAULTS)
def test_the_same_bits_under_any_default(name: str, law: str, size: int) -> None:
    for dtype in dtypes(name):
        for task in TASKS:
            expected = expected_outcome(task, law, size, dtype)
            with default(name):
                assert_same(outcome(task, law, size, dtype), expected)


def looked_up(layer: Any, held: bool) -> Any:
    wn.add_weight_noise(layer, wn.Gaussian(0.1, relative_to="absmax"))
    with wn.hold_noise(layer, seed=1) if held else nullcontext():
        return trained(layer, torch.tensor([[3, 7, 7, 0], [499, 3, 250, 1]], dtype=torch.int64, device="cpu"))


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("width", [2, 40])
@pytest.mark.parametrize("make", [nn.Embedding, nn.EmbeddingBag], ids=["embedding", "bag"])
@pytest.mark.parametrize("name", DEFAULTS)
def test_embeddings(name: str, make: Any, width: int, held: bool) -> None:
    def work() -> Any:
        torch.manual_seed(0)
        return looked_up(make(500, width, dtype=torch.float32, device="cpu"), held)

    expected = work()
    with default(name):
        assert_same(work(), expected)


@pytest.mark.compile
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("law", ["gaussian", "drop_connect", "quantize_stochastic"])
@pytest.mark.parametrize("name", DEFAULTS)
def test_compiled_under_a_schedule(name: str, law: str, size: int) -> None:
    def work() -> Any:
        torch._dynamo.reset()
        model = noisy(LAWS[law], size, torch.float32)
        scheduler = wn.NoiseScheduler(model, lambda step: 0.1 * step)
        scheduler.step()
        return trained(torch.compile(model, backend="aot_eager"), batch(size, torch.float32))  # type: ignore[arg-type]

    expected = work()
    with default(name):
        assert_same(work(), expected)


@pytest.mark.parametrize("name", DEFAULTS)
def test_draws_evaluated_together(name: str) -> None:
    def work() -> Any:
        model, inputs = noisy(wn.Gaussian(0.1), 64, torch.float32), batch(64, torch.float32)
        metric = lambda model: single_loss(model, inputs)  # noqa: E731
        options: dict[str, Any] = {"levels": [0.0, 0.5], "draws": 3, "progress": False}
        return wn.evaluate_robustness(model, metric, vectorize=True, **options).to_dict()["curves"]

    expected = work()
    with default(name):
        assert_same(work(), expected)


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_tests_a_law(name: str) -> None:
    with default(name):
        testing.check_law(wn.Gaussian(0.1, relative_to="absmax"))
        model = noisy(wn.Gaussian(0.1), 8, torch.float64)
        testing.check_gradients(model, single_loss, batch(8, torch.float64))
        testing.assert_unbiased(wn.Gaussian(0.1), batch(8, torch.float64))


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("name", ["float64", "bfloat16"])
def test_an_ordinary_training_loop(name: str, make: Any) -> None:
    with default(name):
        x = torch.randn(64, 64)
        y = x @ torch.randn(64, 8) / 8
        model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8))
        wn.add_weight_noise(model, wn.Gaussian(0.01, relative_to="absmax"))
        optimizer, losses = make(model.parameters(), lr=1e-2), []
        for _ in range(100):
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < 0.9 * losses[0]
        assert {parameter.dtype for parameter in model.parameters()} == {torch.get_default_dtype()}
