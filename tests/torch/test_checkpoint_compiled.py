"""Compiled code in an eager checkpoint: its recomputation sees what held in the forward."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import weightnoise as wn
from weightnoise._torch.checkpoints import waiting_checkpoints

# The warnings are torch's own, while it compiles.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),
]

SIZES = (8, 64)
NOTHING = nullcontext()


@contextmanager
def both(first: Any, second: Any) -> Iterator[None]:
    with first, second:
        yield


Around = Callable[[nn.Module], Any]
AROUND: dict[str, Around] = {
    "nothing": lambda model: nullcontext(),
    "no_noise": wn.no_noise,
    "scale_noise": lambda model: wn.scale_noise(model, 3.0),
    "hold_noise": lambda model: wn.hold_noise(model, seed=5),
    "force_noise": wn.force_noise,
    "two": lambda model: both(wn.scale_noise(model, 0.5), wn.hold_noise(model, seed=7)),
}


class Block(nn.Module):
    """The gradient of its weight shows the weight: it is used twice."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.lin = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(self.lin(x).tanh())


def block(size: int, kind: str = "weights") -> Block:
    torch.manual_seed(0)
    model = Block(size)
    if kind == "weights":
        wn.add_weight_noise(model, wn.Gaussian(0.3))
    else:
        wn.add_activation_noise(model, {"lin": wn.Gaussian(0.3)})
    return model


def gradient(
    model: nn.Module,
    code: Callable[[Tensor], Tensor],
    reentrant: bool | None,
    around: Any = NOTHING,
    between: Callable[[], object] = lambda: None,
    around_backward: Any = NOTHING,
) -> Tensor:
    """That of one step; without a checkpoint where ``reentrant`` is None."""
    weight = next(parameter for name, parameter in model.named_parameters() if "weight" in name)
    weight.grad = None
    x = torch.linspace(-1, 1, 2 * weight.shape[1]).view(2, -1).requires_grad_()
    torch.manual_seed(3)
    with around:
        y = code(x) if reentrant is None else checkpoint(code, x, use_reentrant=reentrant)
    between()
    with around_backward:
        y.square().sum().backward()
    assert weight.grad is not None
    return weight.grad.clone()


def agree(model: Block, forward: str, backward: str, reentrant: bool, backend: str = "inductor") -> None:
    code = torch.compile(model, backend=backend)
    steps = [
        gradient(model, code, kind, AROUND[forward](model), around_backward=AROUND[backward](model))
        for kind in (None, reentrant, reentrant)
    ]
    assert_close(steps[1], steps[0])
    assert_close(steps[2], steps[0])


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("forward", AROUND)
@pytest.mark.parametrize("kind", ["weights", "activations"])
@pytest.mark.parametrize("size", SIZES)
def test_contexts_of_the_forward_hold_again(size: int, kind: str, forward: str, reentrant: bool) -> None:
    agree(block(size, kind), forward, "nothing", reentrant, "aot_eager")  # The other tests are by inductor.


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("backward", ["no_noise", "two"])
@pytest.mark.parametrize("forward", ["nothing", "scale_noise"])
def test_contexts_of_the_backward_do_not(forward: str, backward: str, reentrant: bool) -> None:
    agree(block(64), forward, backward, reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_a_schedule_that_goes_on(size: int, reentrant: bool) -> None:
    model = block(size)
    scheduler = wn.NoiseScheduler(model, lambda step: 1.0 / (1 + step))
    code = torch.compile(model)
    wanted = gradient(model, code, None)
    assert_close(gradient(model, code, reentrant, between=scheduler.step), wanted)
    stepped = gradient(model, code, reentrant)
    assert_close(stepped, gradient(model, code, None))  # The step has not been lost.
    assert not torch.allclose(stepped, wanted)


@pytest.mark.parametrize("reentrant", [False, True])
def test_noise_that_came_in_between(reentrant: bool) -> None:
    torch.manual_seed(0)
    model = Block(64)
    code = torch.compile(model)
    other = block(8)
    gradient(other, torch.compile(other), reentrant)  # So that some noise has been compiled.
    wanted = gradient(model, code, None)
    found = gradient(model, code, reentrant, between=lambda: wn.add_weight_noise(model, wn.Gaussian(0.3)))
    assert_close(found, wanted)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["weights", "activations"])
def test_noise_that_was_removed_in_between(kind: str, reentrant: bool) -> None:
    model = block(64, kind)
    remove = {"weights": wn.remove_weight_noise, "activations": wn.remove_activation_noise}[kind]
    with pytest.raises(RuntimeError, match=r"The noise on '.*' was removed between a checkpointed forward"):
        gradient(model, torch.compile(model), reentrant, between=lambda: remove(model))


@pytest.mark.parametrize("reentrant", [False, True])
def test_two_regions_under_different_contexts(reentrant: bool) -> None:
    """Each is put back on its own, and what is open in the end is what was."""
    model = block(64)
    code = torch.compile(model)
    outputs: list[Tensor] = []

    def step(run: Callable[[Tensor], Tensor]) -> Tensor:
        model.zero_grad()
        torch.manual_seed(3)
        x = torch.linspace(-1, 1, 128).view(2, -1).requires_grad_()
        with wn.scale_noise(model, 2.0):
            x = run(x)
        with wn.no_noise(model):
            x = run(x)
        x = run(x)
        with wn.scale_noise(model, 0.5):
            x.square().sum().backward()
            halved = code(torch.ones(1, 64))
        outputs.append(halved.detach())
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    wanted = step(code)
    for _ in range(2):
        assert_close(step(lambda x: checkpoint(code, x, use_reentrant=reentrant)), wanted)
    assert_close(outputs[1], outputs[0])
    assert_close(outputs[2], outputs[0])


@pytest.mark.parametrize("reentrant", [False, True])
def test_contexts_and_regions_within_a_region(reentrant: bool) -> None:
    model = block(64)
    code = torch.compile(model)

    def inside(x: Tensor) -> Tensor:
        with wn.scale_noise(model, 2.0):
            x = checkpoint(code, x, use_reentrant=reentrant) if nested else code(x)
        return code(x)

    nested = False
    wanted = gradient(model, inside, None, AROUND["scale_noise"](model))
    nested = True
    found = gradient(model, inside, reentrant, AROUND["scale_noise"](model), around_backward=wn.no_noise(model))
    assert_close(found, wanted)


def test_regions_that_are_gone_cost_nothing() -> None:
    model = block(64)
    code = torch.compile(model)
    for reentrant in (False, True):
        gradient(model, code, reentrant)
    gc.collect()
    assert waiting_checkpoints() == []
    looks: list[object] = []

    def look(*kinds: object) -> list[object]:
        looks.append(kinds)
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "get_referrers", look)
        with wn.no_noise(model), wn.scale_noise(model, 2.0):
            code(torch.ones(2, 64))
    assert looks == []
