"""With gradients off, a held draw is made into a noisy weight once, and again when anything changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import weightnoise as wn
from tests.cases import LAWS
from weightnoise._noise import draws
from weightnoise._noise import held as holding

SIZES = (8, 64)
OURS = [name for name in LAWS if not name.startswith("custom")]


def layer(size: int, law: Any, **options: Any) -> nn.Linear:
    torch.manual_seed(0)
    return wn.add_weight_noise(nn.Linear(size, size, bias=False), law, **options)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the parameters whose noisy weight is made, one for each time."""
    names: list[str] = []
    apply = vars(holding)["apply_draw"]

    def counted(noise: Any, *args: Any) -> Tensor:
        names.append(noise.name)
        return apply(noise, *args)

    monkeypatch.setattr(holding, "apply_draw", counted)
    return names


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", OURS)
def test_it_is_what_it_is_with_gradients(name: str, size: int) -> None:
    model = layer(size, LAWS[name])
    x = torch.eye(size)
    with wn.hold_noise(model, seed=3):
        expected = model(x)
        with torch.no_grad():
            found = [model(x) for _ in range(3)]
        with torch.inference_mode():
            found.append(model(x))
        found.append(model(x))
    for one in found:
        assert_close(one, expected, rtol=0, atol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", [None, 3])
def test_it_is_made_once(made: list[str], seed: int | None, size: int) -> None:
    model = layer(size, wn.Gaussian(0.1))
    x = torch.randn(2, size)
    with torch.no_grad(), wn.hold_noise(model, seed=seed) as held:
        for _ in range(3):
            model(x)
        assert made == ["weight"]
        held.reset()
        model(x)
        model(x)
        assert made == ["weight", "weight"]


@torch.no_grad()
def _in_place(model: nn.Linear) -> None:
    weight: Any = model._parameters["weight"]
    weight.add_(1.0)


def _fused_step(model: nn.Linear) -> None:
    weight: Any = model._parameters["weight"]
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=0.5, fused=True).step()
    weight.grad = None


def _load(model: nn.Linear) -> None:
    model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()})


def _replace(model: nn.Linear) -> None:
    model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()}, assign=True)


def _edit_the_noisy_one(model: nn.Linear) -> None:
    with torch.no_grad():
        nn.Sequential(Edits(model))(torch.zeros(()))


class Edits(nn.Module):
    """Edits the noisy weight that it reads."""

    def __init__(self, model: nn.Linear) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.weight.mul_(2.0)


CHANGES: dict[str, Callable[[nn.Linear], Any]] = {
    "in place": _in_place,
    "fused step": _fused_step,
    "load": _load,
    "assign": _replace,
    "clip": lambda model: wn.clip_weights(model, low=-0.1, high=0.1),
    "double": lambda model: model.double().float(),
    "noisy one": _edit_the_noisy_one,
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "law", [wn.Gaussian(0.1), wn.Gaussian(0.1, relative_to="absmax")], ids=["absolute", "absmax"]
)
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change: str, law: wn.Gaussian, size: int) -> None:
    model, x = layer(size, law), torch.eye(size)
    with wn.hold_noise(model, seed=3):
        with torch.no_grad():
            model(x)
        CHANGES[change](model)
        with torch.no_grad():
            found = model(x)
        expected = model(x).detach()
    assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("size", SIZES)
def test_strength_factor_and_schedule_are_seen(size: int) -> None:
    model, x = layer(size, wn.ParametricNoise(0.1)), torch.eye(size)
    scheduler = wn.NoiseScheduler(model, lambda step: 1.0 + step)
    clean = wn.noisy_parameters(model) and model(x) * 0
    with torch.no_grad(), wn.hold_noise(model, seed=3):
        with wn.no_noise(model):
            clean = model(x)
        once = model(x) - clean
        with wn.scale_noise(model, 2.0):
            assert_close(model(x) - clean, 2 * once)
        scheduler.step()
        assert_close(model(x) - clean, 2 * once)
        for strength in wn.learned_strengths(model).values():
            strength.mul_(3.0)
        assert_close(model(x) - clean, 6 * once)


@pytest.mark.parametrize("size", SIZES)
def test_it_is_gone_with_the_hold(size: int) -> None:
    model, x = layer(size, wn.Gaussian(0.1)), torch.randn(2, size)
    control = model.parametrizations.weight[0].control
    with torch.no_grad(), wn.hold_noise(model, seed=3):
        held = control.held
        model(x)
        assert len(held.made) == 1
    assert control.held is None


def test_a_law_of_a_user_is_applied_each_time() -> None:
    class Grows:
        size = 0.0

        def draw(self, weight: Tensor) -> None:
            return None

        def apply(self, weight: Tensor, noise: None, factor: float) -> Tensor:
            return weight + factor * self.size

    law = Grows()
    model, x = layer(8, [law, wn.Gaussian(0.0)]), torch.eye(8)
    with torch.no_grad(), wn.hold_noise(model, seed=3):
        before = model(x)
        law.size = 1.0
        assert_close(model(x), before + 1)


@pytest.mark.parametrize("rows", [20, 400])
def test_embeddings_and_recurrent_layers(made: list[str], rows: int) -> None:
    model = wn.add_weight_noise(nn.Sequential(nn.Embedding(rows, 32, padding_idx=1), nn.LSTM(32, 32)), 0.1)
    tokens = torch.tensor([[1, 2, 3]])
    with wn.hold_noise(model, seed=1):
        expected = model(tokens)[0].detach()
        made.clear()
        with torch.no_grad():
            for _ in range(3):
                assert_close(
                    model(tokens)[0], expected, rtol=0, atol=1e-6
                )  # Without gradients another kernel may run.
    assert sorted(set(made)) == sorted(made)


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
@pytest.mark.parametrize("size", SIZES)
def test_compiled_code_takes_the_draw_that_eager_code_has_made_a_weight_of(size: int) -> None:
    model, x = layer(size, wn.Gaussian(0.1)), torch.eye(size)
    code = torch.compile(model, fullgraph=True, backend="aot_eager")
    with wn.hold_noise(model, seed=3):
        with torch.no_grad():
            expected = model(x)
            assert_close(code(x), expected)
        assert_close(code(x), expected)


@pytest.mark.parametrize("size", SIZES)
def test_a_read_at_rest_sees_contexts_laws_and_the_mode(size: int) -> None:
    model, x = layer(size, wn.Gaussian(0.1), when="training"), torch.eye(size)
    with torch.no_grad(), wn.hold_noise(model, seed=3) as held:
        first = [model(x) for _ in range(3)][-1]
        with wn.no_noise(model):
            clean = model(x)
        assert_close(model(x), first, rtol=0, atol=0)
        assert_close(model.eval()(x), clean, rtol=0, atol=0)
        assert_close(model.train()(x), first, rtol=0, atol=0)
        with wn.hold_noise(model, seed=4):
            other = [model(x) for _ in range(2)][-1]
        assert not torch.equal(other, first)
        held.advance()
        moved = [model(x) for _ in range(2)][-1]
        assert not torch.equal(moved, first)
        model.parametrizations.weight[0].law = wn.Gaussian(0.2)
        assert_close(model(x) - clean, 2 * (moved - clean))
    with torch.no_grad():
        assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize("size", SIZES)
def test_a_hold_that_closes_while_a_read_is_made_leaves_nothing_at_rest(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = layer(size, wn.Gaussian(0.1)), torch.eye(size)
    hold = wn.hold_noise(model, seed=3)
    apply = draws.apply_draw

    def closes(*args: Any) -> Tensor:
        hold.__exit__(None, None, None)  # As another thread might.
        return apply(*args)

    hold.__enter__()
    monkeypatch.setattr(holding, "apply_draw", closes)
    with torch.no_grad():
        once = model(x)
        monkeypatch.undo()
        assert not torch.equal(model(x), once)


class Twice(nn.Linear):
    """Reads its weight before and after it turns gradients on."""

    def forward(self, x: Tensor) -> Tensor:
        first = nn.functional.linear(x, self.weight)
        with torch.enable_grad():
            return first + nn.functional.linear(x, self.weight)


LAYERS: dict[str, tuple[Callable[[int], nn.Module], Callable[[int], Tensor]]] = {
    "linear": (lambda n: nn.Linear(n, n), lambda n: torch.randn(3, n)),
    "subclass": (lambda n: Twice(n, n), lambda n: torch.randn(3, n)),
    "conv1d": (lambda n: nn.Conv1d(n, n, 3, padding=1, padding_mode="circular"), lambda n: torch.randn(2, n, 5)),
    "conv2d": (lambda n: nn.Conv2d(n, n, 3, groups=2, stride=2, bias=False), lambda n: torch.randn(2, n, 5, 5)),
    "conv3d": (lambda n: nn.Conv3d(n, n, 1), lambda n: torch.randn(2, n, 2, 2, 2)),
    "transposed": (lambda n: nn.ConvTranspose1d(n, n, 3), lambda n: torch.randn(2, n, 5)),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("min_ndim", [1, 2], ids=["bias too", "weight"])
@pytest.mark.parametrize("kind", LAYERS)
def test_layers_whose_weight_is_at_rest(kind: str, min_ndim: int, size: int) -> None:
    make, inputs = LAYERS[kind]
    x = inputs(size)
    model: Any = wn.add_weight_noise(make(size), 0.1, min_ndim=min_ndim)
    with wn.hold_noise(model, seed=3):
        expected = model(x).detach()
        with torch.no_grad():
            for _ in range(3):
                assert_close(model(x), expected, rtol=0, atol=1e-6)
                assert_close(model(input=x) if kind != "subclass" else model(x=x), expected, rtol=0, atol=1e-6)
            model._parameters["weight"].data = model._parameters["weight"].data * 2
            found = model(x)
        assert_close(found, model(x).detach(), rtol=0, atol=1e-6)
        assert not torch.allclose(found, expected)
        if kind == "subclass":
            with torch.no_grad():
                output = model(x)
            output.sum().backward()
            assert model._parameters["weight"].grad.any()


@pytest.mark.parametrize("size", SIZES)
def test_a_weight_at_rest_is_not_taken_where_something_else_is_read(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = layer(size, wn.Gaussian(0.1)), torch.eye(size)
    with torch.no_grad(), wn.hold_noise(model, seed=3):
        expected = model(x)
        assert_close(model(x), expected, rtol=0, atol=0)
        vars(model)["weight"] = torch.zeros(size, size)  # As TensorDict does it.
        noise = model(x)
        assert_close(noise + model._parameters["weight"].T, expected, rtol=0, atol=1e-6)
        del vars(model)["weight"]
        assert_close(model(x), expected, rtol=0, atol=0)
        with monkeypatch.context() as patched:
            patched.setattr(nn.Linear, "forward", lambda self, x: self.weight.new_zeros(()))
            assert model(x) == 0
        with monkeypatch.context() as patched:
            patched.setattr(nn.functional, "linear", lambda x, weight, bias=None: weight)
            assert_close(model(x).T, expected, rtol=0, atol=0)
        torch.nn.utils.parametrize.register_parametrization(model, "weight", Doubled())
        assert_close(model(x), 2 * expected)
        assert_close(model(x), 2 * expected)


class Doubled(nn.Module):
    """Twice a tensor."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight
