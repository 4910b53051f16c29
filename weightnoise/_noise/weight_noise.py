"""The module that torch's parametrization calls: one law on one parameter, and what is on or held."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from weightnoise._noise.checkpoints import EffectiveControl, effective_control
from weightnoise._noise.control import NoiseControl, When
from weightnoise._noise.drawing import Drawing, Memory
from weightnoise._noise.draws import (
    PENDING,
    PER_EXAMPLE,
    apply_draw,
    moved,
)
from weightnoise._noise.frames import NOT_DRAWN, NOTHING, Frames, was_offloaded
from weightnoise._noise.held import HeldDraw
from weightnoise._noise.learning import Ties
from weightnoise._noise.memory_recompute import Recomputed
from weightnoise._noise.outside import CLEAN, kept_outside
from weightnoise._noise.over_mesh import is_over_mesh, noisy_over_mesh
from weightnoise._noise.precision import Lookout, look_while_tracing
from weightnoise._noise.recipe import tensors_in
from weightnoise._noise.remaking import recomputable
from weightnoise._noise.resting import Made, can_rest
from weightnoise._torch.dtensors import stand_in
from weightnoise._torch.export import refuse_export, refuse_onnx
from weightnoise._torch.forwards import reads_weight
from weightnoise._torch.layers import Layout
from weightnoise._torch.modes import in_transform, may_matter, runs_eagerly
from weightnoise._torch.modules import is_dtensor
from weightnoise.laws import Noise
from weightnoise.laws._complete import complete, has_user_law

Estimator: TypeAlias = Literal["shared", "flipout", "local"]

_STRIDED = torch.strided


class WeightNoise(Drawing):
    """A law on one parameter, in the form that torch's parametrization calls.

    It has no ``right_inverse``: torch would write noise into the trained weight through it.
    """

    def __init__(
        self,
        law: Noise,
        name: str,
        when: When,
        frames: Frames,
        padding_row: int | None = None,
        estimator: Estimator = "shared",
        memory: Memory = "keep",
        layout: Layout | None = None,
        batch_dim: int = 0,
        names: tuple[str, ...] = (),
    ) -> None:
        self.owner: weakref.ref[nn.Module] | None = None
        super().__init__()
        self.name = name  # As the model had it when the noise was added.
        self.tensor_name = name.rpartition(".")[2]
        self.frames = frames
        self.padding_row = padding_row
        self.estimator = estimator
        self.memory = memory
        self.batch_dim = batch_dim  # Of what the layer takes in, for flipout.
        self.control = NoiseControl(when)
        self.rests: bool
        self.layout = layout  # Of the parameter in its module.
        self.names = names or (name,)  # Of all uses of the parameter.
        self.law = law
        self.built_for: torch.Size | None = None  # The shape of what is learned or frozen.
        self.alone = True  # While nothing is stacked on it.
        self.lookout = Lookout()
        self.attributes: tuple[str, ...] = ()  # Those of the Parameter, for compiled code, which cannot list them.

    @property
    def training(self) -> bool:
        """Whether the owner is in training mode, whoever has set that, and how."""
        owner = None if self.owner is None else self.owner()
        mode: bool = self.__dict__["_training"] if owner is None else owner.training
        return mode

    @training.setter
    def training(self, mode: bool) -> None:
        self.__dict__["_training"] = mode  # Counts where torch has moved the noise to a module of its own making.

    @property
    def law(self) -> Any:
        """The law, as it stands in the spec."""
        return self._law

    @law.setter
    def law(self, law: Noise) -> None:
        self._law = law
        self.control.rest = []
        self.law_tensors = tuple({id(one): one for one in tensors_in(law)}.values())  # For a recipe to look at.
        # What is asked, and called with a weight.
        self.handed = complete(law, f"parameter '{self.name}'").named(self.names).laid_out(self.layout)
        self.takes_keys = self.handed.takes_keys
        self.shares = self.handed.shares("layer")
        self.rests = not has_user_law(self.handed)  # Such a law may read what it likes.

    def set_up(self, weight: Tensor, strengths: Mapping[str, nn.Parameter], ties: Ties | None = None) -> None:
        """Give the law what it learns on ``weight``, and the draw of its chip."""
        like = stand_in(weight) if is_dtensor(weight) else weight
        self.learn(strengths, self.given(like), ties if strengths else None)
        self.attributes = tuple(name for name in vars(weight) if not name.startswith("_"))  # Dynamo has its own.
        self.lookout = Lookout(None if weight.is_meta or is_dtensor(weight) else weight.dtype)
        self.chip_draw = PENDING if weight.is_meta else self.handed.freeze(like, self.name)
        if self.strength_names or self.chip_draw is not None:
            self.built_for = weight.shape

    def live(self) -> bool:
        """Whether the open contexts leave reads noisy."""
        return self.control.live(self.training)

    def effective(self) -> EffectiveControl | None:
        """Return the control of a read here and now; None while noise is off."""
        return effective_control(self, self.training, self.frames)

    @reads_weight
    def forward(self, weight: Tensor) -> Tensor:
        """The noisy weight, or ``weight`` itself while noise is off and outside of every forward."""
        control = self.control
        at_rest = control.rest  # First: whatever changes later puts another list there.
        if control.off or (control.gated and not self.training):
            return weight
        running = self.frames.running
        eager = not (control.recomputing or may_matter())  # Alone with eager torch, as nearly always.
        kept: Any = running[-1] if running else None
        if kept is None and (running or (kept := kept_outside(self)) is CLEAN):
            return weight
        effective: EffectiveControl | None = control if eager else self.effective()
        plain = type(weight) is nn.Parameter and weight.layout is _STRIDED
        if effective is None or (not plain and is_over_mesh(self.name, weight)):
            return weight if effective is None else noisy_over_mesh(self, weight, effective, kept)
        factor = effective.factor if eager else self._factor_of_graph(effective)
        if eager and (held := effective.held) and not torch.is_grad_enabled() and can_rest(self, held, weight):
            noisy: Tensor = self._put_to_rest(held, weight, factor, at_rest)
        elif kept is None:
            noisy = apply_draw(self, weight, self.draw(weight, effective, eager), factor)
        else:
            # Compiled code cannot see edits of the weight: it applies the law again, and merges what is equal.
            compiling = not eager and torch.compiler.is_compiling()
            version = 0 if compiling or weight.is_inference() else weight._version
            state = None if compiling else (version, torch.is_grad_enabled(), factor)
            noise, noisy, of, before = kept.get(self.tensor_name, NOTHING)
            if noise is NOT_DRAWN or was_offloaded(of, weight):
                noise = self.draw(weight, effective, eager, kept)
            elif noise is PER_EXAMPLE:
                kept[self.tensor_name] = noise, weight, weight, None
                return weight
            elif of is weight and before == state and not compiling:
                return noisy
            if isinstance(kept, Recomputed) and self.memory == "recompute" and kept.applies_to(weight):
                noisy = recomputable(self, weight, noise, factor, kept)
            else:
                noisy = apply_draw(self, weight, noise, factor)
            kept[self.tensor_name] = noise, noisy, weight, state
        if eager or runs_eagerly():
            look = self.lookout
            look.reads += 1
            known = weight.dtype is look.dtype and look.least <= abs(factor) <= look.most
            if not known or look.reads >= look.due:
                look.at(self, weight, noisy, factor)
            if weight.__dict__ and type(noisy) is Tensor:  # Other classes keep their numbers there.
                noisy.__dict__ = weight.__dict__
        return noisy

    def rested(self, weight: Tensor, at_rest: list[Made]) -> Tensor | None:
        """The noisy weight that a read with gradients off may return as it is; None where there is none."""
        running = self.frames.running
        if not (running and running[-1] is not None) or self.control.recomputing or may_matter():
            return None
        return at_rest[0].at_rest(weight)

    def _put_to_rest(self, held: HeldDraw, weight: Tensor, factor: float, at_rest: list[Made]) -> Tensor:
        """The noisy weight of a held draw, for the next reads to return at once where torch counts all changes."""
        noisy, made = held.noisy_weight(self, weight, factor)
        plain = type(noisy) is Tensor and not (self.law_tensors or self.strength_names)
        if made is not None and plain and self.alone and not self.control.gated:
            noisy.__dict__ = weight.__dict__
            at_rest[:] = [made]
        return noisy

    def _factor_of_graph(self, effective: EffectiveControl) -> float:
        refuse_export("weight", self.name)
        if torch.compiler.is_compiling():
            look_while_tracing()
        elif in_transform():
            self.lookout.from_outside(self, effective.factor)
        return self.factor(effective)

    def factor(self, effective: EffectiveControl) -> float:
        """Return the factor of the strength now; negative for the mirrored draw."""
        return self.control.compiled_factor() if torch.compiler.is_compiling() else effective.factor

    def sample(self, weight: Tensor, kept: dict[str, Any] | None = None) -> Tensor:
        """One noisy weight without a gradient, whether noise is on or not; ``kept``: what its layer has drawn."""
        with torch.no_grad():
            return apply_draw(self, weight, self.draw(weight, self.control, kept=kept), self.factor(self.control))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WeightNoise:
        super()._apply(fn, recurse)
        self.chip_draw = moved(self.chip_draw, fn)
        if any(tensor.is_meta for tensor in tensors_in(self.chip_draw)):
            self.chip_draw = PENDING
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "owner": None, "_training": self.training}

    def extra_repr(self) -> str:
        """Return the text that `print(model)` shows."""
        refuse_onnx(self.name, self.live())
        estimator = "" if self.estimator == "shared" else f", estimator={self.estimator!r}"
        memory = "" if self.memory == "keep" else f", memory={self.memory!r}"
        memory += f", batch_dim={self.batch_dim}" if self.batch_dim else ""
        return f"{self.law!r}, when={self.control.when!r}{estimator}{memory}"
