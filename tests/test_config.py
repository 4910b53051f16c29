"""Specs and laws as plain data, there and back through JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import weightnoise as wn
from tests.cases import LAWS, LanguageModel, shrink
from weightnoise.laws._spec import as_law


def there_and_back(spec: Any) -> Any:
    return wn.spec_from_config(json.loads(json.dumps(wn.spec_to_config(spec))), allow=[shrink])


@dataclass(frozen=True)
class Own:
    """A law of a user's own."""

    size: float = 1.0

    def draw(self, weight: Tensor) -> Tensor:
        return torch.ones_like(weight)

    def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
        return weight + factor * self.size * noise


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_every_law_comes_back(law: Any) -> None:
    assert as_law(there_and_back(law)) == as_law(law)


ACTIVATIONS = [
    wn.SaltAndPepper(0.1, levels=(0.0, 1.0)),
    wn.NEFTune(7.0, mask=shrink),
    [wn.Clip(2.0), wn.CurrentNoise(3.0, converter="external")],
]


@pytest.mark.parametrize("law", ACTIVATIONS, ids=["salt and pepper", "embeddings", "currents"])
def test_laws_of_activations_come_back_too(law: Any) -> None:
    assert as_law(there_and_back(law)) == as_law(law)


@pytest.mark.parametrize(
    "spec",
    [
        0.1,
        {"encoder.*": wn.Gaussian(0.02, relative_to="absmax"), nn.LSTM: 0.05, "head.weight": None},
        {LanguageModel: [wn.Clip(2.0), wn.Protect(wn.Quantize(8), 0.1), 0.01], "*": Own(2.0)},
        {"*": wn.Custom(shrink)},
        {"*": wn.Protect(wn.Chain((wn.Clip(), wn.Gaussian(0.1))), 0.5)},
    ],
    ids=["number", "mapping", "lists", "function", "chain"],
)
def test_specs_come_back_with_their_order(spec: Any) -> None:
    again = there_and_back(spec)
    if isinstance(spec, dict):
        assert list(again) == list(spec)
        assert [as_law(law) for law in again.values()] == [as_law(law) for law in spec.values()]
    else:
        assert again == spec


def test_the_form_is_the_documented_one() -> None:
    spec: Any = {"a.*": [wn.Clip(2.0), wn.StuckAt(0.1, chip=None)], nn.Linear: None, Own: 0.1}
    assert wn.spec_to_config(spec) == {
        "a.*": [{"type": "Clip", "k": 2.0}, {"type": "StuckAt", "zero": 0.1, "chip": None}],
        "class:torch.nn.Linear": None,
        "class:tests.test_config.Own": 0.1,
    }
    assert wn.spec_to_config(Own(3.0)) == {"type": "tests.test_config.Own", "size": 3.0}


def test_a_config_makes_a_noisy_model() -> None:
    text = '{"class:torch.nn.LSTM": {"type": "DropConnect", "p": 0.2}, "1.weight": 0.05}'
    model = wn.add_weight_noise(
        nn.Sequential(nn.LSTM(3, 4), nn.Linear(4, 2)), wn.spec_from_config(json.loads(text))
    )
    assert wn.noisy_parameters(model)["0.weight_ih_l0"] == wn.DropConnect(0.2)
    assert wn.noisy_parameters(model)["1.weight"] == wn.Gaussian(0.05)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (lambda name, parameter, module: None, "has no name to read it by"),
        (wn.Custom(lambda w: w), "has no name to read it by"),
        (wn.Protect(wn.Gaussian(0.1), 0.5, by=torch.ones(2)), "cannot be written as plain data"),
        ({"*": object()}, "cannot be written as plain data"),
    ],
)
def test_what_has_no_plain_form_is_an_error(spec: Any, text: str) -> None:
    with pytest.raises(wn.SpecError, match=text):
        wn.spec_to_config(spec)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"type": "x"}, r"'x' names no law. The laws are BitFlip, Chain, Clip"),
        (
            {"type": "Gausian", "std": 0.1},
            r"'Gausian' names no law. Closest names: 'Gaussian', ",
        ),
        ({"_target_": "weightnoise.Gausian"}, r"before it is read. Closest names: 'Gaussian', "),
        ({"_target_": "wn.Gaussian"}, r"before it is read. Closest names: 'Gaussian', "),
        ({"type": "devices.SONAS"}, r"before it is read. Closest names: 'SONOS'."),
        ({"type": "Gaussian", "sdt": 0.1}, "unexpected keyword argument 'sdt'"),
        ({"type": "Gaussian", "std": -1}, "must be a finite number >= 0"),
        ({"type": "no.such.Law"}, "'no.such.Law' names no law of a module that is imported"),
        ({"type": "as_law"}, "names no law"),
        ({"*": {"type": "Custom", "fn": {"function": "tests.cases.nothing"}}}, "names no function"),
        ({"*": {"type": "Custom", "fn": "tests.cases.shrink"}}, "must be a function of the weight"),
        ({"class:torch.nn.Nothing": 0.1}, "names no class"),
        ({"class:torch.Tensor": 0.1}, "is no module class"),
        ({"type": 3}, "3 names no law"),
    ],
)
def test_what_a_config_gets_wrong_is_named(config: Any, text: str) -> None:
    with pytest.raises(wn.SpecError, match=text):
        wn.spec_from_config(config)


CALLED: list[object] = []


class Anything:
    """What a configuration may not call, with all that a law has but one method."""

    def __init__(self, *args: object, **options: object) -> None:
        CALLED.append(self)

    def draw(self, weight: Tensor) -> Tensor:
        return weight


class NoDataclass(Anything):
    """A law, but not one that a configuration may call unless it is allowed."""

    def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
        return weight


def records(*args: object) -> None:
    CALLED.append(args)


HERE = __name__
FORBIDDEN: list[Any] = [
    {"type": f"{HERE}.Anything", "x": 1},
    {"type": f"{HERE}:Anything"},
    {"type": f"{HERE}.NoDataclass"},
    {"type": f"{HERE}.records"},
    {"type": f"{HERE}.CALLED.append"},
    {"type": "subprocess.Popen", "args": ["touch", "made"]},
    {"type": "subprocess:Popen", "args": ["touch", "made"]},
    {"type": "os.system", "command": "touch made"},
    {"type": "builtins.exec", "source": "open('made', 'w')"},
    {"type": "torch.load", "f": "made"},
    {"type": "torch.nn.Linear", "in_features": 2, "out_features": 2},
    {"type": "weightnoise.add_weight_noise"},
    {"type": "writes.Own"},
    {"type": "writes:Own"},
    {"type": "Custom", "fn": {"function": "writes.Own"}},
    {"type": "Custom", "fn": {"function": f"{HERE}.records"}},
    {"type": "Custom", "fn": {"function": "builtins.breakpoint"}},
    {"type": "Custom", "fn": {"function": "torch.nn.functional.importlib.import_module"}},
    {"type": "Custom", "fn": {"function": "torch.nn.functional.torch.load"}},
    {"type": "Custom", "fn": {"function": "torch.nn.functional._verify_batch_size"}},
    {"type": "Custom", "fn": {"function": 3}},
    {"type": "NEFTune", "alpha": 1.0, "mask": {"function": f"{HERE}.records"}},
    {"class:writes.Own": 0.1},
    {f"class:{HERE}.Anything": 0.1},
]


@pytest.mark.parametrize("config", FORBIDDEN, ids=str)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda config: config,
        lambda config: [config],
        lambda config: {"*": config},
        lambda config: {"type": "Protect", "law": config, "fraction": 0.1},
        lambda config: {"type": "Chain", "laws": [config, {"type": "Clip"}]},
    ],
    ids=["alone", "list", "mapping", "inside a law", "chain"],
)
def test_a_configuration_imports_nothing_and_calls_nothing_but_laws(
    config: Any, wrap: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "writes.py").write_text("open('made', 'w')\nclass Own:\n    draw = apply = None")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    CALLED.clear()
    before = set(sys.modules)
    model = nn.Linear(8, 8)
    with pytest.raises(wn.SpecError):
        wn.add_weight_noise(model, wn.spec_from_config(wrap(config) if "type" in config else config))
    assert not CALLED
    assert not (tmp_path / "made").exists()
    assert set(sys.modules) == before


def test_what_is_not_allowed_is_said_with_the_way_out() -> None:
    with pytest.raises(
        wn.SpecError, match=r"nothing was called. If you .* spec_from_config\(config, allow=\[shrink"
    ):
        wn.spec_from_config({"type": "Custom", "fn": {"function": "tests.cases.shrink"}})
    with pytest.raises(wn.SpecError, match="imports nothing: import the module before it is read"):
        wn.spec_from_config({"type": "not.imported:Own"})
    with pytest.raises(wn.SpecError, match=r"is no law: nothing was called. .* allow=\["):
        wn.spec_from_config({"type": f"{HERE}:NoDataclass"})


def test_what_is_allowed_may_be_named() -> None:
    config = {"type": "Custom", "fn": {"function": "tests.cases:shrink"}}
    assert wn.spec_from_config(config, allow=[shrink]) == wn.Custom(shrink)
    assert isinstance(wn.spec_from_config({"type": f"{HERE}:NoDataclass"}, allow=[NoDataclass]), NoDataclass)
    assert wn.spec_from_config({"type": f"{HERE}:Own", "size": 2.0}) == Own(2.0)
    with pytest.raises(wn.SpecError, match="is no law"):  # Allowed is not enough: it has to be one.
        wn.spec_from_config({"type": f"{HERE}:Anything"}, allow=[Anything])


@pytest.mark.parametrize("function", [nn.functional.softsign, nn.functional.gelu, nn.functional.tanh])
def test_functions_of_torch_need_no_leave(function: Any) -> None:
    config = wn.spec_to_config(wn.Custom(function))
    assert wn.spec_from_config(config) == wn.Custom(function)


@given(
    std=st.floats(0, 10),
    relative_to=st.sampled_from([None, "absmax", "std", "rms", "value"]),
    bits=st.integers(2, 16),
    rate=st.floats(0, 1),
    numbers=st.lists(st.floats(-5, 5), min_size=1, max_size=4),
)
def test_any_options_come_back(std: float, relative_to: Any, bits: int, rate: float, numbers: list[float]) -> None:
    laws: list[wn.Noise] = [
        wn.Gaussian(std, relative_to=relative_to),
        wn.Quantize(bits, subset=rate, stochastic=True),
        wn.ProgrammingNoise(programming=tuple(numbers)),
        wn.Protect(wn.BitFlip(rate, bits=bits, chip=3), rate),
    ]
    assert as_law(there_and_back(laws)) == as_law(laws)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            [{"match": "a", "law": 0.1}, {"match": "b"}],
            "Each item must be {'match': pattern, 'law': law}, got {'match'",
        ),
        ([{"match": "a", "law": 0.1}, 0.2], "Each item must be {'match': pattern, 'law': law}, got 0.2."),
        (
            [{"match": "a", "law": 0.1, "when": "training"}],
            "Each item must be {'match': pattern, 'law': law}, got ",
        ),
        ([{"match": "a", "law": 0.1}, {"match": "a", "law": 0.2}], "'a' is matched twice"),
        ([{"law": 0.1}], "Each item must be {'match': pattern, 'law': law}, got {'law': 0.1}"),
        ([{"match": ["a", "b"], "law": 0.1}], "'match' is one pattern, a text"),
        ([{"match": 0, "law": 0.1}], "'match' is one pattern, a text"),
        ([{"match": "a", "law": "1e-3"}], "'1e-3' is text: write it without quotes, and in YAML with a point"),
        ({"type": "Gaussian", "std": "1e-3"}, "'1e-3' is text: write it without quotes, and in YAML with a point"),
        ({"type": "Quantize", "bits": "8"}, "'8' is text: write it without quotes"),
        ([{"match": "class:torch.nn.Nothing", "law": 0.1}], "'torch.nn.Nothing' names no class"),
        ({"type": "Gaussian", "_target_": "weightnoise.Gaussian", "std": 0.1}, "has its name twice"),
        ({"_target_": "weightnoise.add_weight_noise"}, "is no law: nothing was called"),
        ({"_target_": "subprocess.Popen", "args": "touch made"}, "is no law: nothing was called"),
        (
            {"_target_": "weightnoise.Gaussian", "std": 0.1, "_partial_": True},
            "unexpected keyword argument '_partial_'",
        ),
    ],
)
def test_rules_and_targets_that_cannot_be(config: Any, text: str) -> None:
    with pytest.raises(wn.SpecError) as caught:
        wn.spec_from_config(config)
    assert text in str(caught.value)


def test_rules_are_the_mapping_of_their_order() -> None:
    rules = [
        {"match": "head.*", "law": None},
        {"match": "class:torch.nn.LSTM", "law": [0.1]},
        {"match": "*", "law": 0.2},
    ]
    spec: Any = wn.spec_from_config(rules)
    assert list(spec.items()) == [("head.*", None), (nn.LSTM, [0.1]), ("*", 0.2)]


@pytest.mark.parametrize("name", ["SONOS", "devices.SONOS", "weightnoise.devices.SONOS"])
@pytest.mark.parametrize("key", ["type", "_target_"])
def test_a_device_by_each_of_its_names(key: str, name: str) -> None:
    assert wn.spec_from_config({key: name, "time": 60.0}) == replace(wn.devices.SONOS, time=60.0)
