"""What a noise learns, freezes or holds while its weight has no numbers, or has lost them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightnoise as wn
from tests.cases import LAWS, LEARNED

SIZES = [8, 64]
STRENGTHS = [*sorted(LEARNED), "of_a_user"]


class StdOfWeight(wn.laws.Law):
    """A law of a user, whose first strength is a number of the weight."""

    def draw(self, weight: Tensor) -> Tensor:
        return torch.randn(weight.shape, dtype=weight.dtype)

    def strengths(self, weight: Tensor) -> dict[str, Tensor]:
        return {"std": weight.detach().std()}

    def apply(self, weight: Tensor, noise: Tensor, factor: float, strengths: Any = None) -> Tensor:
        return weight + (strengths or self.strengths(weight))["std"] * noise * factor


def law_of(name: str) -> Any:
    return StdOfWeight() if name == "of_a_user" else LAWS[name]


class Tied(nn.Module):
    """An embedding tied to the head, with a layer between."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(size, size)
        self.middle = nn.Linear(size, size)
        self.head = nn.Linear(size, size, bias=False)
        self.tie()

    def tie(self) -> None:
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.head(self.middle(self.table(tokens)))
        return output


def values(model: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in wn.learned_strengths(model).values()]


def same(ones: list[Tensor], others: list[Tensor]) -> bool:
    return len(ones) == len(others) > 0 and all(map(torch.equal, ones, others))


def spoilt(size: int) -> None:
    """Memory that is handed out next holds no zeros."""
    for _ in range(8):
        torch.full((size, size), 1e17)


def on_meta(size: int, law: Any) -> nn.Module:
    with torch.device("meta"):
        return wn.add_weight_noise(nn.Linear(size, size), law)


def emptied(size: int, law: Any) -> nn.Module:
    model = wn.add_weight_noise(nn.Linear(size, size), law)
    with torch.no_grad():
        for strength in wn.learned_strengths(model).values():
            strength.fill_(7.0)
    return model.to_empty(device="cpu")


def materialised(size: int, law: Any) -> nn.Module:
    model = on_meta(size, law)
    spoilt(size)
    return model.to_empty(device="cpu")


def through_meta(size: int, law: Any) -> nn.Module:
    return wn.add_weight_noise(nn.Linear(size, size), law).to("meta").to_empty(device="cpu")


MADE = [(made, assign) for made in (materialised, emptied, through_meta) for assign in (False, True)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("made", "assign"), [*MADE, (on_meta, True)])  # torch copies nothing into a meta tensor.
@pytest.mark.parametrize("name", STRENGTHS)
def test_a_plain_checkpoint_leaves_the_first_strengths(
    name: str, made: Callable[[int, Any], nn.Module], assign: bool, size: int
) -> None:
    plain, law = nn.Linear(size, size), law_of(name)
    model = made(size, law)
    with pytest.warns(wn.LearnedStrengthWarning):
        model.load_state_dict(plain.state_dict(), assign=assign)
    expected = wn.add_weight_noise(copy.deepcopy(plain), law)
    assert same(values(model), values(expected))
    x = torch.randn(3, size)
    with wn.hold_noise(model, seed=1), wn.hold_noise(expected, seed=1):
        assert torch.equal(model(x), expected(x))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", STRENGTHS)
def test_a_noisy_checkpoint_brings_its_own(name: str, assign: bool, size: int) -> None:
    source = wn.add_weight_noise(nn.Linear(size, size), law_of(name))
    with torch.no_grad():
        for strength in wn.learned_strengths(source).values():
            strength.mul_(1.5)
    model = materialised(size, law_of(name))
    model.load_state_dict(source.state_dict(), assign=assign)
    assert same(values(model), values(source))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", sorted(LEARNED))
def test_emptied_modules_are_initialised_as_torch_does_it(name: str, size: int) -> None:
    model = materialised(size, law_of(name))
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    expected = nn.Linear(size, size)
    with wn.no_noise(model), torch.no_grad():  # Some laws look at the weight.
        expected.weight.copy_(model.get_parameter("weight"))
    assert same(values(model), values(wn.add_weight_noise(expected, law_of(name))))


@pytest.mark.parametrize("size", SIZES)
def test_what_was_learned_survives_another_device_and_dtype(size: int) -> None:
    model = wn.add_weight_noise(nn.Linear(size, size), wn.LearnedGaussian(0.5))
    for strength in wn.learned_strengths(model).values():
        nn.init.constant_(strength, 0.25)
    model.to(torch.bfloat16).double().float()
    with pytest.warns(wn.LearnedStrengthWarning, match="they keep the values they have"):
        model.load_state_dict(nn.Linear(size, size).state_dict())
    assert all(bool((value == 0.25).all()) for value in values(model))


# Tied uses learn one strength, whatever replaces the Parameters.


def through_assign(model: Tied) -> Tied:
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    return model


def from_meta(model: Tied) -> Tied:
    with torch.device("meta"):
        fresh = wn.add_weight_noise(Tied(model.middle.in_features), wn.LearnedGaussian(0.5))
    fresh.load_state_dict(model.state_dict(), assign=True)
    return fresh


def overwritten(model: Tied) -> Tied:
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return model.double()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


REPLACED: dict[str, Callable[[Tied], Tied]] = {
    "to": lambda model: model.double(),
    "overwritten": overwritten,
    "to_empty": lambda model: model.to_empty(device="cpu"),
    "meta": lambda model: model.to("meta").to_empty(device="cpu"),
    "assign": through_assign,
    "from_meta": from_meta,
    "copy": copy.deepcopy,
    "copy_and_meta": lambda model: copy.deepcopy(model).to("meta").to_empty(device="cpu"),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", REPLACED)
def test_tied_uses_share_what_they_learn(how: str, size: int) -> None:
    model = wn.add_weight_noise(Tied(size), wn.LearnedGaussian(0.5))
    replaced = REPLACED[how](model)
    replaced.tie()
    table, _, head = wn.learned_strengths(replaced).values()
    assert table is head
    assert len([name for name, _ in replaced.named_parameters() if name.endswith(".std")]) == 2
    replaced(torch.arange(4)).sum().backward()
    assert table.grad is not None


@pytest.mark.parametrize("size", SIZES)
def test_a_checkpoint_holds_shared_strengths_once(size: int, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="needs the extra 'safetensors'")
    model = wn.add_weight_noise(Tied(size), wn.LearnedGaussian(0.5))
    for strength in wn.learned_strengths(model).values():
        nn.init.constant_(strength, 0.25)
    state = model.state_dict()
    assert [name for name in state if name.endswith(".std")] == [
        "table.parametrizations.weight.0.std",
        "middle.parametrizations.weight.0.std",
    ]
    del state["head.weight"]  # As `save_pretrained` does, which knows the names of tied weights.
    safetensors.save_file(state, tmp_path / "model.safetensors")
    fresh = wn.add_weight_noise(Tied(size), wn.LearnedGaussian(0.5))
    loaded = fresh.load_state_dict(safetensors.load_file(tmp_path / "model.safetensors"), strict=False)
    assert loaded.missing_keys == ["head.weight"]
    assert same(values(fresh), values(model))
    whole = wn.add_weight_noise(Tied(size), wn.LearnedGaussian(0.5))
    whole.load_state_dict(model.state_dict())
    assert same(values(whole), values(model))
    alone = wn.add_weight_noise(nn.Linear(size, size, bias=False), wn.LearnedGaussian(0.5))
    alone.load_state_dict(model.head.state_dict())
    assert same(values(alone), values(model)[:1])
    with pytest.warns(wn.LearnedStrengthWarning):
        fresh.load_state_dict(Tied(size).state_dict())
    with pytest.warns(wn.LearnedStrengthWarning):
        fresh.head.load_state_dict(Tied(size).head.state_dict())


# Chips and holds.


@pytest.mark.parametrize("size", SIZES)
def test_a_chip_is_not_frozen_on_meta(size: int) -> None:
    law, plain = wn.StuckAt(0.2, chip=3), nn.Linear(size, size)
    expected = wn.add_weight_noise(copy.deepcopy(plain), law)
    model = on_meta(size, law)
    model(torch.randn(2, size, device="meta"))  # To see shapes.
    for each in (model, wn.add_weight_noise(copy.deepcopy(plain), law).to("meta")):
        each.to_empty(device="cpu").load_state_dict(plain.state_dict())
        x = torch.randn(3, size)
        assert torch.equal(each(x), expected(x))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", [None, 1])
def test_a_hold_that_is_opened_on_meta_holds_numbers_later(seed: int | None, size: int) -> None:
    plain, x = nn.Linear(size, size), torch.randn(3, size)
    expected = wn.add_weight_noise(copy.deepcopy(plain), 0.1)
    model = on_meta(size, wn.Gaussian(0.1))
    with wn.hold_noise(model, seed=seed):
        model(torch.randn(2, size, device="meta"))
        model.to_empty(device="cpu").load_state_dict(plain.state_dict())
        state = torch.get_rng_state()
        found = model(x)
        assert torch.equal(found, model(x))
        assert torch.equal(torch.get_rng_state(), state)
    if seed is not None:
        with wn.hold_noise(expected, seed=seed):
            assert torch.equal(found, expected(x))
