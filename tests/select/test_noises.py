"""The noise that keys choose: by any name of a use, by class, or an error that lists every mistake."""

from __future__ import annotations

import pytest
from torch import nn

import weightnoise as wn
from tests.cases import CASES, LanguageModel
from weightnoise._attach.find import every_noise
from weightnoise._select.noises import chosen_noises
from weightnoise._select.patterns import Key


def named(model: nn.Module, *keys: Key) -> list[str]:
    return sorted(noise.name for noise in chosen_noises(model, keys))


def mixed() -> nn.Module:
    """Noise on two weights and on the output of a module between them."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    return wn.add_activation_noise(wn.add_weight_noise(model, 0.1), {"1": 0.1})


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (("*",), ["0.weight", "1", "2.weight"]),
        (("0.*",), ["0.weight"]),
        (("0.weight", "1"), ["0.weight", "1"]),
        (("0.*", "*.weight"), ["0.weight", "2.weight"]),
        ((nn.Linear,), ["0.weight", "2.weight"]),
        ((nn.Tanh, "2*"), ["1", "2.weight"]),
    ],
)
def test_names_and_classes(keys: tuple[Key, ...], expected: list[str]) -> None:
    assert named(mixed(), *keys) == expected


@pytest.mark.parametrize("key", ["embed.*", "head.weight"])
def test_one_name_of_a_tied_parameter_is_enough(key: str) -> None:
    assert named(wn.add_weight_noise(LanguageModel(), 0.1), key) == ["embed.weight", "head.weight"]


def test_a_shared_module_goes_by_both_names() -> None:
    model = wn.add_weight_noise(CASES["shared"].model(), 0.1)
    assert chosen_noises(model, ["second.*"]) == chosen_noises(model, ["first.*"]) == every_noise(model)


def test_every_mistake_is_in_one_error() -> None:
    with pytest.raises(wn.WeightNoiseError) as error:
        chosen_noises(mixed(), ["0.wieght", 3, nn.Conv2d, "0.*"])  # type: ignore[list-item]
    said = str(error.value)
    assert "Key 3 must be a pattern of names (str) or a module class." in said
    assert "Pattern '0.wieght' matches no noise. Closest names: '0.weight', '2.weight'" in said
    assert "Class Conv2d matches no module." in said


def test_a_model_without_noise_is_left_to_the_caller() -> None:
    assert chosen_noises(nn.Linear(2, 2), ["*"]) == []
