"""What holds for any model with noise on its weights, whoever wrote it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import weightnoise as wn
from weightnoise import testing
from weightnoise._attach.find import noises


def noise(name: str, parameter: Tensor, module: nn.Module) -> wn.Noise | None:
    """The same on all, but for what other parametrizations make: nobody can put that in by hand."""
    return wn.Gaussian(0.1) if isinstance(parameter, nn.Parameter) else None


@dataclass
class Animal:
    """A model and what to call it with.

    Attributes:
        make: makes the model; from the same random state, the same one.
        inputs: makes what it is called with, from the model's random state.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Sequence[Any], Mapping[str, Any]]]

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make()

    def noisy(self) -> nn.Module:
        return wn.add_weight_noise(self.model(), noise, min_ndim=0)


def tensors(output: Any, graph: bool = False) -> list[Tensor]:
    """All tensors of what a model puts out."""
    if isinstance(output, Tensor):
        return [output if graph else output.detach()]
    if isinstance(output, Mapping):
        output = list(output.values())
    elif hasattr(output, "__dict__"):
        output = list(vars(output).values())
    return [one for value in output for one in tensors(value, graph)] if isinstance(output, (list, tuple)) else []


def run(model: nn.Module, animal: Animal, seed: int = 1) -> list[Tensor]:
    """What the model puts out, from the same random state and for the same inputs."""
    torch.manual_seed(seed)
    args, kwargs = animal.inputs()
    torch.manual_seed(seed)
    with torch.no_grad():
        found = [one.clone() for one in tensors(model(*args, **kwargs))]
    assert found
    return found


def assert_same(ones: list[Tensor], others: list[Tensor]) -> None:
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def differ(ones: list[Tensor], others: list[Tensor]) -> bool:
    return any(not torch.equal(one, other) for one, other in zip(ones, others, strict=True))


def _class(module: nn.Module) -> object:
    cls = type(module)
    return cls.__qualname__ if parametrize.is_parametrized(module) else cls  # torch makes one for each module.


def names_and_loading(animal: Animal) -> None:
    """Names and order of all that a plain model shows; checkpoints go both ways, strictly."""
    plain, noisy = animal.model(), animal.noisy()
    assert [name for name, _ in noisy.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert [name for name, _ in noisy.named_buffers()] == [name for name, _ in plain.named_buffers()]
    before, after = plain.state_dict(), noisy.state_dict()
    assert list(before) == list(after)
    for key, value in before.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(after[key], value, rtol=0, atol=0, equal_nan=True)
    noisy.load_state_dict(before)
    plain.load_state_dict(after)


def clean_without_noise(animal: Animal) -> None:
    """Inside no_noise, and after removal, the bits, the class and the random state of the plain model."""
    plain, noisy = animal.model(), animal.noisy()
    expected, state = run(plain, animal), torch.get_rng_state()
    with wn.no_noise(noisy):
        assert_same(run(noisy, animal), expected)
        assert torch.equal(torch.get_rng_state(), state)
    plain, noisy = animal.model(), animal.noisy()
    run(noisy, animal)
    wn.remove_weight_noise(noisy)
    run(plain, animal)  # Buffers that a forward moves.
    assert_same(run(noisy, animal), run(plain, animal))
    assert [_class(one) for one in noisy.modules()] == [_class(one) for one in plain.modules()]
    assert [list(vars(one)) for one in noisy.modules()] == [list(vars(one)) for one in plain.modules()]


def held_as_by_hand(animal: Animal) -> None:
    """A held draw is the plain model with these weights in it, and takes no random number."""
    noisy, by_hand = animal.noisy(), animal.model()
    clean = run(animal.model(), animal)
    state = torch.get_rng_state()
    with wn.hold_noise(noisy, seed=3):
        own = {id(p): name for name, p in noisy.named_parameters(remove_duplicate=True)}
        target = dict(by_hand.named_parameters())
        with torch.no_grad():
            for _, owner, one in noises(noisy):
                parameter = owner._parameters[one.tensor_name]
                target[own[id(parameter)]].copy_(getattr(owner, one.tensor_name))
        held = run(noisy, animal)
        assert torch.equal(torch.get_rng_state(), state)
        baked = copy.deepcopy(noisy)
        wn.remove_weight_noise(baked, bake=True)
    # torch multiplies by a weight that takes a gradient in another order of sums, also within no_grad.
    expected = run(by_hand.requires_grad_(False), animal)
    assert_same(held, expected)
    assert_same(run(baked.requires_grad_(False), animal), expected)
    assert differ(held, clean)


def gradients(animal: Animal) -> None:
    """The gradient is the one at the held noisy weights, on the clean Parameter; in each memory mode."""
    torch.manual_seed(1)
    args, kwargs = animal.inputs()
    expected: dict[str, Tensor | None] = {}
    modes: tuple[Literal["by hand", "keep", "recompute"], ...] = ("by hand", "keep", "recompute")
    for memory in modes:
        noisy = animal.model()
        wn.add_weight_noise(noisy, noise, min_ndim=0, memory="keep" if memory == "by hand" else memory)
        with wn.hold_noise(noisy, seed=3):
            if memory == "by hand":
                wn.remove_weight_noise(noisy, bake=True)
            torch.manual_seed(1)
            found = [one for one in tensors(noisy(*args, **kwargs), graph=True) if one.requires_grad]
            loss = sum(one.nan_to_num().square().mean() for one in found)
            if not isinstance(loss, Tensor):
                return
            loss.backward()
        own = {name: one.grad for name, one in noisy.named_parameters()}
        if memory == "by hand":
            expected = own
        for name, gradient in own.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)  # Other orders of sums.


def copies(animal: Animal) -> None:
    """A copy is as noisy as the original, and has a life of its own."""
    noisy = animal.noisy()
    copied = copy.deepcopy(noisy)
    with wn.hold_noise(noisy, seed=3):
        expected = run(noisy, animal)
    with wn.hold_noise(copied, seed=3):
        assert_same(run(copied, animal), expected)
    wn.remove_weight_noise(copied)
    assert not wn.has_weight_noise(copied)
    with wn.hold_noise(noisy, seed=3):
        assert_same(run(noisy, animal), expected) if not noisy.training else run(noisy, animal)


def arrives(animal: Animal) -> None:
    """The noise on each parameter reaches the output, wherever a change of the Parameter does."""
    torch.manual_seed(1)
    args, kwargs = animal.inputs()
    testing.assert_noise_arrives(animal.noisy(), *args, **kwargs)


CHECKS = [names_and_loading, clean_without_noise, held_as_by_hand, gradients, copies, arrives]
