"""Classes that look into others, resist being subclassed or assigned to, or are made by another metaclass."""

from __future__ import annotations

import abc
import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import weightnoise as wn
from weightnoise.testing import assert_restores


def test_a_wrapper_with_a_delegating_getattr() -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.own = nn.Parameter(torch.randn(2, 2))

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("inner"), name)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.inner(x) @ self.own
            return output

    model = Wrapper(nn.Linear(3, 2))
    assert_restores(model, 0.1)
    wn.add_weight_noise(model, {"inner.weight": 0.1})
    wn.add_weight_noise(model, {"own": 0.1})
    assert "weight" not in vars(Wrapper)
    assert not torch.equal(model(torch.ones(1, 3)), model(torch.ones(1, 3)))
    wn.remove_weight_noise(model)
    assert type(model) is Wrapper


def test_classes_that_resist_leave_the_model_as_it_was() -> None:
    class NoParametrizations(nn.Linear):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "parametrizations":
                raise RuntimeError("no parametrizations")
            super().__setattr__(name, value)

    class NoSubclasses(nn.Linear):
        def __init_subclass__(cls) -> None:
            raise RuntimeError("no subclasses")

    for resisting, text in ((NoParametrizations, "no parametrizations"), (NoSubclasses, "no subclasses")):
        model = nn.Sequential(nn.Linear(2, 2), resisting(2, 2))
        before = [(type(m), *m._parameters.items()) for m in model.modules()]
        with pytest.raises(RuntimeError, match=text):
            wn.add_weight_noise(model, 0.1)
        assert repr([(type(m), *m._parameters.items()) for m in model.modules()]) == repr(before)
        assert not wn.has_weight_noise(model)
        assert "parametrizations" not in model[0]._modules


class Lockable(nn.Linear):
    """Takes no assignments once it is locked, as a frozen configuration would."""

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("locked"):
            raise RuntimeError("locked")
        super().__setattr__(name, value)


def test_a_locked_module_is_left_as_it_was() -> None:
    model = Lockable(3, 2)
    weight = model.weight
    model.__dict__["locked"] = True
    with pytest.raises(RuntimeError, match="locked"):
        wn.add_weight_noise(model, 0.1)
    assert type(model) is Lockable
    assert list(model._parameters) == ["weight", "bias"]
    assert model.weight is weight
    assert not model._modules


def test_noise_comes_off_a_module_that_was_locked_meanwhile() -> None:
    model = wn.add_weight_noise(Lockable(3, 2), 0.1)
    model.__dict__["locked"] = True
    wn.remove_weight_noise(model)
    assert type(model) is Lockable
    assert torch.equal(model.weight, model.weight)


def test_abstract_classes_metaclasses_and_slots() -> None:
    class Meta(type):
        pass

    class Abstract(nn.Linear, abc.ABC):
        pass

    class WithMeta(nn.Linear, metaclass=Meta):
        pass

    class WithSlots(nn.Linear):
        __slots__ = ("extra",)

    for cls in (Abstract, WithMeta, WithSlots):
        model = cls(3, 2)
        assert_restores(model, 0.1)
        wn.add_weight_noise(model, 0.1)
        assert isinstance(type(model), type(cls))
        assert not torch.equal(model(torch.ones(1, 3)), model(torch.ones(1, 3)))


def test_a_model_made_from_the_class_of_a_noisy_one_is_plain() -> None:
    model = wn.add_weight_noise(nn.Linear(3, 2), 0.1)
    other = type(model)(3, 2)
    assert torch.equal(other(torch.ones(1, 3)), other(torch.ones(1, 3)))
    assert not wn.has_weight_noise(other)
    assert isinstance(other.weight, nn.Parameter)
    copy.deepcopy(wn.add_weight_noise(other, 0.1))


@pytest.mark.parametrize("way", [copy.deepcopy, copy.copy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("base", [nn.Linear, nn.LSTM])
def test_a_plain_model_made_from_the_class_of_a_noisy_one_can_be_copied(base: Any, way: Any) -> None:
    model = type(wn.add_weight_noise(base(3, 2), 0.1))(3, 2)
    other = way(model)
    assert not wn.has_weight_noise(other)
    assert all(torch.equal(*pair) for pair in zip(other.parameters(), model.parameters(), strict=True))
    assert other(torch.ones(1, 1, 3)) is not None


def test_noise_that_torch_transfers_to_another_module_comes_off_again() -> None:
    model, other = wn.add_weight_noise(nn.Linear(3, 2), 0.1), nn.Linear(3, 2)
    parametrize.transfer_parametrizations_and_params(model, other)
    assert wn.has_weight_noise(other)
    wn.remove_weight_noise(other)
    assert type(other) is nn.Linear
    assert isinstance(other.weight, nn.Parameter)
    assert sorted(other.state_dict()) == ["bias", "weight"]
    assert wn.has_weight_noise(model)
