"""A law by itself, in a list of one, in a list of lists, and in a Protect that spares nothing: all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import weightnoise as wn
from tests.cases import LAWS
from tests.helpers import seen
from weightnoise.laws._complete import complete
from weightnoise.laws._spec import as_law
from weightnoise.testing import check_law

SIZES = (8, 64)  # By torch's generator, and by the engine.
WRAPS: dict[str, Callable[[Any], Any]] = {
    "a list of one": lambda law: [law],
    "a list of lists": lambda law: [[[law]]],
    "a chain of a chain": lambda law: wn.Chain((wn.Chain((as_law(law),)),)),  # type: ignore[arg-type]
    "a protection of nothing": lambda law: wn.Protect(as_law(law), 0.0),  # type: ignore[arg-type]
    "a wrapped wrapper": lambda law: wn.Protect(wn.Chain((wn.Protect(as_law(law), 0.0),)), 0.0),  # type: ignore[arg-type]
}
OF_ACTIVATIONS = {
    "salt_and_pepper": wn.SaltAndPepper(0.3),
    "current": wn.CurrentNoise(5.0),
    "neftune": wn.NEFTune(),
}
EVERY = {**LAWS, **OF_ACTIVATIONS}
each_law = pytest.mark.parametrize("law", EVERY)
each_size = pytest.mark.parametrize("size", SIZES)


def layer(size: int) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(size, size)


def outcome(given: Any, call: Callable[[Any], Any], law: Any = None) -> Any:
    """What a call with a law returns; or its refusal, word for word but for how the law was written."""
    try:
        return call(given)
    except (wn.WeightNoiseError, ValueError) as error:
        text = str(error).replace(repr(as_law(given)), "LAW")
        return type(error).__name__, text if law is None else text.replace(repr(as_law(law)), "LAW")


def same(law: Any, call: Callable[[Any], Any], wraps: Iterable[str] = WRAPS) -> None:
    """Demand of a call the same bits, or the same refusal, however the law is wrapped."""
    expected = outcome(law, call)
    for name in wraps:
        found = outcome(WRAPS[name](law), call, law)
        if isinstance(expected, list):
            assert_close(found, expected, rtol=0.0, atol=0.0, msg=f"{name} differs: {found}")
        else:
            assert found == expected, name


def run(model: Any, x: Tensor) -> list[Tensor]:
    """The output and the gradients of a step, and the output of a held draw at half the strength."""
    torch.manual_seed(1)
    output = model(x)
    gradients = torch.autograd.grad(output.square().sum(), list(model.parameters()))
    with wn.hold_noise(model, seed=3), wn.scale_noise(model, 0.5):
        held = model(x).detach()
    return [output.detach(), *gradients, held]


def batch(size: int) -> Tensor:
    return torch.linspace(-1, 1, 3 * size).reshape(3, size)


@each_law
@each_size
@pytest.mark.parametrize(
    "options", [{}, {"memory": "recompute"}, {"estimator": "flipout"}, {"estimator": "local"}], ids=str
)
def test_the_same_on_weights(options: Any, size: int, law: str) -> None:
    same(EVERY[law], lambda given: run(wn.add_weight_noise(layer(size), given, **options), batch(size)))


@each_law
@each_size
@pytest.mark.parametrize("at", ["output", "input"])
def test_the_same_on_activations(at: Any, size: int, law: str) -> None:
    same(EVERY[law], lambda given: run(wn.add_activation_noise(layer(size), given, at=at), batch(size)))


@pytest.mark.parametrize("law", [wn.NEFTune(), wn.Gaussian(0.1), wn.Gaussian(0.1, relative_to="absmax", per=0)])
@each_size
@pytest.mark.parametrize("add", [wn.add_weight_noise, wn.add_activation_noise])
def test_the_same_on_embeddings(add: Any, size: int, law: Any) -> None:
    def embedded(given: Any) -> list[Tensor]:
        torch.manual_seed(0)
        model = add(
            nn.Sequential(nn.Embedding(20 * size, size)), {"*" if add is wn.add_weight_noise else "0": given}
        )
        return run(model, torch.arange(3))

    same(law, embedded)


@each_law
@each_size
@pytest.mark.parametrize("factor", [0.5, 40.0])
def test_the_same_under_a_schedule(factor: float, size: int, law: str) -> None:
    def scheduled(given: Any) -> list[Tensor]:
        model = wn.add_weight_noise(layer(size), given)
        wn.NoiseScheduler(model, lambda step: factor)
        return run(model, batch(size))

    same(EVERY[law], scheduled)


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
@pytest.mark.parametrize(
    "law", ["gaussian", "gaussian_absmax", "stuck_at", "learned", "chain", "custom", "current"]
)
@each_size
@pytest.mark.parametrize("add", [wn.add_weight_noise, wn.add_activation_noise])
def test_the_same_when_compiled(add: Any, size: int, law: str) -> None:
    def compiled(given: Any) -> list[Tensor]:
        torch._dynamo.reset()
        model = add(layer(size), given)
        wn.NoiseScheduler(model, lambda step: 0.5)
        return run(torch.compile(model, backend="eager"), batch(size))

    same(EVERY[law], compiled, ["a list of lists", "a protection of nothing"])


@each_law
def test_what_is_asked_is_the_same_law(law: str) -> None:
    for wrap in WRAPS.values():
        given = as_law(wrap(EVERY[law]))
        assert given is not None
        assert repr(complete(given)) == repr(as_law(EVERY[law]))


@each_law
def test_the_same_plan_names_and_divergence(law: str) -> None:
    def planned(given: Any) -> Any:
        row = wn.plan_weight_noise(layer(8), given).rows[0]
        return row.name, row.effective_std

    same(EVERY[law], planned)
    same(EVERY[law], lambda given: str([*wn.learned_strengths(wn.add_weight_noise(layer(8), given))]))
    same(EVERY[law], lambda given: [wn.kl_divergence(wn.add_weight_noise(layer(8), given))])


@each_law
def test_what_was_given_is_what_is_told(law: str) -> None:
    for wrap in ("a chain of a chain", "a protection of nothing"):
        given = WRAPS[wrap](EVERY[law])
        if law in LAWS:
            assert wn.noisy_parameters(wn.add_weight_noise(layer(8), given))["weight"] is given


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


@dataclass(frozen=True)
class Half:
    """A wrapper of a user that names its part: half the noise of it."""

    law: Any

    @property
    def parts(self) -> tuple[Any, ...]:
        return (self.law,)

    def draw(self, weight: Tensor) -> Any:
        return self.law.draw(weight)

    def apply(self, weight: Tensor, noise: Any, factor: float, *strengths: Any) -> Tensor:
        noisy: Tensor = self.law.apply(weight, noise, factor, *strengths)
        return weight + (noisy - weight) / 2


@dataclass(frozen=True)
class Mean(wn.laws.Law):
    """One of two parts, which inherits the defaults and writes `apply` alone."""

    parts: tuple[Any, ...]

    def apply(self, weight: Tensor, noise: Any, factor: float, strengths: Any = None) -> Tensor:
        made = [
            law.apply(weight, drawn, factor, *filter(None, [self.own(place, strengths)]))
            for place, (law, drawn) in enumerate(zip(self.parts, noise, strict=True))
        ]
        return torch.stack(made).mean(0)


def around(law: Any) -> list[Any]:
    """A law in wrappers that name their parts."""
    return [
        Half(law),
        Half(wn.Chain((wn.Clip(), law))),
        wn.Protect(Half(Half(law)), 0.2),
        [wn.Clip(), Half(law)],
        Mean((law, wn.Gaussian(0.1))),
    ]


@each_size
@pytest.mark.parametrize("place", range(5))
def test_parts_are_asked_what_they_freeze(place: int, size: int) -> None:
    model = wn.add_weight_noise(layer(size), around(wn.StuckAt(0.3, chip=7))[place])
    assert torch.equal(seen(model), seen(model)) is (place < 4)  # The last has another part, which is fresh.
    with torch.device("meta"):
        late = wn.add_weight_noise(nn.Linear(size, size), around(wn.StuckAt(0.3, chip=7))[place])
    late.to_empty(device="cpu").load_state_dict(model.state_dict())
    assert place == 4 or torch.equal(seen(late), seen(model))
    drifted = wn.add_weight_noise(layer(size), around(wn.ProgrammingNoise(time=9.0, chip=7))[place])
    assert not torch.equal(seen(drifted), seen(drifted))


@each_size
@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("memory", ["keep", "recompute"])
def test_parts_are_asked_what_they_learn(memory: Any, place: int, size: int) -> None:
    model = wn.add_weight_noise(layer(size), around(wn.LearnedGaussian())[place], memory=memory)
    names = ["std", "std_1", "std", "std_1", "std_0"]
    assert [name.rpartition(".")[2] for name in wn.learned_strengths(model)] == [names[place]]
    model(batch(size)).square().sum().backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in wn.learned_strengths(model).values())


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize(
    ("law", "call", "reason"),
    [
        (wn.StuckAt(0.3, chip=7), wn.add_activation_noise, "what a chip freezes"),
        (wn.LearnedGaussian(), wn.add_activation_noise, "it learns a strength"),
        (wn.CurrentNoise(1.0), wn.add_weight_noise, "is for activations"),
        (wn.Gaussian(0.1, relative_to="std", per=5), wn.add_weight_noise, "per=5 names a dimension"),
        (
            wn.DropConnect(0.3),
            lambda model, law: wn.NoiseScheduler(wn.add_weight_noise(model, law), lambda step: 9.0),
            "would have a rate of",
        ),
        (
            wn.Variational(),
            lambda model, law: wn.kl_divergence(wn.add_weight_noise(model, law)),
            "must come first and stand by itself",
        ),
    ],
)
def test_parts_are_asked_what_they_refuse(law: Any, call: Any, reason: str, place: int) -> None:
    with pytest.raises((wn.WeightNoiseError, ValueError), match=reason):
        call(layer(8), around(law)[place])


@pytest.mark.parametrize(("law", "what"), [(wn.StuckAt(0.1), "freezes on its chip"), (wn.Variational(), "learns")])
def test_what_a_wrapper_would_forget_is_refused(law: Any, what: str) -> None:
    class Silent:
        def __init__(self, *laws: Any) -> None:
            self.laws = laws

        def draw(self, weight: Tensor) -> Any:
            return self.laws[0].draw(weight)

        def apply(self, weight: Tensor, noise: Any, factor: float) -> Tensor:
            noisy: Tensor = self.laws[0].apply(weight, noise, factor)
            return noisy

    wrapped: list[Any] = [Silent(law), [wn.Clip(), Silent(law)], wn.Protect(Silent(wn.Chain((law, law))), 0.5)]
    for given in wrapped:
        with pytest.raises(wn.UnsupportedParameterError, match=rf"forget what .* in it {what}. Name the laws"):
            wn.add_weight_noise(layer(8), given)
    wn.add_weight_noise(layer(8), Silent(wn.StuckAt(0.1, chip=None)))


@each_size
def test_a_law_that_looks_at_the_module_in_wrappers(size: int) -> None:
    for law in (wn.Protect(wn.CurrentNoise(5.0), 0.5), [wn.CurrentNoise(5.0), wn.Gaussian(0.1)]):
        model = wn.add_activation_noise(layer(size), law)
        assert not torch.equal(model(batch(size)), model(batch(size)))
    for one in around(wn.CurrentNoise(5.0)):
        with pytest.raises(wn.UnsupportedActivationError, match=r"no method at\(module, inputs\)"):
            wn.add_activation_noise(layer(size), one)


class Branching:
    """A law that decides by its factor in Python."""

    def draw(self, weight: Tensor) -> Tensor:
        return torch.randn(weight.shape, dtype=weight.dtype)

    def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
        return weight + 0.1 * (noise * factor if factor > 0 else noise * -factor * -1.0)


class Demanding(Branching):
    """A law that demands a number."""

    def apply(self, weight: Tensor, noise: Tensor, factor: float) -> Tensor:
        if not isinstance(factor, float):
            raise TypeError("a number, please")
        return weight + 0.1 * factor * noise


class Rounding(Branching):
    """A law that takes a tensor for another number."""

    def apply(self, weight: Tensor, noise: Tensor, factor: Any) -> Tensor:
        return weight + 0.1 * noise * (factor if isinstance(factor, float) else torch.round(factor))


@pytest.mark.parametrize("law", [Branching(), Demanding(), Rounding()])
def test_a_law_that_cannot_have_a_schedule_when_compiled_does_not_pass(law: Any) -> None:
    with pytest.raises(AssertionError, match="the factor is a 0-dim tensor"):
        check_law(law)


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
