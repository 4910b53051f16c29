"""Options of laws and of calls: numbers of every kind are taken, and what is wrong is one family of errors."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import weightnoise as wn
import weightnoise.testing
from weightnoise.laws._spec import as_law

NUMBERS: list[Callable[[float], Any]] = [
    np.float64,
    np.float32,
    np.array,
    torch.tensor,
    lambda value: torch.tensor(value, dtype=torch.float64),
    lambda value: torch.tensor(value, dtype=torch.bfloat16),
]
WHOLE: list[Callable[[int], Any]] = [np.int64, np.uint8, np.array, torch.tensor]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_of_any_kind_is_a_number(number: Callable[[float], Any]) -> None:
    laws: dict[str, Any] = {
        "spec": as_law(number(0.25)),
        "in a list": as_law([number(0.25)]),
        "Gaussian": wn.Gaussian(number(0.25)),
        "Uniform": wn.Uniform(number(0.25)),
        "DropConnect": wn.DropConnect(number(0.25)),
        "LogNormal": wn.LogNormal(number(0.25)),
        "StuckAt": wn.StuckAt(number(0.25), levels=(number(-0.5), number(0.5))),
        "Clip": wn.Clip(low=number(-0.5), high=number(0.5)),
        "Temperature": wn.Temperature(number(0.25)),
        "Protect": wn.Protect(wn.Gaussian(0.1), number(0.25), scale=number(0.5)),
        "LearnedGaussian": wn.LearnedGaussian(number(0.25)),
        "SaltAndPepper": wn.SaltAndPepper(number(0.25)),
    }
    plain: dict[str, Any] = {
        "spec": wn.Gaussian(0.25),
        "in a list": wn.Gaussian(0.25),
        "Gaussian": wn.Gaussian(0.25),
        "Uniform": wn.Uniform(0.25),
        "DropConnect": wn.DropConnect(0.25),
        "LogNormal": wn.LogNormal(0.25),
        "StuckAt": wn.StuckAt(0.25, levels=(-0.5, 0.5)),
        "Clip": wn.Clip(low=-0.5, high=0.5),
        "Temperature": wn.Temperature(0.25),
        "Protect": wn.Protect(wn.Gaussian(0.1), 0.25, scale=0.5),
        "LearnedGaussian": wn.LearnedGaussian(0.25),
        "SaltAndPepper": wn.SaltAndPepper(0.25),
    }
    for name, law in laws.items():
        assert law == plain[name]
        assert repr(law) == repr(plain[name])
        hash(law)
        assert wn.spec_to_config(law) == wn.spec_to_config(plain[name])


@pytest.mark.parametrize("number", WHOLE)
def test_a_whole_number_of_any_kind_is_one(number: Callable[[int], Any]) -> None:
    assert repr(wn.Quantize(number(8), block=number(2), subset=0.5)) == "Quantize(bits=8, subset=0.5, block=2)"
    assert repr(wn.BitFlip(0.1, bits=number(4), chip=number(3))) == repr(wn.BitFlip(0.1, bits=4, chip=3))
    model = wn.add_weight_noise(nn.Linear(8, 8), 0.1)
    with wn.hold_noise(model, seed=number(3)):
        first = model.weight
    with wn.hold_noise(model, seed=3):
        assert torch.equal(first, model.weight)


@pytest.mark.parametrize("number", WHOLE)
def test_calls_take_whole_numbers_of_any_kind(number: Callable[[int], Any]) -> None:
    model = wn.add_weight_noise(nn.Linear(8, 8), wn.Gaussian(0.1), min_ndim=number(2))
    x, metric = torch.ones(1, 8), lambda model: model(torch.ones(8)).sum()
    calls: dict[str, Callable[[Any, Any], Any]] = {
        "predict": lambda two, seed: wn.predict(model, x, draws=two, seed=seed).mean.tolist(),
        "evaluate": lambda two, seed: wn.evaluate_robustness(
            model, metric, levels=[1.0], draws=two, seed=seed, progress=False
        ).to_dict()["curves"],
        "worst": lambda two, seed: wn.evaluate_robustness(
            model, metric, levels=[1.0], draws=3, progress=False
        ).seed_of(1.0, two),
        "find_level": lambda two, seed: (
            wn.find_level(model, metric, at_least=-9.0, draws=two, seed=seed, highest=2.0, progress=False)
            .report.curves["noise"]
            .tolist()
        ),
        "layer_report": lambda two, seed: str(wn.layer_report(model, None, x, draws=two, seed=seed)),
        "step_along": lambda two, seed: wn.step_along(model, seed, 0.0),
        "advance": lambda two, seed: wn.hold_noise(model, seed=seed, rho=0.5).__enter__().advance(two),
        "batch_dim": lambda two, seed: wn.plan_weight_noise(
            nn.Linear(8, 8), 0.1, estimator="flipout", batch_dim=two
        ),
    }
    for name, call in calls.items():
        assert str(call(number(2), number(3))) == str(call(2, 3)), name


PUBLIC = {name: getattr(wn, name) for name in wn.__all__} | {
    name: getattr(weightnoise.testing, name) for name in weightnoise.testing.__all__
}
OF_A_MODEL = [
    name
    for name, one in PUBLIC.items()
    if inspect.isroutine(inspect.unwrap(one)) or name in ("AdaptiveNoise", "NoiseScheduler")
    if next(iter(inspect.signature(one).parameters), "") in ("model", "models")
]
GIVEN: dict[str, Any] = {"spec": 0.1, "metric": len, "levels": [1.0], "loss": len, "law": 0.1, "which": "*"}


@pytest.mark.parametrize("wrong", [[nn.Linear(2, 2)], None, "model", nn.Linear], ids=str)
@pytest.mark.parametrize("name", OF_A_MODEL)
def test_what_is_no_module_is_refused_by_name(name: str, wrong: Any) -> None:
    required = [
        one
        for one in inspect.signature(PUBLIC[name]).parameters.values()
        if one.default is one.empty and one.name not in ("model", "models", "args", "inputs")
    ]
    plain = [GIVEN.get(one.name, 1) for one in required if one.kind is one.POSITIONAL_OR_KEYWORD]
    if name == "predict":
        plain = [torch.ones(1, 2)]
    by_name = {one.name: GIVEN.get(one.name, 1) for one in required if one.kind is one.KEYWORD_ONLY}
    if name == "find_level":
        by_name["at_least"] = 1.0
    with pytest.raises(wn.OptionTypeError, match=rf"torch.nn.Module, got {type(wrong).__name__}"):  # noqa: PT012
        found = PUBLIC[name](wrong, *plain, **by_name)
        found.__enter__()


def test_every_call_that_takes_a_model_is_asked() -> None:
    assert {"remove_weight_noise", "evaluate_robustness", "predict", "check_gradients"} <= set(OF_A_MODEL)
    assert len(OF_A_MODEL) > 25


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("size", [8, 64])
def test_calls_take_numbers_of_any_kind(number: Callable[[float], Any], size: int) -> None:
    model, plain = (wn.add_weight_noise(nn.Linear(size, size), std) for std in (number(0.25), 0.25))
    plain.load_state_dict(model.state_dict())
    with (
        wn.hold_noise(model, seed=1),
        wn.hold_noise(plain, seed=1),
        wn.scale_noise(model, number(0.5)),
        wn.scale_noise(plain, 0.5),
    ):
        assert torch.equal(model.weight, plain.weight)
    loss = torch.tensor(2.0)
    torch.manual_seed(1)
    found = wn.perturb_loss(loss, number(0.25))
    torch.manual_seed(1)
    assert torch.equal(found, wn.perturb_loss(loss, 0.25))
    scheduler = wn.NoiseScheduler(model, lambda step: number(0.5))
    assert scheduler.factor == 0.5


@pytest.mark.parametrize("levels", [np.linspace(0, 1, 3), torch.linspace(0, 1, 3), [0.0, 0.5, 1.0]])
def test_levels_of_any_kind(levels: Any) -> None:
    model = wn.add_weight_noise(nn.Linear(8, 8), 0.1)
    report = wn.evaluate_robustness(
        model, lambda m: m(torch.ones(8)).sum(), levels=levels, draws=2, progress=False
    )
    assert report.levels == (0.0, 0.5, 1.0)


def test_a_strength_with_a_gradient_is_refused() -> None:
    with pytest.raises(wn.OptionError, match="must be a finite number"):
        wn.Gaussian(nn.Parameter(torch.tensor(0.1)))


MODEL = nn.Linear(8, 8)
LOSS = torch.ones((), requires_grad=True) * 2
WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: wn.Gaussian(-1), r"Gaussian\(std=...\) must be a finite number >= 0, got -1"),
    (lambda: wn.Gaussian(True), "must be a finite number"),
    (lambda: wn.Gaussian(np.bool_(True)), "must be a finite number"),  # type: ignore[arg-type]
    (lambda: wn.Gaussian(-torch.ones(2)), "must be a finite number"),
    (lambda: wn.Gaussian(0.1, per="row"), "per"),  # type: ignore[arg-type]
    (lambda: wn.Quantize(0), "whole number from 1 to 16"),
    (lambda: wn.DropConnect(1.0), "must be in"),
    (lambda: wn.Clip(low=1.0, high=0.0), "low must be below high"),
    (lambda: wn.Temperature(-400.0), "Temperature"),
    (lambda: wn.Protect(3, 0.1), "must be a law"),  # type: ignore[arg-type]
    (lambda: wn.Chain(["x"]), "'x' .str. is no law"),  # type: ignore[arg-type]
    (lambda: wn.Chain([None]), "one or more laws, without None"),  # type: ignore[arg-type]
    (lambda: wn.Chain([]), "one or more laws"),  # type: ignore[arg-type]
    (lambda: wn.Chain(()), "one or more laws"),
    (lambda: wn.Chain(wn.Gaussian(0.1)), "one or more laws"),  # type: ignore[arg-type]
    (lambda: wn.Chain((nn.Dropout(0.2),)), "is a module, and no law"),  # type: ignore[arg-type]
    (lambda: wn.add_weight_noise(MODEL, nn.Dropout(0.2)), r"no law. DropConnect\(0.2\) drops elements"),
    (lambda: wn.add_weight_noise(MODEL, nn.ReLU()), "is a module, and no law. Give a law"),
    (lambda: wn.add_weight_noise(MODEL, {"*": nn.ReLU()}), "Pattern '.*': .* is a module"),  # type: ignore[dict-item]
    (lambda: wn.add_activation_noise(MODEL, nn.Dropout(0.2)), r"no law. DropConnect\(0.2\) drops elements"),
    (lambda: wn.add_weight_noise(MODEL, "x"), "'x' .str. is no law"),  # type: ignore[arg-type]
    (lambda: wn.add_weight_noise(MODEL, 0.1, when="eval"), "when"),  # type: ignore[arg-type]
    (lambda: wn.add_weight_noise(MODEL, 0.1, estimator="x"), "estimator"),  # type: ignore[arg-type]
    (lambda: wn.add_activation_noise(MODEL, 0.1, at="middle"), "at"),  # type: ignore[arg-type]
    (lambda: wn.add_weight_noise(3, 0.1), "must be a torch.nn.Module"),  # type: ignore[type-var]
    (lambda: wn.add_weight_noise(MODEL, 0.1, min_ndim=-1), "min_ndim"),
    (lambda: wn.evaluate_robustness(MODEL, lambda m: 0.0, levels=0.1, law=0.1), "must be a list of levels"),  # type: ignore[arg-type]
    (lambda: wn.evaluate_robustness(MODEL, lambda m: 0.0, levels=None, law=0.1), "must be a list of levels"),  # type: ignore[arg-type]
    (lambda: wn.evaluate_robustness(MODEL, lambda m: 0.0, levels="0,1", law=0.1), "must be a list of levels"),
    (lambda: wn.evaluate_robustness(MODEL, lambda m: 0.0, levels=[], law=wn.Gaussian(0.1)), "at least one level"),
    (lambda: wn.evaluate_robustness(MODEL, lambda m: 0.0, levels=[-1.0], law=wn.Gaussian(0.1)), "levels"),
    (lambda: wn.scale_noise(MODEL, -1.0), "factor"),
    (lambda: wn.hold_noise(MODEL, seed=1.5), "seed"),  # type: ignore[arg-type]
    (lambda: wn.hold_noise(MODEL, sign=2), "sign"),
    (lambda: wn.perturb_loss(LOSS, -1.0), "std"),
    (lambda: wn.gradient_penalty(LOSS, MODEL), r"got a module. Give module.parameters\(\)"),  # type: ignore[arg-type]
    (lambda: wn.gradient_penalty(LOSS, 3), "must be tensors, got int"),  # type: ignore[arg-type]
    (lambda: wn.no_noise([MODEL]), r"got list. Give them one by one: no_noise\(\*models\)"),  # type: ignore[arg-type]
    (lambda: wn.no_noise((MODEL, MODEL)), "Give them one by one"),  # type: ignore[arg-type]
    (lambda: wn.hold_noise([MODEL]), "got list. Open one for each"),  # type: ignore[arg-type]
    (lambda: wn.scale_noise(None, 1.0), "takes a torch.nn.Module, got NoneType"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "text"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_one_family(call: Callable[[], Any], text: str) -> None:
    with pytest.raises(wn.WeightNoiseError, match=text) as caught:
        call()
    assert isinstance(caught.value, ValueError)
    assert len(caught.value.problems) == 1  # And no second sentence that is not true.


@pytest.mark.parametrize("spec", ["x", object(), nn.ReLU(), {1, 2}, torch.ones(2), b"x", True])
def test_only_none_is_called_none(spec: Any) -> None:
    with pytest.raises(wn.SpecError) as caught:
        wn.add_weight_noise(nn.Linear(8, 8), spec)
    assert "The spec is None" not in str(caught.value)
    with pytest.raises(wn.SpecError, match=r"^The spec is None. Give a number"):
        wn.add_weight_noise(nn.Linear(8, 8), None)  # type: ignore[arg-type]


def test_types_stay_type_errors() -> None:
    for call in (
        lambda: wn.add_weight_noise(3, 0.1),  # type: ignore[type-var]
        lambda: wn.add_activation_noise(3, 0.1),  # type: ignore[type-var]
        lambda: wn.add_weight_noise(MODEL, 0.1, min_ndim="2"),  # type: ignore[arg-type]
        lambda: wn.perturb_loss(2.0, 0.1),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError):
            call()
