"""A law by itself, in a list of one, in a list of lists, and in a Protect that spares nothing: all the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import weightnoise as wn
from tests.cases import LAWS

SIZES = (8, 64)
WRAPS: dict[str, Callable[[Any], Any]] = {
    "a list of one": lambda law: [law],
    "a list of lists": lambda law: [[[law]]],
    "a protection of nothing": lambda law: wn.Protect(
        law if isinstance(law, wn.Noise) else wn.Chain(tuple(law)), 0.0
    ),
}
wraps = pytest.mark.parametrize("wrap", WRAPS)
each_law = pytest.mark.parametrize("law", LAWS)


def layer(size: int) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(size, size)


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns; or the kind and the reason of its refusal, without the law's name."""
    try:
        return call()
    except wn.WeightNoiseError as error:
        return type(error), str(error).rpartition(":")[2].partition(", which")[2] or str(error).rpartition(":")[2]


def run(law: Any, size: int, **options: Any) -> list[Tensor]:
    """The noisy weight, fresh and held, and the gradients of a step."""
    model = wn.add_weight_noise(layer(size), law, **options)
    x = torch.linspace(-1, 1, 3 * size).reshape(3, size)
    torch.manual_seed(1)
    loss = model(x).square().sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    with wn.hold_noise(model, seed=3), wn.scale_noise(model, 0.5):
        held = model.weight.detach().clone()
    return [loss.detach(), *gradients, held]


@each_law
@wraps
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("memory", ["keep", "recompute"])
def test_the_same_noise(memory: str, size: int, wrap: str, law: str) -> None:
    expected = run(LAWS[law], size, memory=memory)
    found = run(WRAPS[wrap](LAWS[law]), size, memory=memory)
    if "protection" in wrap:  # A key is for laws alone: other numbers, of the same law.
        expected, found = expected[-1:], found[-1:]
    assert_close(found, expected)


@each_law
@wraps
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("estimator", ["flipout", "local"])
def test_the_same_estimators(estimator: str, size: int, wrap: str, law: str) -> None:
    found, expected = (
        outcome(partial(run, given, size, estimator=estimator)) for given in (WRAPS[wrap](LAWS[law]), LAWS[law])
    )
    assert_close(found, expected) if isinstance(expected, list) else None
    assert isinstance(found, list) is isinstance(expected, list)


@each_law
@wraps
def test_the_same_on_activations(wrap: str, law: str) -> None:
    def accepted(given: Any) -> str:
        wn.add_activation_noise(layer(8), given)
        return "accepted"

    found, expected = (outcome(partial(accepted, given)) for given in (WRAPS[wrap](LAWS[law]), LAWS[law]))
    assert found == expected


@each_law
@pytest.mark.parametrize("wrap", ["a list of one", "a list of lists"])
def test_the_same_names_and_divergence(wrap: str, law: str) -> None:
    one, other = (wn.add_weight_noise(layer(8), given) for given in (LAWS[law], WRAPS[wrap](LAWS[law])))
    assert list(wn.learned_strengths(other)) == list(wn.learned_strengths(one))
    found, expected = (outcome(partial(wn.kl_divergence, model)) for model in (other, one))
    assert_close(found, expected) if isinstance(expected, Tensor) else None
    assert isinstance(found, Tensor) is isinstance(expected, Tensor)


@dataclass(frozen=True)
class Wrapper:
    """A law of a user around another one, which hands on what it must."""

    inner: Any

    def draw(self, weight: Tensor) -> Any:
        return self.inner.draw(weight)

    def apply(
        self, weight: Tensor, noise: Any, factor: float, strengths: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        noisy: Tensor = self.inner.apply(weight, noise, factor, strengths)
        return noisy

    def strengths(self, weight: Tensor) -> dict[str, Tensor]:
        made: dict[str, Tensor] = self.inner.strengths(weight)
        return made


@pytest.mark.parametrize(
    "law",
    [Wrapper(wn.Variational()), wn.Protect(wn.Chain((wn.Variational(),)), 0.5), [wn.Clip(), wn.Variational()]],
)
def test_a_divergence_that_would_be_left_out_is_refused(law: Any) -> None:
    model = wn.add_weight_noise(layer(8), law)
    with pytest.raises(wn.UnsupportedParameterError, match="must come first and stand by itself"):
        wn.kl_divergence(model)


@pytest.mark.parametrize(
    ("law", "reason"),
    [
        (wn.Protect(wn.Chain((wn.StuckAt(0.1, chip=7),)), 0.5), "what a chip freezes"),
        ([wn.Gaussian(0.1), [wn.StuckAt(0.1, chip=7)]], "what a chip freezes"),
        ([[wn.LearnedGaussian()]], "it learns a strength"),
        (wn.Protect(wn.Protect(wn.LearnedGaussian(), 0.5), 0.5), "it learns a strength"),
        (Wrapper(wn.LearnedGaussian()), "it learns a strength"),
    ],
)
def test_what_has_a_fixed_shape_is_refused_on_activations(law: Any, reason: str) -> None:
    with pytest.raises(wn.UnsupportedActivationError, match=reason):
        wn.add_activation_noise(layer(8), law)


@pytest.mark.parametrize(
    "law", [wn.Protect(wn.Protect(wn.Gaussian(0.1), 0.5), 0.5), [[wn.Gaussian(0.1)], wn.Uniform(0.1)]]
)
def test_what_has_none_is_accepted(law: Any) -> None:
    model = wn.add_activation_noise(layer(8), law)
    assert model(torch.ones(2, 8)).shape == (2, 8)


@pytest.mark.parametrize("size", SIZES)
def test_protected_weights_have_a_smaller_part_in_the_local_estimator(size: int) -> None:
    law = wn.Protect(wn.Gaussian(0.2), 0.5, scale=0.5)
    model = wn.add_weight_noise(layer(size), law, estimator="local")
    x = torch.ones(20_000, size)
    with torch.no_grad():
        found = model(x).var(dim=0)
        weight = model._parameters["weight"]
        assert weight is not None
        deviation = law.deviation(weight)
    assert deviation is not None
    expected = deviation.square().sum(dim=1)
    # The variance of 20,000 outputs is known to 1 per cent; four of its standard errors.
    assert_close(found, expected, rtol=0.04, atol=0.0)
