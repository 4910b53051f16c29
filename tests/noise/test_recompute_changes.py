"""memory="recompute" gives the gradient of memory="keep", or an error that names the parameter: never another."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks, save_on_cpu
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import weightnoise as wn
from tests.cases import LAWS

SIZES = (8, 64)  # torch's generator draws for the small weight, the package's own for the large one.
sizes = pytest.mark.parametrize("size", SIZES)
laws = pytest.mark.parametrize(
    "law", [wn.Gaussian(0.3), wn.Uniform(0.3), wn.LogNormal(0.3), wn.LearnedGaussian(0.3)], ids=str
)


class Reads(nn.Module):
    """Multiplies by something made of its weight, which autograd saves."""

    def __init__(self, size: int, use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, size))
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(x, self.weight)


def as_complex(weight: Tensor) -> Tensor:
    return torch.view_as_complex(weight.reshape(len(weight), -1, 2))


def edited(weight: Tensor, edit: Callable[[Tensor], Any]) -> Tensor:
    with torch.no_grad():
        edit(weight)
    return weight


# What a forward may save of a noisy weight.
USES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "itself": lambda x, w: x @ w,
    "transposed": lambda x, w: x @ w.T,
    "a part": lambda x, w: x[:, :3] @ w[1:4, ::2],
    "complex": lambda x, w: (torch.complex(x[:, ::2], x[:, 1::2]) * as_complex(w)[:3]).abs(),
    "its conjugate": lambda x, w: (torch.complex(x[:, ::2], x[:, 1::2]) * as_complex(w).conj()[:3]).abs(),
    "its negative": lambda x, w: x * as_complex(w).conj().imag[:3].repeat(1, 2),
    "other bits": lambda x, w: x * w[:3] * w.detach().view(torch.int32)[:3].bool(),
    "edited before it is saved": lambda x, w: x @ edited(w, lambda weight: weight.mul_(2)),
    "edited in a part": lambda x, w: x @ edited(w, lambda weight: weight[0].zero_()),
    "a square": lambda x, w: x @ (w * w),
    "its softmax": lambda x, w: x @ torch.softmax(w, dim=0),
    "twice": lambda x, w: (x @ w) @ w.T,
}


def found(size: int, use: Callable[[Tensor, Tensor], Tensor], memory: Any, law: Any) -> list[Tensor]:
    torch.manual_seed(0)
    model = wn.add_weight_noise(Reads(size, use), law, memory=memory)
    x = torch.randn(3, size, requires_grad=True)
    with wn.hold_noise(model, seed=1):  # Fresh draws are others for each kind of memory.
        loss = model(x).square().sum()
    return list(torch.autograd.grad(loss, [x, *model.parameters()]))


@sizes
@pytest.mark.parametrize(
    "law", [wn.Gaussian(0.3), wn.Uniform(0.3), wn.LogNormal(0.3), wn.LearnedGaussian(0.3)], ids=str
)
@pytest.mark.parametrize("use", USES)
def test_whatever_a_forward_saves(use: str, law: wn.Noise, size: int) -> None:
    assert_close(found(size, USES[use], "recompute", law), found(size, USES[use], "keep", law))


@sizes
@laws
@pytest.mark.parametrize("use", ["itself", "transposed", "a part", "its softmax", "twice"])
def test_a_fresh_draw_is_that_of_the_forward(use: str, law: wn.Noise, size: int) -> None:
    seen: list[Tensor] = []

    def look(x: Tensor, weight: Tensor) -> Tensor:
        seen.append(weight.detach().clone())
        return USES[use](x, weight)

    model = wn.add_weight_noise(Reads(size, look), law, memory="recompute")
    x = torch.randn(3, size, requires_grad=True)
    (found_here,) = torch.autograd.grad(model(x).square().sum(), x)
    (expected,) = torch.autograd.grad(USES[use](x, seen[0]).square().sum(), x)
    assert_close(found_here, expected)


def optimizer_step(model: Any) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def exchange(name: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(name):
                parameter.data = parameter.data * 2

    return change


def write(model: Any) -> None:
    with torch.no_grad():
        model._parameters["weight"].mul_(2)


def load(model: Any) -> None:
    model.load_state_dict({name: value * 2 for name, value in model.state_dict().items()})


def learned(model: Any) -> None:
    with torch.no_grad():
        for parameter in wn.learned_strengths(model).values():
            parameter.mul_(2)


# What may come between the forward and the backward, and whether it is a change of what a recipe reads.
BETWEEN: dict[str, Callable[[Any], Any]] = {
    "an optimizer step": optimizer_step,
    "a write": write,
    "a load": load,
    "the weight's data exchanged": exchange("weight"),
    "the strength's data exchanged": exchange("std"),
    "a learned strength written": learned,
    "another forward": lambda model: model(torch.ones(3, model.weight.shape[0])),
    "evaluation": lambda model: model.eval(),
    "another weight": lambda model: setattr(
        model, "weight", nn.Parameter(model._parameters["weight"].detach() * 2)
    ),
    "assigned": lambda model: model.load_state_dict(
        {name: value.clone() * 2 for name, value in model.state_dict().items()}, assign=True
    ),
    "removal": wn.remove_weight_noise,
    "off": lambda model: wn.no_noise(model).__enter__(),
    "half": lambda model: wn.scale_noise(model, 0.5).__enter__(),
    "a schedule": lambda model: wn.NoiseScheduler(model, lambda step: 0.5),
    "nothing": lambda model: None,
}


HARMLESS = {"nothing", "another forward", "evaluation", "another weight", "off", "half", "a schedule"}


@sizes
@laws
@pytest.mark.parametrize("between", BETWEEN)
def test_whatever_comes_between_forward_and_backward(between: str, law: wn.Noise, size: int) -> None:
    gradients: dict[str, list[Tensor]] = {}
    for memory in ("right", "keep", "recompute"):
        torch.manual_seed(0)
        kind: Any = "keep" if memory == "right" else memory
        model = wn.add_weight_noise(Reads(size, USES["itself"]), law, memory=kind)
        x, weight = torch.randn(3, size, requires_grad=True), model._parameters["weight"]
        assert weight is not None
        with wn.hold_noise(model, seed=0):
            loss = model(x).square().sum()
        if memory != "right":
            BETWEEN[between](model)
        try:
            gradients[memory] = list(torch.autograd.grad(loss, [x, weight]))
        except RuntimeError as error:
            ours, torchs = "Parameter 'weight'" in str(error), "modified by an inplace" in str(error)
            if not (memory == "recompute" and (ours or torchs)) and not (memory == "keep" and torchs):
                raise
    if "recompute" in gradients:
        assert_close(gradients["recompute"], gradients["right"])
    assert ("recompute" in gradients) or between not in HARMLESS


@sizes
def test_a_weight_that_was_exchanged_is_an_error_that_names_it(size: int) -> None:
    model = wn.add_weight_noise(nn.Sequential(nn.Linear(size, size)), 0.3, memory="recompute")
    loss = model(torch.ones(3, size, requires_grad=True)).sum()
    model[0]._parameters["weight"].data = torch.zeros(size, size)
    with pytest.raises(RuntimeError, match=r"Parameter '0\.weight' has been changed in place since the forward"):
        loss.backward()


@sizes
def test_a_strength_that_was_changed_is_an_error_that_names_it(size: int) -> None:
    model = wn.add_weight_noise(nn.Sequential(nn.Linear(size, size)), wn.LearnedGaussian(0.3), memory="recompute")
    loss = model(torch.ones(3, size, requires_grad=True)).sum()
    learned(model)
    with pytest.raises(RuntimeError, match=r"Parameter '0\.weight': its learned std has been changed"):
        loss.backward()


@sizes
def test_scores_that_were_changed_are_an_error(size: int) -> None:
    scores = torch.rand(size, size)
    law = wn.Protect(wn.Gaussian(0.3), 0.5, by=scores)
    model = wn.add_weight_noise(nn.Linear(size, size), law, memory="recompute")
    loss = model(torch.ones(3, size, requires_grad=True)).sum()
    scores.neg_()
    with pytest.raises(RuntimeError, match="Parameter 'weight': a tensor of its law Protect has been changed"):
        loss.backward()


def around(name: str) -> Any:
    return {"cpu": save_on_cpu(), "no hooks": disable_saved_tensors_hooks("not here")}[name]


@sizes
@pytest.mark.parametrize("name", ["cpu", "no hooks"])
@pytest.mark.parametrize("law", ["gaussian_absmax", "log_normal", "learned", "drop_connect", "protect"])
def test_hooks_around_it(law: str, name: str, size: int) -> None:
    gradients = []
    for memory in ("keep", "recompute"):
        torch.manual_seed(0)
        kind: Any = memory
        model = wn.add_weight_noise(nn.Linear(size, size), LAWS[law], memory=kind)
        x = torch.randn(3, size, requires_grad=True)
        with around(name), wn.hold_noise(model, seed=1):
            loss = model(x).square().sum()
        gradients.append(list(torch.autograd.grad(loss, [x, *model.parameters()], allow_unused=True)))
    assert_close(*gradients)


@sizes
def test_a_graph_that_is_used_twice(size: int) -> None:
    model = wn.add_weight_noise(nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, 2)), 0.3)
    again = wn.add_weight_noise(wn.remove_weight_noise(copy.deepcopy(model)), 0.3, memory="recompute")
    x, gradients = torch.randn(3, size, requires_grad=True), []
    for one in (model, again):
        with wn.hold_noise(one, seed=1):
            loss = one(x).square().sum()
        first = torch.autograd.grad(loss, [x, *one.parameters()], create_graph=True)
        penalty = sum(grad.square().sum() for grad in first)
        assert isinstance(penalty, Tensor)
        gradients.append([*first, *torch.autograd.grad(penalty, [x, *one.parameters()], allow_unused=True)])
    assert_close(*gradients)


@sizes
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:A saved_tensors_hooks context:FutureWarning")
def test_within_a_checkpoint(use_reentrant: bool, size: int) -> None:
    gradients = []
    for memory in ("keep", "recompute"):
        torch.manual_seed(0)
        kind: Any = memory
        model = wn.add_weight_noise(Reads(size, USES["edited in a part"]), 0.3, memory=kind)
        x = torch.randn(3, size, requires_grad=True)
        with wn.hold_noise(model, seed=1):
            loss = checkpoint(model, x, use_reentrant=use_reentrant).square().sum()
        loss.backward()
        gradients.append([x.grad, model._parameters["weight"].grad])
    assert_close(*gradients)
