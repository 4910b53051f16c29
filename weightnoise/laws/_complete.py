"""Laws of users: completed with a default for all that they lack, and kept from editing what they are handed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weightnoise._errors import OptionError, WeightNoiseError
from weightnoise._torch.layers import Layout
from weightnoise.laws._custom import Custom
from weightnoise.laws._law import NO_PATH, ActivationLaw, Law, Noise, is_law
from weightnoise.laws._regions import Regions


def complete(law: Noise | ActivationLaw, place: str | None = None) -> Law:
    """The law with all that may be asked of one: itself where it is the library's own.

    A wrapper that changes nothing is the law inside. One of a user gets copies if ``place`` says what of.
    """
    if isinstance(law, Completed):
        return law if place is None else Completed(law.law, place)
    # A subclass of a law of the library is its user's, and so is a function.
    ours = type(law).__module__.startswith(f"{__package__}.") and not isinstance(law, Custom)
    if not (ours and isinstance(law, Law)):
        return Completed(law, place)
    if (plain := law.plain()) is not law:
        return complete(plain, place)
    parts = tuple(complete(part, place) for part in law.parts)
    return law if all(one is other for one, other in zip(parts, law.parts, strict=True)) else law.around(parts)


def sample(law: Noise, weight: Tensor, factor: float = 1.0) -> Tensor:
    """One noisy weight from a fresh draw, at the initial strengths where the law learns them."""
    return law.apply(weight, law.draw(weight), factor)


def has_user_law(law: Law) -> bool:
    """Whether a completed law is one of a user, or has one inside it."""
    return isinstance(law, Completed) or any(map(has_user_law, law.inside))


class Completed(Law):
    """A law of a user: what it has itself, a default for the rest, and an error if it edits what it is handed.

    It gets copies. The clean weight is out of its reach, whatever it does: torch counts no edit through numpy or
    the attribute ``data``, and none of a tensor that was made in inference mode. Those stay in the copy.
    """

    def __init__(self, law: Noise | ActivationLaw, place: str | None) -> None:
        self.law: Any = law
        self.place = place
        self.gradient = getattr(law, "gradient", "exact")
        self.sign_symmetric = getattr(law, "sign_symmetric", False)
        self.chip = getattr(law, "chip", None)
        self.of_chip = getattr(law, "of_chip", False)
        self.normal_draw = getattr(law, "normal_draw", False)
        self.parts = tuple(map(complete, getattr(law, "parts", ())))

    @property
    def inside(self) -> tuple[Law, ...]:
        """The parts; those it does not name are at least among its attributes."""
        held = [
            one
            for value in getattr(self.law, "__dict__", {}).values()
            for one in (value if isinstance(value, (tuple, list)) else (value,))
        ]
        return self.parts or tuple(complete(one) for one in held if is_law(one))

    def says(self, name: str) -> bool:
        """Whether the law, or one inside it, has a method of its own in place of a default."""
        return self._own(name) is not None or any(one.says(name) for one in self.inside)

    def problem(self, weight: Tensor) -> str | None:
        """Why it does not fit a parameter, or None."""
        for one in self.inside:
            if isinstance(one.regions, Regions):
                return f"{one!r} inside another law does not get to know the layer. Give the dimension: per=0, say"
        for one in () if self.parts else self.inside:
            learns = one.says("strengths") and self._own("strengths") is None
            if learns or (one.freezes and self.chip is None and self._own("freeze") is None):
                what = "learns" if learns else "freezes on its chip"
                return f"it would forget what {one!r} in it {what}. Name the laws inside in an attribute parts"
        found: str | None = self._handed("problem", weight)
        return found

    def laid_out(self, layout: Layout | None) -> Completed:
        """Itself: what is inside is called by the law of the user, which does not know the layer."""
        return self

    def named(self, names: Sequence[str]) -> Completed:
        """Itself, as for the layout."""
        return self

    def given(self, weight: Tensor) -> dict[str, Tensor]:
        """None: what is inside has its tensors itself."""
        return {}

    def moved_on(self, held: Any, fresh: Sequence[Any], join: Callable[[Tensor, list[Tensor]], Tensor]) -> Any:
        """As of any law; one that draws itself says what its numbers are."""
        if self._own("draw") is None or self.normal_draw or all(one is held for one in fresh):
            return super().moved_on(held, fresh, join)
        raise OptionError(NO_PATH.format(law=self))

    def module_problem(self, module: nn.Module, at: str) -> str | None:
        """Why it does not fit the activations of a module, or None."""
        if self.says("at") and self._own("at") is None:
            return "a law inside it looks at the module, and it has no method at(module, inputs) to hand that on"
        found: str | None = self._ask("module_problem", module, at)
        return found

    def at(self, module: nn.Module, inputs: Any) -> Any:
        """The law for one call of a module."""
        handed = inputs.clone() if isinstance(inputs, Tensor) and self.place is not None else inputs
        before = self._versions(handed, list(module.parameters()))
        law = self._ask("at", module, handed)
        if self._versions(handed, list(module.parameters())) != before:
            raise WeightNoiseError(_LOOKS.format(law=self.law, place=self.place))
        return law

    def _own(self, name: str) -> Any:
        found = getattr(self.law, name, None)
        inherited = getattr(type(self.law), name, None) is getattr(Law, name)
        return found if callable(found) and not inherited else None

    def _ask(self, name: str, *args: Any) -> Any:
        own = self._own(name)
        return getattr(Law, name)(self, *args) if own is None else own(*args)

    def _handed(self, name: str, value: Any, *args: Any) -> Any:
        handed = value.clone() if isinstance(value, Tensor) and self.place is not None else value
        if name in _HANDED_DRAWS and args and self.place is not None:  # Edits past autograd are not counted.
            args = (_copied(args[0]), *args[1:])
        before = self._versions(handed, args)
        result = self._ask(name, handed, *args)
        after = self._versions(handed, args)
        if after != before:
            what = self.place if after[0] != before[0] else f"what it drew or learned for {self.place}"
            raise WeightNoiseError(_EDITS.format(law=self.law, what=what))
        return result

    def _versions(self, *values: Any) -> list[int]:
        """How often each tensor was edited: those that count."""
        if self.place is None or torch.compiler.is_compiling():
            return []
        return [-1 if tensor.is_inference() else tensor._version for tensor in _tensors(values)]

    def __repr__(self) -> str:
        return repr(self.law)


_HANDED_DRAWS = ("apply", "redraw", "reread")


def _copied(draw: Any) -> Any:
    """A draw with tensors of its own; what is no tensor, tuple, list or dict as it is."""
    if isinstance(draw, Tensor):
        return draw.clone()
    if type(draw) in (tuple, list):
        return type(draw)(map(_copied, draw))
    return {key: _copied(one) for key, one in draw.items()} if type(draw) is dict else draw


def _handing(name: str) -> Callable[..., Any]:
    def method(self: Completed, *args: Any) -> Any:
        return self._handed(name, *args)

    return method


for _name in (
    "draw",
    "apply",
    "freeze",
    "redraw",
    "reread",
    "strengths",
    "deviation",
    "factor_problem",
    "kl_divergence",
):
    setattr(Completed, _name, _handing(_name))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))


_EDITS = (
    "{law!r} edits {what} in place. A law returns a new tensor and leaves what it is handed as it is: write "
    "weight * 2 for weight.mul_(2), or begin with weight = weight.clone(). It was handed a copy of the weight, so "
    "that no clean weight has changed."
)

_LOOKS = (
    "{law!r} edits the inputs or the Parameters at {place} in place. Its method at(module, inputs) is to look at "
    "them alone: work on a clone() of what it changes. Parameters that it has edited are no longer what they were."
)
