"""What once had noise is freed with its last user, and a model that shares modules is walked in linear time."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import weightnoise as wn

SIZES = [8, 64]  # From 2048 numbers on the C engine draws.


class Hung:
    """An object that hangs on a class."""


def plain(size: int) -> nn.Module:
    return nn.Linear(size, size)


def users_class(size: int) -> nn.Module:
    class Own(nn.Linear):
        hung = Hung()

    return Own(size, size)


STACKED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}
MAKERS: dict[str, Callable[[int], nn.Module]] = {
    "linear": plain,
    "class of a user": users_class,
    **{name: lambda size, put=put: put(nn.Linear(size, size)) for name, put in STACKED.items()},
    **{f"{name} on a user's": lambda size, put=put: put(users_class(size)) for name, put in STACKED.items()},
}


def stays(model: nn.Module) -> nn.Module:
    return model


def deep_copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def removed(model: nn.Module) -> nn.Module:
    return wn.remove_weight_noise(model)


def copied_and_removed(model: nn.Module) -> nn.Module:
    return wn.remove_weight_noise(copy.deepcopy(model))


def added_again(model: nn.Module) -> nn.Module:
    return wn.add_weight_noise(wn.remove_weight_noise(model), 0.2)


LIVES = [stays, deep_copied, removed, copied_and_removed, added_again]


def watched(model: nn.Module) -> list[weakref.ref[Any]]:
    classes = [cls for cls in type(model).__mro__ if not cls.__module__.startswith("torch.nn.modules")]
    mortal = [cls for cls in classes if cls not in (object, nn.Module)]
    hung = [vars(cls)["hung"] for cls in mortal if "hung" in vars(cls)]
    return [weakref.ref(thing) for thing in (model, *mortal, *hung)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("live", LIVES)
@pytest.mark.parametrize("name", MAKERS)
def test_module_classes_and_what_hangs_on_them_are_freed(
    name: str, live: Callable[[nn.Module], nn.Module], size: int
) -> None:
    model = MAKERS[name](size)
    references = watched(model)
    wn.add_weight_noise(model, 0.1)
    references += watched(model)
    other = live(model)
    references += watched(other)
    with wn.no_noise(other):
        other(torch.ones(1, size)).sum().backward()
    other(torch.ones(1, size)).sum().backward()
    del model, other
    gc.collect()
    alive = [reference() for reference in references if reference() is not None]
    assert not alive


@pytest.mark.parametrize("name", ["linear", "spectral_norm", "orthogonal"])  # torch pickles no weight_norm
def test_pickled_modules_are_freed(name: str) -> None:
    model = wn.add_weight_noise(MAKERS[name](8), 0.1)
    loaded = pickle.loads(pickle.dumps(model))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=False)
    references = [*watched(model), *watched(loaded), *watched(saved)]
    del model, loaded, saved
    gc.collect()
    assert not [reference() for reference in references if reference() is not None]


def test_equal_blocks_share_one_class_while_somebody_uses_it() -> None:
    blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(12))
    wn.add_weight_noise(blocks, 0.1)
    assert len({type(block) for block in blocks}) == 1
    shared = type(blocks[0])
    wn.remove_weight_noise(blocks[1])
    gc.collect()
    assert type(wn.add_weight_noise(blocks[1], 0.1)) is shared
    assert type(pickle.loads(pickle.dumps(blocks))[3]) is shared
    assert type(copy.deepcopy(blocks)[3]) is shared


def chain(depth: int) -> nn.Module:
    module: nn.Module = nn.Linear(8, 8)
    for _ in range(depth):
        module = nn.ModuleDict({"a": module, "b": module})
    return module


def test_a_chain_of_modules_shared_twice_is_walked_in_linear_time() -> None:
    model = wn.add_weight_noise(chain(60), 0.1)  # Along every path it would take longer than the universe.
    assert len(wn.noisy_parameters(model)) == 1
    with wn.no_noise(model), wn.hold_noise(model, seed=0), wn.scale_noise(model, 2.0):
        pass
    wn.add_activation_noise(model, {nn.Linear: 0.1})
    assert len(wn.noisy_activations(model)) == 1
    wn.plan_weight_noise(wn.remove_weight_noise(model), 0.1)


def test_a_shared_module_goes_by_all_its_names_as_long_as_there_are_a_thousand_at_most() -> None:
    for name in ("a." * 8, "b." * 8, "a.b." * 4):
        model = chain(8)  # 256 names.
        assert len(wn.noisy_parameters(wn.add_weight_noise(model, {f"{name}weight": 0.1}))) == 1
    assert list(wn.noisy_parameters(wn.add_weight_noise(chain(12), 0.1))) == ["a." * 12 + "weight"]
    wn.add_weight_noise(chain(12), {"a.*": 0.1})


@pytest.mark.parametrize("key", ["b." * 12 + "weight", "b.*"])
def test_a_pattern_that_may_fit_a_name_beyond_is_refused(key: str) -> None:
    for spec in ({key: 0.1}, {key: None, "*": 0.1}):
        with pytest.raises(wn.NoMatchError, match=r"none of the first 1000 names of 'a\.a\."):
            wn.add_weight_noise(chain(12), spec)
