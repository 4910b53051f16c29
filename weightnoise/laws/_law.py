"""The base of all laws of noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from weightnoise._errors import OptionError
from weightnoise._random import seeds as _seeds
from weightnoise._random.common import Common, drawn_with, layer_of, of_seed
from weightnoise._torch.layers import Layout
from weightnoise.laws._options import with_plain_numbers
from weightnoise.laws._pieces import straight_through as straight_through
from weightnoise.laws._protocols import ActivationLaw as ActivationLaw
from weightnoise.laws._protocols import Noise as Noise
from weightnoise.laws._regions import Regions, Tile, laid_out, regions_problem

if TYPE_CHECKING:
    from typing_extensions import Self  # In typing from Python 3.11 on.


class Law:
    """Everything that is asked of a law, with a default for all but ``apply``.

    A law of your own may inherit it or not: an object with `draw` and `apply` gets the defaults for what it lacks.

    Attributes:
        gradient: ``"straight-through"`` if the gradient at the noisy weight goes to the clean one unchanged.
        sign_symmetric: whether ``w + x`` is as likely as ``w - x``, also where only some rows and columns of the
            noise change sign. ``estimator="flipout"`` refuses other laws.
        chip: with a number, the draw is frozen: that of this specimen of the hardware.
        of_chip: whether the draw is the hardware's and not a reading's, for ``hold_noise(reads="fresh")``.
        parts: the laws that a wrapper is made of. What they learn, freeze, refuse and look at is then the
            wrapper's too. Its draw is that of its part, or the tuple of those of several.
        normal_draw: whether all of the draw is standard normal numbers, for holds that move on in time.
        takes_keys: whether ``apply_key`` and ``apply_to_rows`` make the numbers; for the library's laws alone.
        bitwise: whether it changes bits of the dtype itself, so that no noise rounds away.
        common: with whom its draw has numbers in common: a ``"group"`` of parameters, or those of its ``"layer"``.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        check = vars(cls).get("__post_init__")
        if check is not None and cls.__module__.startswith(f"{__package__}."):
            cls.__post_init__ = with_plain_numbers(check)  # type: ignore[attr-defined]

    gradient: str = "exact"
    sign_symmetric: bool = False
    chip: int | None = None
    of_chip: bool = False
    parts: tuple[Law, ...] = ()
    normal_draw: bool = False
    takes_keys: bool = False
    bitwise: bool = False
    common: str | None = None
    per: Any = "tensor"
    tile: Tile = None
    regions: Any = "tensor"  # What `per` and `tile` say together.
    apply_key: Callable[..., Tensor]
    apply_to_rows: Callable[..., Tensor]
    apply_part: Any = None  # See `Gaussian.apply_part`.

    def draw(self, weight: Tensor) -> Any:
        """Random numbers for ``weight``: see `Noise`. Of a wrapper, those of its parts."""
        return _joined([part.draw(weight) for part in self.parts])

    def independent(self) -> Law:
        """A law that does the same to each weight alone, with numbers of its own for each."""
        return self.around(tuple(part.independent() for part in self.parts)) if self.parts else self

    def apply(self, weight: Tensor, noise: Any, factor: float) -> Tensor:
        """The noisy weight: see `Noise`; a law that learns gets ``strengths`` as a fourth argument."""
        raise NotImplementedError(f"{self!r} has no method apply(weight, noise, factor).")

    def apply_over(self, weight: Tensor, noise: Any, factor: float) -> Tensor:
        """`apply` without a gradient, to a draw that is not needed any more: the result may take its memory."""
        return self.apply(weight, noise, factor)

    def strengths(self, weight: Tensor) -> dict[str, Tensor]:
        """Initial values of what it learns on ``weight``, by name: they become Parameters.

        ``apply`` gets them as a fourth argument, a mapping of the same names; without it, it takes the initial
        values. ``std`` of the part in place 1 of several is called ``std_1``.
        """
        return {
            f"{n}{self.end(i)}": t for i, part in enumerate(self.parts) for n, t in part.strengths(weight).items()
        }

    def given(self, weight: Tensor) -> dict[str, Tensor]:
        """Tensors from outside by name, for ``apply`` beside the strengths: they become buffers."""
        return {f"{n}{self.end(i)}": t for i, part in enumerate(self.parts) for n, t in part.given(weight).items()}

    def named(self, names: Sequence[str]) -> Self:
        """The law for the parameter of these names."""
        return self._of([part.named(names) for part in self.parts])

    def own(self, place: int, strengths: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Select the strengths that the part in ``place`` learns, under its own names."""
        end, given = self.end(place), strengths or {}
        return {name.removesuffix(end): value for name, value in given.items() if name.endswith(end)}

    def deviation(self, weight: Tensor, strengths: Mapping[str, Tensor] | None = None) -> Tensor | None:
        """The standard deviation at factor 1, if the noise is Gaussian, independent for each weight and linear.

        Of either sign, in a shape that broadcasts against the weight. ``estimator="local"`` refuses None.
        """
        return None

    def kl_divergence(self, weight: Tensor, strengths: Mapping[str, Tensor]) -> Tensor | None:
        """Compute this weight's term in `kl_divergence` of the model, in nats; None where the law has none."""
        return None

    def freeze(self, weight: Tensor, name: str) -> Any:
        """The draw of the chip for the parameter ``name``; None for a law that has no chip.

        It depends on the chip's number and on the name alone, and leaves torch's random state as it was.
        """
        if self.chip is not None:
            own, layer = (_seeds.derive_seed(self.chip, one) for one in (name, f"layer {layer_of(name)}"))
            with _seeds.seeded(own, weight.device), torch.no_grad():
                return drawn_with(Common(self.chip, of_seed(layer)), self.draw, weight)
        several = len(self.parts) > 1
        frozen = [
            part.freeze(weight, f"{name}[{place}]" if several else name) for place, part in enumerate(self.parts)
        ]
        return None if all(drawn is None for drawn in frozen) else _joined(frozen)

    def redraw(self, weight: Tensor, frozen: Any) -> Any:
        """The draw of another forward on the same chip: what is frozen stays."""
        if not self.parts:
            return frozen
        return _joined([part.drawn(weight, own) for part, own in self._shared_out(frozen)])

    def reread(self, weight: Tensor, held: Any) -> Any:
        """The draw of another reading of the hardware that is held: what belongs to the chip stays."""
        if self.of_chip or self.chip is not None:
            return self.redraw(weight, held)
        if not self.parts:
            return self.draw(weight)
        return _joined([part.reread(weight, own) for part, own in self._shared_out(held)])

    def moved_on(self, held: Any, fresh: Sequence[Any], join: Callable[[Tensor, list[Tensor]], Tensor]) -> Any:
        """The draw that ``join`` makes of a held one and others of the same chip, whose own stays."""
        if self.normal_draw or all(one is held for one in fresh):
            return _leaf_by_leaf(held, fresh, join)
        if not self.parts:
            raise OptionError(NO_PATH.format(law=self))
        of_each = zip(self._shared_out(held), *map(self._shared_out, fresh), strict=True)
        return _joined([part.moved_on(own, [one for _, one in rest], join) for (part, own), *rest in of_each])

    @property
    def has_chip_part(self) -> bool:
        """Whether some of its draw belongs to the hardware, and not to a reading."""
        return self.of_chip or self.chip is not None or any(one.has_chip_part for one in self.inside)

    def shares(self, *common: str) -> bool:
        """Whether some of its draw has numbers in common with a ``"group"`` or the ``"layer"``."""
        return self.common in common or any(one.shares(*common) for one in self.inside)

    def drawn(self, weight: Tensor, frozen: Any) -> Any:
        """The draw of one forward; ``frozen`` is None where no chip has frozen anything."""
        return self.draw(weight) if frozen is None else self.redraw(weight, frozen)

    def problem(self, weight: Tensor) -> str | None:
        """Why it does not fit a parameter, or None; asked before a model is touched."""
        return regions_problem(self.regions, weight) or _first(part.problem(weight) for part in self.parts)

    def factor_problem(self, factor: float) -> str | None:
        """Why its strength cannot be multiplied by ``factor``, or None; asked where it is set."""
        return _first(part.factor_problem(factor) for part in self.parts)

    def module_problem(self, module: nn.Module, at: str) -> str | None:
        """Why it does not fit the activations of a module, or None."""
        if isinstance(self.regions, Regions):
            return (
                "per='output' is for outputs of Linear, Conv and Embedding layers, per='input' for inputs of "
                "Linear and Conv layers, and tile for weights alone. Give the dimension, such as per=-1"
            )
        return _first(part.module_problem(module, at) for part in self.parts)

    def at(self, module: nn.Module, inputs: Tensor) -> Noise:
        """The law for one call of a module, on activations: see `ActivationLaw`."""
        return self.around(tuple(part.at(module, inputs) for part in self.parts)) if self.parts else self

    def around(self, parts: tuple[Noise, ...]) -> Law:
        """The same wrapper of other parts."""
        raise NotImplementedError(f"{self!r} has no method around(parts).")

    def laid_out(self, layout: Layout | None) -> Self:
        """The law for a tensor whose outputs and inputs lie so: see `per` and ``tile``."""
        of_parts = self._of([part.laid_out(layout) for part in self.parts])
        return of_parts if of_parts is not self else laid_out(self, layout)

    def _of(self, parts: list[Any]) -> Self:
        same = all(one is other for one, other in zip(parts, self.parts, strict=True))
        return self if same else self.around(tuple(parts))  # type: ignore[return-value]  # Of its own kind.

    def plain(self) -> Law:
        """The one part that this law is the same as, or the law itself."""
        return self

    def says(self, name: str) -> bool:
        """Whether the law, or one inside it, has a method of its own in place of a default."""
        return getattr(type(self), name) is not getattr(Law, name) or any(one.says(name) for one in self.inside)

    @property
    def inside(self) -> tuple[Law, ...]:
        """The laws that it is made of."""
        return self.parts

    @property
    def freezes(self) -> bool:
        """Whether a chip freezes something of its draw."""
        return self.chip is not None or self.says("freeze") or any(one.freezes for one in self.inside)

    def _shared_out(self, draw: Any) -> Iterable[tuple[Law, Any]]:
        several = draw if draw is not None else [None] * len(self.parts)
        return zip(self.parts, (draw,) if len(self.parts) == 1 else several, strict=True)

    def end(self, place: int) -> str:
        """Return the end of the names of what the part in ``place`` learns."""
        return f"_{place}" if len(self.parts) > 1 else ""


def _joined(of_parts: list[Any]) -> Any:
    return of_parts[0] if len(of_parts) == 1 else tuple(of_parts)


def _first(problems: Iterable[str | None]) -> str | None:
    return next((found for found in problems if found), None)


def _leaf_by_leaf(held: Any, fresh: Sequence[Any], join: Callable[[Tensor, list[Tensor]], Tensor]) -> Any:
    if all(one is held for one in fresh):
        return held
    if isinstance(held, tuple):
        return tuple(_leaf_by_leaf(own, others, join) for own, *others in zip(held, *fresh, strict=True))
    return join(held, list(fresh))


NO_PATH = (
    "{law!r} does not draw normal numbers, so that its draw cannot move a part of the way. Use rho=0 for noise "
    "that is drawn anew, or a law such as Gaussian."
)


def is_law(value: object) -> bool:
    """Whether a value can stand as a law in a spec."""
    return isinstance(value, (Noise, ActivationLaw)) and not isinstance(value, type)


def apply_law(law: Noise, weight: Tensor, noise: Any, factor: float, strengths: Mapping[str, Tensor]) -> Tensor:
    """The noisy weight, for laws that learn a strength and for those that do not."""
    if strengths:
        noisy: Tensor = law.apply(weight, noise, factor, strengths)  # type: ignore[call-arg]
        return noisy
    return law.apply(weight, noise, factor)
