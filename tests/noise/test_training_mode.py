"""Noise of ``when="training"`` follows the mode of the module that owns the weight, whoever has set it."""

from __future__ import annotations

import copy
import pickle
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import weightnoise as wn
from weightnoise._attach.find import noises


class Flat(nn.Module):
    """A model whose train() goes no deeper."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def train(self, mode: bool = True) -> Flat:
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


class OwnTrain(nn.Linear):
    """A layer with a train() of its own."""

    def train(self, mode: bool = True) -> OwnTrain:
        self.training = mode
        return self


def set_by_hand(module: nn.Module, mode: bool) -> None:
    module.training = mode


def own_method(module: nn.Module, mode: bool) -> None:
    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        self.training = mode
        return self

    module.train = types.MethodType(train, module)  # type: ignore[method-assign]
    module.train(mode)


def by_method(module: nn.Module, mode: bool) -> None:
    module.train(mode)


def by_attribute(module: nn.Module, mode: bool) -> None:
    object.__setattr__(module, "training", mode)


def by_dict(module: nn.Module, mode: bool) -> None:
    module.__dict__["training"] = mode


WAYS: list[Callable[[nn.Module, bool], None]] = [set_by_hand, own_method, by_method, by_attribute, by_dict]
SIZES = [8, 64]


def linear(size: int, **options: Any) -> tuple[nn.Module, Tensor]:
    layer = nn.Linear(size, size, bias=False)
    return wn.add_weight_noise(layer, 0.5, when="training", **options), torch.ones(3, size)


def embedding(size: int) -> tuple[nn.Module, Tensor]:
    table = wn.add_weight_noise(nn.Embedding(64 * size, size), 0.5, when="training")
    return table, torch.tensor([1, 2])


def lstm(size: int) -> tuple[nn.Module, Tensor]:
    return wn.add_weight_noise(nn.LSTM(size, size), 0.5, when="training"), torch.ones(2, 1, size)


def normed(size: int) -> tuple[nn.Module, Tensor]:
    layer = parametrizations.weight_norm(nn.Linear(size, size))
    return wn.add_weight_noise(layer, {"weight": 0.5}, when="training"), torch.ones(3, size)


def replaced_forward(size: int) -> tuple[nn.Module, Tensor]:
    layer = nn.Linear(size, size)
    layer.forward = types.MethodType(type(layer).forward, layer)  # type: ignore[method-assign]
    return wn.add_weight_noise(layer, 0.5, when="training"), torch.ones(3, size)


def convolution(size: int) -> tuple[nn.Module, Tensor]:
    layer = nn.Conv1d(size, size, 3)
    return wn.add_weight_noise(layer, 0.5, when="training", estimator="flipout"), torch.ones(3, size, 5)


def subclass(size: int) -> tuple[nn.Module, Tensor]:
    return wn.add_weight_noise(OwnTrain(size, size), 0.5, when="training"), torch.ones(3, size)


MODELS: dict[str, Callable[[int], tuple[nn.Module, Tensor]]] = {
    "shared": linear,
    "flipout": lambda size: linear(size, estimator="flipout"),
    "local": lambda size: linear(size, estimator="local"),
    "recompute": lambda size: linear(size, memory="recompute"),
    "embedding": embedding,
    "LSTM": lstm,
    "weight_norm": normed,
    "forward on the instance": replaced_forward,
    "convolution": convolution,
    "train() of its own": subclass,
}


def same(module: nn.Module) -> nn.Module:
    return module


def pickled(module: nn.Module) -> nn.Module:
    copied: nn.Module = pickle.loads(pickle.dumps(module))
    return copied


def saw_noise(module: nn.Module, x: Tensor) -> bool:
    first, second = (module(x) for _ in range(2))
    first, second = (out[0] if isinstance(out, tuple) else out for out in (first, second))
    return not torch.equal(first, second)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("copied", [same, copy.deepcopy, copy.copy, pickled])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_owner_says_whether_it_trains(
    make: Any, way: Callable[[nn.Module, bool], None], copied: Callable[[Any], nn.Module], size: int
) -> None:
    if (make, copied) in ((normed, pickled), (replaced_forward, copy.copy)):
        pytest.skip("torch cannot pickle weight_norm; a shallow copy has a forward that is bound to the original")
    original, x = make(size)
    module = copied(original)
    for mode in (False, True, False):
        way(module, mode)
        assert saw_noise(module, x) == mode
        assert all(noise.live() == mode for _, _, noise in noises(module))
        with wn.force_noise(module):
            assert saw_noise(module, x)
    if module is not original:
        assert saw_noise(original, x)  # A copy says nothing about the original.


@pytest.mark.parametrize("size", SIZES)
def test_a_train_that_goes_no_deeper_leaves_the_layer_as_it_is(size: int) -> None:
    layer, x = linear(size)
    model = Flat(layer)
    model.eval()
    assert layer.training
    assert saw_noise(model, x)
    layer.training = False
    model.train()
    assert not saw_noise(model, x)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_a_recomputation_has_the_mode_of_its_forward(
    way: Callable[[nn.Module, bool], None], mode: bool, use_reentrant: bool, size: int
) -> None:
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(3)
        layer, x = linear(size)
        way(layer, mode)
        x = x.clone().requires_grad_()
        torch.manual_seed(4)
        out = checkpoint(layer, x, use_reentrant=use_reentrant) if checkpointed else layer(x)
        if checkpointed:
            way(layer, not mode)
        out.square().sum().backward()
        gradients.append((x.grad, layer.weight.grad))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_the_mode_outlives_its_owner_nowhere() -> None:
    layer, _ = linear(8)
    noise = next(noise for _, _, noise in noises(layer))
    layer.training = False
    assert noise.training is False
    state = pickle.loads(pickle.dumps(noise))
    assert state.training is False
    assert state.owner is None


class SwitchesOn(nn.Module):
    """Reads its weight before noise is switched on within the forward, several times meanwhile, and after."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(size))

    def forward(self, switch: Any, x: Tensor) -> Any:
        reads: list[Tensor] = [self.matrix]
        with switch(self):
            reads += [self.matrix, self.matrix]
            x = torch.tanh(x @ self.matrix) @ self.matrix
        reads.append(self.matrix)
        with switch(self):
            reads.append(self.matrix)
            x = x @ self.matrix
        return reads, x


class Going(SwitchesOn):
    """The same as a generator."""

    def forward(self, switch: Any, x: Tensor) -> Any:
        yield super().forward(switch, x)


@contextmanager
def in_training_mode(model: nn.Module) -> Iterator[None]:
    model.train()
    yield
    model.eval()


@pytest.mark.parametrize("memory", ["keep", "recompute"])
@pytest.mark.parametrize("how", ["forward", "generator", "instance"])
@pytest.mark.parametrize("switch", [wn.force_noise, in_training_mode])
@pytest.mark.parametrize("size", [8, 64])
def test_noise_that_is_switched_on_within_a_forward_has_one_draw(
    size: int, switch: Any, how: str, memory: Any
) -> None:
    model: Any = (Going if how == "generator" else SwitchesOn)(size)
    if how == "instance":
        model.forward = model.forward
    wn.add_weight_noise(model, 0.3, when="training", memory=memory).eval()
    found = model(switch, torch.randn(3, size))
    reads, _ = next(found) if how == "generator" else found
    assert reads[0] is reads[3] is model._parameters["matrix"]
    assert not torch.equal(reads[1], reads[0])
    assert torch.equal(reads[1], reads[2])
    assert torch.equal(reads[1], reads[4])


@pytest.mark.parametrize("memory", ["keep", "recompute"])
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("switch", [wn.force_noise, in_training_mode])
@pytest.mark.parametrize("size", [8, 64])
def test_noise_that_is_switched_on_within_a_checkpointed_forward(
    size: int, switch: Any, reentrant: bool, memory: Any
) -> None:
    model = wn.add_weight_noise(SwitchesOn(size), 0.3, when="training", memory=memory).eval()
    found = []
    for way in (lambda call, x: call(x), partial(checkpoint, use_reentrant=reentrant)):
        torch.manual_seed(0)
        x = torch.randn(3, size, requires_grad=True)
        model.zero_grad()
        way(lambda x: model(switch, x)[1], x).square().sum().backward()
        found.append((x.grad, model.get_parameter("matrix").grad))
    assert_close(found[0], found[1])
