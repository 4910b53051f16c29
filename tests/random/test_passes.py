"""Laws in one pass in C: the numbers of torch's operations to the last places, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import weightnoise as wn
from weightnoise._random import passes as _passes
from weightnoise._random import philox as _engine

pytestmark = pytest.mark.skipif(_engine.engine() == "torch", reason="built without a C compiler, or switched off")

LEVELS = range(_engine._LEVEL + 1)  # The instruction sets of this machine.


def applied(
    law: int, constants: Sequence[float], weight: Tensor, drawn: Tensor, learned: Tensor, level: int
) -> Tensor:
    out = torch.empty_like(weight)
    pointers = [one.data_ptr() for one in (out, weight, drawn, learned)]
    library: Any = _engine._LIBRARY
    library.weightnoise_apply(law, *pointers, _passes._Constants(*constants), weight.numel(), level, 1)
    return out


FROM_END_TO_END = torch.cat([torch.linspace(-120, 120, 200_001), torch.tensor([math.inf, -math.inf, math.nan])])


@pytest.mark.parametrize("level", LEVELS)
def test_exponential_and_softplus_are_what_they_are_in_double_precision(level: int) -> None:
    x, zero, one = FROM_END_TO_END, torch.zeros(200_004), torch.ones(200_004)
    found = {
        torch.exp: applied(_passes.LOG_NORMAL, (1.0, 0.0), one, x, zero, level),
        torch.nn.functional.softplus: applied(_passes.SOFTPLUS, (1.0,), zero, one, x, level),
    }
    for function, values in found.items():
        expected = function(x.double())
        # Below 1.2e-38 numbers have fewer bits; 1.5e-45 is one unit there. Beyond 3.4e38 they are infinite.
        expected[expected > torch.finfo(torch.float32).max] = math.inf
        assert_close(values.double(), expected, rtol=3e-7, atol=1.5e-45, equal_nan=True)


LAWS: dict[str, Any] = {
    "log-normal": wn.LogNormal(0.3),
    "log-normal exact": wn.LogNormal(0.3, gradient="exact"),
    "variational": wn.Variational(-2.0),
    "variational dropout": wn.VariationalDropout(0.2),
    "kingma": wn.VariationalDropout(0.5, approximation="kingma"),
    "salt and pepper": wn.SaltAndPepper(0.3),
    "salt and pepper, straight through": wn.SaltAndPepper(0.3, gradient="straight-through"),
    "salt and pepper, levels": wn.SaltAndPepper(0.3, levels=(-0.5, 0.5)),
    "salt and pepper, rare": wn.SaltAndPepper(2e-4),
}
each_law = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
SIZE = 256  # Beyond the size from which a law with gradients of its own takes one pass.


class Calls:
    """Counts passes; torch's operations in their place where that is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.torch = 0, False
        plain: tuple[Callable[..., Any], ...] = (_passes.can_apply, _passes.apply)

        def apply(*args: Any) -> Any:
            self.count += 1
            return plain[1](*args)

        monkeypatch.setattr(_passes, "can_apply", lambda *args: not self.torch and plain[0](*args))
        monkeypatch.setattr(_passes, "apply", apply)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def parts(law: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    weight = torch.randn(SIZE, SIZE, requires_grad=True)
    with torch.no_grad():
        weight[0, :9] = weight.max()  # A level that several weights are at.
        learned = {name: value + torch.randn_like(value) for name, value in law.strengths(weight).items()}
    return weight, law.draw(weight), {name: value.requires_grad_() for name, value in learned.items()}


@each_law
@pytest.mark.parametrize("factor", [1.0, -0.5, 0.0])
def test_values_and_gradients_are_those_of_torchs_operations(law: Any, factor: float, calls: Calls) -> None:
    found: list[list[Any]] = []
    weight, noise, learned = parts(law)
    inputs, direction = [weight, *learned.values()], torch.randn(SIZE, SIZE)
    for calls.torch in (False, True):
        values = law.apply(weight, noise, factor, *([learned] if learned else []))
        first = torch.autograd.grad((values * direction).sum(), inputs, create_graph=True)
        if any(one.requires_grad for one in first):
            total = sum((one.square().sum() for one in first), torch.zeros(()))
            second = torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)
        else:
            second = tuple(map(torch.zeros_like, inputs))
        found.append([values, first, second])
    assert calls.count == 1
    assert_close(found[0], found[1], rtol=2e-5, atol=2e-6)
    if isinstance(law, wn.SaltAndPepper):
        assert torch.equal(found[0][0], found[1][0])


@each_law
def test_without_a_graph(law: Any, calls: Calls) -> None:
    weight, noise, learned = parts(law)
    found = []
    for calls.torch in (False, True):
        with torch.no_grad():
            found.append(law.apply(weight, noise, 0.7, *([learned] if learned else [])))
    assert calls.count == 1
    assert_close(*found, rtol=2e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # By torch's own forward mode.
@each_law
def test_where_tensors_are_more_than_numbers(law: Any, calls: Calls) -> None:
    weight, noise, learned = parts(law)
    more = [learned] if learned else []
    expected = law.apply(weight, noise, 1.0, *more)
    before = calls.count
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(weight, torch.ones(SIZE, SIZE))
        made = torch.autograd.forward_ad.unpack_dual(law.apply(dual, noise, 1.0, *more))
    assert made.tangent is not None
    across = [{name: one.T for name, one in learned.items()}] if learned else []
    wide = [{name: one.double() for name, one in learned.items()}] if learned else []
    found = [
        made.primal,
        torch.func.vmap(lambda weight: law.apply(weight, noise, 1.0, *more))(weight[None])[0],
        law.apply(weight.double(), noise.double(), 1.0, *wide).float(),
        law.apply(weight.T, noise.T, 1.0, *across).T,
    ]
    for one in found:
        assert_close(one, expected, rtol=1e-5, atol=2e-6)
    assert calls.count == before


@pytest.mark.parametrize("law", [LAWS["variational"], LAWS["kingma"], LAWS["salt and pepper"]], ids=str)
def test_what_a_gradient_takes_may_not_change(law: Any, calls: Calls) -> None:
    weight, noise, learned = parts(law)
    values = law.apply(weight, noise, 1.0, *([learned] if learned else []))
    noise.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        values.sum().backward()
    assert calls.count == 1


def test_a_part_has_the_bits_of_the_whole() -> None:
    law, weight = wn.LogNormal(0.3), torch.randn(64, 48)
    noise = law.draw(weight)
    whole = law.apply(weight, noise, 1.0)
    for part in (slice(0, 1), slice(3, 40)):
        assert torch.equal(law.apply_part(weight[part], noise[part], 1.0, None), whole[part])
        assert torch.equal(law.apply_part(weight[:, part], noise[:, part], 1.0, None), whole[:, part])
