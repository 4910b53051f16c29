"""Outside of every forward a noisy weight is its Parameter, and what counts as a forward."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, parametrize, prune
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import weightnoise as wn
from tests.helpers import in_forward, seen

SIZES = [8, 64]  # From 2048 numbers on the C engine draws.
sizes = pytest.mark.parametrize("size", SIZES)


def noisy(model: Any) -> Any:
    return wn.add_weight_noise(model, 1.0)


def clean(model: Any, name: str = "weight") -> Any:
    return model._parameters[name]


class Own(nn.Module):
    """A weight of its own, used in methods of all kinds."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, size))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight

    def training_step(self, x: Tensor) -> Tensor:
        return x @ self.weight

    def scores(self, x: Tensor) -> Tensor:
        return x @ self.weight

    def merge(self, x: Tensor) -> Tensor:
        return self.delta(x)

    def delta(self, x: Tensor) -> Tensor:
        return x @ self.weight

    @property
    def kind(self) -> torch.dtype:
        return self.weight.dtype

    def all_scores(self, xs: list[Tensor]) -> list[Tensor]:
        return [x @ self.weight for x in xs]


class Parent(nn.Module):
    """Reads the weight of a part of it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.part = Own(size)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.part.weight


class Describes(nn.Linear):
    """Reads its weight in all that is no forward."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.weight if keep_vars else self.weight.detach()

    def extra_repr(self) -> str:
        return f"{float(self.weight.detach().double().sum()):.9f}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "shown": self.weight.detach().clone()}

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, 0.5)


class Merges(nn.Linear):
    """Merges its adapter into the weight in evaluation, as loralib does."""

    merged = False

    def __init__(self, size: int) -> None:
        super().__init__(size, size)
        self.adapter = nn.Parameter(torch.randn(size, size))

    def train(self, mode: bool = True) -> Merges:
        super().train(mode)
        if self.merged is mode:
            self.weight.data += self.adapter * (-1 if mode else 1)
            self.merged = not mode
        return self


def edits(model: Any, edit: Callable[[Any], object]) -> None:
    edit(model)
    assert not clean(model).any()


def zeroed_without_gradients(model: Any) -> None:
    with torch.no_grad():
        model.weight.mul_(0)


def zeroed_by_apply(model: Any) -> None:
    model.apply(lambda module: nn.init.zeros_(module.weight) if isinstance(module, nn.Linear) else None)


EDITS: dict[str, Callable[[Any], object]] = {
    "data": lambda model: model.weight.data.zero_(),
    "in place": zeroed_without_gradients,
    "init": lambda model: nn.init.zeros_(model.weight),
    "apply": zeroed_by_apply,
    "numpy": lambda model: model.weight.detach().numpy().fill(0),
    "copy_": lambda model: model.weight.data.copy_(torch.zeros_like(model.weight)),
}


@sizes
@pytest.mark.parametrize("edit", EDITS)
def test_edits_reach_the_parameter(edit: str, size: int) -> None:
    edits(noisy(nn.Linear(size, size)), EDITS[edit])


@sizes
def test_the_attribute_is_the_parameter_to_whoever_asks_for_it(size: int) -> None:
    model = nn.Linear(size, size)
    model.weight.multiplier = 3  # type: ignore[attr-defined]
    model = noisy(model)
    state = torch.get_rng_state()
    assert model.weight is clean(model)
    assert hasattr(model, "weight")
    assert isinstance(model.weight, nn.Parameter)
    assert model.weight.multiplier == 3  # type: ignore[attr-defined]
    assert nn.Sequential(model).get_parameter("0.weight") is clean(model)
    assert torch.equal(nn.Parameter(model.weight), clean(model))
    assert torch.equal(parameters_to_vector([model.weight]), clean(model).flatten())
    assert torch.equal(torch.get_rng_state(), state)
    other = nn.Linear(size, size)
    other.weight = model.weight
    assert other.weight is clean(model)


@sizes
def test_optimizers_clipping_and_hooks_get_the_parameter(size: int) -> None:
    model, called = noisy(nn.Linear(size, size)), list[bool]()
    optimizer = torch.optim.SGD([model.weight], lr=1.0)
    model.weight.register_hook(lambda gradient: called.append(True))
    before = clean(model).detach().clone()
    model(100 * torch.randn(2, size)).sum().backward()
    assert called
    assert model.weight.grad is not None
    clip_grad_norm_([model.weight], 0.1)
    assert clean(model).grad.norm() < 0.11
    optimizer.step()
    assert not torch.equal(clean(model), before)


@sizes
def test_a_module_describes_saves_copies_and_resets_itself_clean_inside_a_hold_too(size: int) -> None:
    model = noisy(Describes(size, size, bias=False))
    total = f"{float(clean(model).detach().double().sum()):.9f}"
    for context in (wn.scale_noise(model, 1.0), wn.hold_noise(model)):
        with context:
            assert torch.equal(model.state_dict()["weight"], clean(model))
            assert model.extra_repr() == total
            assert total in repr(model)
            assert torch.equal(copy.deepcopy(model).shown, clean(model))
    for context in (wn.scale_noise(model, 1.0), wn.hold_noise(model)):
        with context, torch.no_grad():
            clean(model).zero_()
            model.reset_parameters()
        assert (clean(model) == 0.5).all()


@sizes
@pytest.mark.parametrize("held", [True, False])
def test_what_merges_in_evaluation_merges_the_parameter(size: int, held: bool) -> None:
    model = noisy(Merges(size))
    before = clean(model).detach().clone()
    with wn.hold_noise(model) if held else wn.scale_noise(model, 1.0):
        for _ in range(3):
            model.eval()
            torch.testing.assert_close(clean(model).detach(), before + clean(model, "adapter").detach())
            model.train()
    torch.testing.assert_close(clean(model).detach(), before, atol=1e-5, rtol=0)


@sizes
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.filterwarnings("ignore")  # torch.ao is deprecated.
def test_conversions_read_the_parameter(size: int, inside: bool) -> None:
    def converted(noise: bool) -> Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(quantization.QuantStub(), nn.Linear(size, size), quantization.DeQuantStub()).eval()
        model.qconfig = quantization.default_qconfig  # type: ignore[assignment]
        model = quantization.prepare(model)
        with wn.no_noise(noisy(model) if noise else model):
            model(torch.ones(2, size))
        with wn.no_noise(*([model] if inside else [])):
            weight: Tensor = quantization.convert(model)[1].weight().dequantize()
        return weight

    assert torch.equal(converted(True), converted(False))


@sizes
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_tools_that_fold_prune_and_fuse_read_the_parameter(size: int) -> None:
    x = torch.randn(2, size)
    normed = nn.utils.weight_norm(nn.Linear(size, size))
    expected = normed(x)
    with pytest.warns(wn.LeftCleanWarning, match="'weight_g' was deleted"):
        nn.utils.remove_weight_norm(noisy(normed))
    torch.testing.assert_close(wn.remove_weight_noise(normed)(x), expected)

    pruned = prune.l1_unstructured(nn.Linear(size, size), "weight", 0.5)
    expected = pruned.weight.detach().clone()
    with pytest.warns(wn.LeftCleanWarning, match="'weight_orig' was deleted"):
        prune.remove(noisy(pruned), "weight")
    assert torch.equal(clean(pruned), expected)

    conv, norm, image = nn.Conv2d(8, size, 3).eval(), nn.BatchNorm2d(size).eval(), torch.randn(1, 8, 5, 5)
    expected = norm(conv(image))
    torch.testing.assert_close(wn.remove_weight_noise(fuse_conv_bn_eval(noisy(conv), norm))(image), expected)

    stays = noisy(nn.Linear(size, size))
    expected = clean(stays).detach().clone()
    parametrize.remove_parametrizations(stays, "weight")
    assert torch.equal(stays.weight, expected)
    average = AveragedModel(noisy(nn.Linear(size, size)))
    assert average.module.weight is clean(average.module)


def inside_a_hold(model: Any, x: Tensor) -> Tensor:
    with wn.hold_noise(model):
        return model.scores(x)


FORWARDS: dict[str, Callable[[Any, Tensor], Any]] = {
    "a call": lambda model, x: model(x),
    "forward": lambda model, x: model.forward(x),
    "training_step": lambda model, x: model.training_step(x),
    "in another module": lambda model, x: in_forward(lambda: x @ model.weight),
    "a method in another module": lambda model, x: in_forward(model.scores, x),
    "a checkpointed function": lambda model, x: checkpoint(lambda x: x @ model.weight, x, use_reentrant=False),
    "a reentrant one": lambda model, x: checkpoint(lambda x: x @ model.weight, x, use_reentrant=True),
    "a hold": inside_a_hold,
    "compiled": lambda model, x: torch.compile(lambda x: x @ model.weight, backend="eager")(x),
    "functional_call": lambda model, x: torch.func.functional_call(model, {"weight": clean(model) * 1.0}, (x,)),
}


@sizes
@pytest.mark.parametrize("forward", FORWARDS)
def test_what_counts_as_a_forward(forward: str, size: int) -> None:
    model, x = noisy(Own(size)), torch.randn(3, size, requires_grad=True)
    output = FORWARDS[forward](model, x)
    assert not torch.allclose(output, x @ clean(model), atol=1e-3)
    output.sum().backward()
    # The backward had the noisy weight of the forward.
    x_grad = x.grad
    assert x_grad is not None
    torch.testing.assert_close((x * x_grad).sum(), output.sum(), atol=1e-3, rtol=1e-4)


@sizes
def test_a_parent_that_is_called_by_its_forward_reads_noisy_weights(size: int) -> None:
    model, x = noisy(Parent(size)), torch.randn(3, size)
    for call in (model, model.forward):
        assert not torch.equal(call(x), x @ clean(model.part))


@sizes
def test_a_weight_that_another_parametrization_makes(size: int) -> None:
    model = noisy(nn.utils.parametrizations.weight_norm(nn.Linear(size, size)))
    with wn.no_noise(model):
        made = model.weight
    assert torch.equal(model.weight, made)
    assert torch.equal(model.parametrizations.weight(), made)
    assert not torch.equal(seen(model), made)
    assert not torch.equal(in_forward(model.parametrizations.weight), made)
    with wn.hold_noise(model):
        assert torch.equal(model.weight, model.weight)
        assert not torch.equal(model.weight, made)
    model.parametrizations.weight.register_forward_hook(lambda *_: None)
    model.parametrizations.weight[1].register_forward_hook(lambda *_: None)
    assert torch.equal(model.weight, made)


WARNS: dict[str, Callable[[Any, Tensor], object]] = {
    "Own.scores": lambda model, x: model.scores(x),
    "Own.all_scores": lambda model, x: model.all_scores([x]),
    "Own.delta": lambda model, x: model.delta(x),
}


@pytest.mark.parametrize("method", WARNS)
def test_a_method_that_is_no_forward_warns_once_for_each_line(method: str) -> None:
    model, x = noisy(Own(8)), torch.randn(3, 8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            WARNS[method](model, x)
    (warning,) = caught
    assert warning.category is wn.CleanReadWarning
    assert f"'weight' is read in {method}, which is no forward" in str(warning.message)
    assert "with weightnoise.hold_noise(model):" in str(warning.message)
    assert warning.filename == __file__


@pytest.mark.parametrize(
    "quiet",
    [
        lambda model, x: model.merge(x),
        lambda model, x: model.kind,
        lambda model, x: F.linear(x, model.weight),
        lambda model, x: in_forward(model.scores, x),
        lambda model, x: model.eval(),
        inside_a_hold,
    ],
)
def test_no_other_read_warns(quiet: Callable[[Any, Tensor], object]) -> None:
    quiet(noisy(Own(8)), torch.randn(3, 8))
    off = noisy(Own(8))
    with wn.no_noise(off):
        off.scores(torch.randn(3, 8))
    asleep = wn.add_weight_noise(Own(8), 0.1, when="training").eval()
    asleep.scores(torch.randn(3, 8))


def test_a_context_that_is_closed_with_its_generator_warns() -> None:
    model = noisy(nn.Linear(8, 8))

    def batches() -> Generator[int]:
        with wn.no_noise(model):
            yield from range(3)

    steps = batches()
    next(steps)
    assert seen(model) is clean(model)
    with pytest.warns(wn.AbandonedContextWarning, match="Do not yield inside a context: decorate"):
        steps.close()
    assert seen(model) is not clean(model)
    assert list(batches()) == [0, 1, 2]  # Run to its end, it has nothing to warn of.
