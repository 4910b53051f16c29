"""Laws that edit what they are handed, and writes that fail half-way: the clean weights stay what they are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightnoise as wn
from tests.helpers import seen
from weightnoise._attach import attach as _parametrize
from weightnoise._attach.find import noises

SIZES = [8, 64]  # From 2048 numbers on the C engine draws.


def by_itself(tensor: Tensor) -> None:
    tensor.mul_(2)


def without_gradients(tensor: Tensor) -> None:
    with torch.no_grad():
        tensor.mul_(2)


def by_init(tensor: Tensor) -> None:
    nn.init.ones_(tensor)


def by_index(tensor: Tensor) -> None:
    with torch.no_grad():
        tensor[0] = 1.0


def by_out(tensor: Tensor) -> None:
    with torch.no_grad():
        torch.add(tensor, 1.0, out=tensor)


def by_a_view(tensor: Tensor) -> None:
    tensor.detach().view(-1).zero_()


SEEN = [by_itself, without_gradients, by_init, by_index, by_out, by_a_view]


def by_data(tensor: Tensor) -> None:
    tensor.data.mul_(2)


def by_numpy(tensor: Tensor) -> None:
    tensor.detach().numpy()[:] = 0.0


UNSEEN = [by_data, by_numpy]  # torch counts no version for them.


@dataclass(frozen=True, eq=False)
class Editing:
    """A law that edits the weight in one of its methods."""

    edit: Callable[[Tensor], None]
    where: str
    sign_symmetric = True

    def _visit(self, where: str, tensor: Tensor) -> None:
        if where == self.where:
            self.edit(tensor)

    def draw(self, weight: Tensor) -> Tensor:
        self._visit("draw", weight)
        return torch.randn(weight.shape)

    def apply(
        self, weight: Tensor, noise: Tensor, factor: float, strengths: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        self._visit("apply", weight)
        self._visit("noise", noise)
        return weight + 0.1 * factor * noise

    def deviation(self, weight: Tensor, strengths: Any = None) -> Tensor | None:
        self._visit("deviation", weight)
        return torch.full((), 0.1) if self.where == "deviation" else None

    def problem(self, weight: Tensor) -> None:
        self._visit("problem", weight)


class Learning(Editing):
    """One that also learns."""

    def strengths(self, weight: Tensor) -> dict[str, Tensor]:
        self._visit("strengths", weight)
        return {"std": torch.full((), 0.1)}

    def kl_divergence(self, weight: Tensor, strengths: Mapping[str, Tensor]) -> Tensor:
        self._visit("kl_divergence", weight)
        return weight.sum()


class Frozen(Editing):
    """One on a chip."""

    def freeze(self, weight: Tensor, name: str) -> Tensor:
        self._visit("freeze", weight)
        return torch.randn(weight.shape)

    def redraw(self, weight: Tensor, frozen: Tensor) -> Tensor:
        self._visit("redraw", weight)
        self._visit("frozen", frozen)
        return frozen


def forward(model: nn.Module, size: int) -> None:
    model(torch.ones(2, size))


def held(model: nn.Module, size: int) -> None:
    with wn.hold_noise(model, seed=0):
        forward(model, size)


def in_evaluation(model: nn.Module, size: int) -> None:
    with torch.no_grad():
        forward(model.eval(), size)


def read(model: nn.Module, size: int) -> None:
    seen(model[0])


def baked(model: nn.Module, size: int) -> None:
    wn.remove_weight_noise(model, bake=True)


def divergence(model: nn.Module, size: int) -> None:
    wn.kl_divergence(model)


def planned(model: nn.Module, size: int) -> None:
    law = model[0].parametrizations.weight[0].law
    wn.plan_weight_noise(wn.remove_weight_noise(model), law)


PLACES: list[tuple[type[Editing], str, dict[str, Any], list[Any]]] = [
    (Editing, "draw", {}, [forward, held, in_evaluation, read, baked, planned]),
    (Editing, "apply", {}, [forward, held, in_evaluation, read, baked, planned]),
    (Editing, "apply", {"memory": "recompute"}, [forward, held, in_evaluation]),
    (Editing, "apply", {"estimator": "flipout"}, [forward, held, in_evaluation]),
    (Editing, "deviation", {"estimator": "local"}, [forward, held, in_evaluation]),
    (Editing, "deviation", {}, [planned]),
    (Editing, "problem", {}, []),
    (Learning, "strengths", {}, []),
    (Learning, "apply", {}, [forward, held, in_evaluation, read, baked]),
    (Learning, "kl_divergence", {}, [divergence]),
    (Frozen, "freeze", {}, []),
    (Frozen, "redraw", {}, [forward, in_evaluation, read, baked]),
    (Frozen, "apply", {}, [forward, held, in_evaluation, read, baked]),
]
TABLE = [(kind, where, options, use) for kind, where, options, uses in PLACES for use in uses or [None]]


def kept(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("edit", SEEN + UNSEEN)
@pytest.mark.parametrize(("kind", "where", "options", "use"), TABLE)
def test_a_law_that_edits_the_weight_is_an_error_and_leaves_it(
    kind: type[Editing], where: str, options: dict[str, Any], use: Any, edit: Any, requires_grad: bool, size: int
) -> None:
    model = nn.Sequential(nn.Linear(size, size)).requires_grad_(requires_grad)
    clean, law = kept(model), kind(edit, where)

    def run() -> None:
        wn.add_weight_noise(model, law, **options)
        if use is not None:
            use(model, size)

    if edit in UNSEEN:
        run()
    else:
        with pytest.raises(wn.WeightNoiseError, match=r"edits .*'0\.weight' in place") as caught:
            run()
        assert "clone()" in str(caught.value)
    if not (use is baked and edit in UNSEEN):
        assert all(torch.equal(*pair) for pair in zip(model[0]._parameters.values(), clean, strict=True))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("edit", SEEN)
@pytest.mark.parametrize("inside", [lambda law: law, lambda law: [law], lambda law: [wn.Gaussian(0.1), law]])
def test_functions_and_lists_of_laws(inside: Any, edit: Any, size: int) -> None:
    def fn(weight: Tensor) -> Tensor:
        edit(weight)
        return weight

    model = nn.Sequential(nn.Linear(size, size)).eval()
    clean = kept(model)
    for law in (wn.Custom(fn), wn.Protect(wn.Custom(fn), 0.1)):
        wn.add_weight_noise(model, inside(law))
        with torch.no_grad():
            try:
                forward(model, size)
            except wn.WeightNoiseError as error:
                assert "edits parameter '0.weight' in place" in str(error)  # noqa: PT017
        wn.remove_weight_noise(model)
        assert all(torch.equal(*pair) for pair in zip(model.parameters(), clean, strict=True))


@pytest.mark.parametrize("size", SIZES)
def test_a_law_that_edits_its_draw_would_change_what_is_held(size: int) -> None:
    for kind, where in ((Editing, "noise"), (Frozen, "frozen")):
        model = wn.add_weight_noise(nn.Linear(size, size), kind(by_itself, where))
        with pytest.raises(wn.WeightNoiseError, match="in place"):
            seen(model)


class EditsUnseen:
    """Edits its draw past autograd, which no count tells."""

    def draw(self, weight: Tensor) -> tuple[Tensor, dict[str, list[Tensor]]]:
        return torch.randn(weight.shape), {"more": [torch.ones(weight.shape)]}

    def apply(self, weight: Tensor, noise: Any, factor: float) -> Tensor:
        result = weight + factor * noise[0] * noise[1]["more"][0]
        noise[0].data.mul_(2.0)
        noise[1]["more"][0].numpy()[:] *= 2.0
        return result


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_a_draw_that_a_law_edits_unseen_is_held_all_the_same(size: int, grad: bool, frozen: bool) -> None:
    law = wn.Frozen(EditsUnseen(), chip=1) if frozen else EditsUnseen()
    model, x = wn.add_weight_noise(nn.Linear(size, size), law), torch.randn(2, size)
    with wn.hold_noise(model), torch.set_grad_enabled(grad):
        outputs = [model(x) for _ in range(3)]
    assert all(torch.equal(output, outputs[0]) for output in outputs)


@pytest.mark.parametrize("at", ["input", "output"])
@pytest.mark.parametrize("edit", SEEN + UNSEEN)
@pytest.mark.parametrize("size", SIZES)
def test_activation_laws_leave_what_they_are_handed(size: int, edit: Any, at: Any) -> None:
    x = torch.randn(size, size)
    before, model = x.clone(), nn.Sequential(nn.Identity())
    wn.add_activation_noise(model, {"0": Editing(edit, "apply")}, at=at)
    with torch.no_grad():
        if edit in UNSEEN:
            model(x)
        else:
            with pytest.raises(wn.WeightNoiseError, match=f"edits the {at} of module '0' in place"):
                model(x)
    assert torch.equal(x, before)


@dataclass(frozen=True, eq=False)
class Looking:
    """An activation law that edits what it looks at."""

    edit: Callable[[Tensor], None]
    where: str

    def at(self, module: nn.Module, inputs: Tensor) -> Editing:
        if self.where == "inputs":
            self.edit(inputs)
        if self.where == "weight":
            self.edit(module.weight)
        return Editing(self.edit, self.where)


@pytest.mark.parametrize("where", ["inputs", "weight", "apply", "draw"])
@pytest.mark.parametrize("size", SIZES)
def test_activation_laws_that_look_at_the_module(size: int, where: str) -> None:
    x, model = torch.randn(size, size), nn.Sequential(nn.Linear(size, size))
    before = x.clone()
    wn.add_activation_noise(model, {"0": Looking(without_gradients, where)})
    with torch.no_grad(), pytest.raises(wn.WeightNoiseError, match=r"edits .* of module '0' in place"):
        model(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("size", SIZES)
def test_a_subclass_of_a_law_is_asked_whatever_the_size(size: int) -> None:
    class Doubled(wn.Gaussian):
        def apply(self, weight: Tensor, noise: Any, factor: float) -> Tensor:  # type: ignore[override]
            return weight * 2

    model = wn.add_weight_noise(nn.Linear(size, size), Doubled(0.1))
    assert torch.equal(seen(model), model._parameters["weight"] * 2)
    table = wn.add_weight_noise(nn.Embedding(size * 64, size), Doubled(0.1))
    assert torch.equal(table(torch.tensor([1])), table._parameters["weight"][1:2] * 2)


@pytest.mark.parametrize("size", SIZES)
def test_the_gradient_of_a_users_law_is_its_own(size: int) -> None:
    model = wn.add_weight_noise(nn.Linear(size, size), wn.Custom(lambda weight: weight.square()))
    seen(model).sum().backward()
    torch.testing.assert_close(model._parameters["weight"].grad, 2 * model._parameters["weight"].detach())


def test_laws_of_the_library_are_handed_the_parameter_itself() -> None:
    model = wn.add_weight_noise(nn.Linear(8, 8), [wn.Clip(2.0), wn.Gaussian(0.1)])
    for _, _, noise in noises(model):
        assert noise.handed is noise.law


# Baking.


def unwritable(size: int) -> nn.Module:
    with torch.inference_mode():
        return nn.Linear(size, size)


def shown(model: nn.Module) -> list[tuple[Any, ...]]:
    return [(type(module), *module._parameters.items()) for module in model.modules()]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_bake_that_cannot_be_written_changes_nothing(size: int, place: int) -> None:
    layers: list[nn.Module] = [nn.Linear(size, size) for _ in range(3)]
    layers[place] = unwritable(size)
    model = wn.add_weight_noise(nn.Sequential(*layers), 0.1)
    clean, before = kept(model), shown(model)
    for change in (
        lambda: wn.remove_weight_noise(model, bake=True),
        lambda: wn.clip_weights(model, low=-0.01, high=0.01),
    ):
        with pytest.raises(RuntimeError, match=r"[Ii]nference"):
            change()
        assert all(torch.equal(*pair) for pair in zip(model.parameters(), clean, strict=True))
        assert repr(shown(model)) == repr(before)
        assert len(wn.noisy_parameters(model)) == 3


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bake", [True, False])
@pytest.mark.parametrize("fails", [0, 1, 2])
def test_a_removal_that_fails_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, size: int, bake: bool, fails: int
) -> None:
    model = wn.add_weight_noise(nn.Sequential(*(nn.Linear(size, size) for _ in range(3))), 0.1)
    parameters, clean, before = list(model.parameters()), kept(model), shown(model)
    inner = _parametrize._detach

    def failing(owner: nn.Module, *args: Any) -> None:
        inner(owner, *args)
        if owner is model[fails]:
            raise OSError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(_parametrize, "_detach", failing)
        with pytest.raises(OSError, match="out of luck"):
            wn.remove_weight_noise(model, bake=bake)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), clean, strict=True))
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert repr(shown(model)) == repr(before)
    assert not torch.equal(seen(model[fails]), seen(model[fails]))
    copy.deepcopy(model)
    wn.remove_weight_noise(model)
    assert all(type(layer) is nn.Linear for layer in model)
