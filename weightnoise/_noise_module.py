"""The module that torch's parametrization calls: one law on one parameter, and what is on or held."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from weightnoise import _engine, _random
from weightnoise._errors import LearnedStrengthWarning, UnsupportedParameterError
from weightnoise._export import refuse_export
from weightnoise._switch import Switch, When
from weightnoise.laws import Noise, apply_law, freeze, redraw

Estimator: TypeAlias = Literal["shared", "flipout", "local"]

# In place of a draw, where the reads of a forward are clean and the noise goes on its output.
PER_EXAMPLE = "per example"

# In place of the draw of a chip, while the weight is on the meta device.
_PENDING = "pending"

# One parameter in a running forward: its draw, the noisy weight made from it, and what else that was made
# from: the clean weight, its version, whether gradients were enabled, and the factor. A plain tuple: it is
# made at every forward.
Kept: TypeAlias = tuple[Any, Tensor, Tensor, tuple[int, bool, float] | None]


class Scope(threading.local):
    """What was drawn in the running forwards of one module, innermost last: empty at rest.

    None stands for a stretch in which reads are clean. Per thread, because threads may share a
    model, and because the replicas of `nn.DataParallel` share everything that is no parameter.
    """

    def __init__(self) -> None:
        self.running: list[dict[str, Any] | None] = []

    def __reduce__(self) -> tuple[type[Scope], tuple[()]]:
        return Scope, ()


class Key(int):
    """In place of a draw: what its numbers are a function of, where they are made and added in one pass."""


class CleanRow(torch.autograd.Function):
    """A noisy embedding with one row of the clean one, whose gradient is zero anyway.

    The gradient passes as it comes, so that sparse ones stay sparse.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(noisy: Tensor, weight: Tensor, row: int) -> Tensor:
        """A copy: the law may have returned the weight itself, or need its result in the backward."""
        output = noisy.clone()
        output[row] = weight[row]
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """All of it goes to the noisy weight."""
        return grads[0], None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        """All of it comes from the noisy weight."""
        tangent: Tensor = tangents[0].clone()
        return tangent


class WeightNoise(nn.Module):
    """A law on one parameter, in the form that torch's parametrization calls.

    It has no ``right_inverse``: torch would write noise into the trained weight through it.
    """

    def __init__(
        self,
        law: Noise,
        name: str,
        when: When,
        scope: Scope,
        clean_row: int | None = None,
        estimator: Estimator = "shared",
    ) -> None:
        super().__init__()
        self.law = law
        self.name = name  # As the model had it when the noise was added.
        self.tensor_name = name.rpartition(".")[2]
        self.scope = scope
        self.clean_row = clean_row
        self.estimator = estimator
        self.switch = Switch(when)
        self.frozen: Any = None  # The draw of the law's chip.
        self.strength_names: tuple[str, ...] = ()
        self.fused: Any = getattr(law, "fused", None)
        self.made_for: torch.Size | None = None  # The shape of what is learned or frozen.

    def equip(self, weight: Tensor, strengths: Mapping[str, nn.Parameter]) -> None:
        """Give the law what it learns on ``weight``, and the draw of its chip."""
        for name, parameter in strengths.items():
            self.register_parameter(name, parameter)
        self.strength_names = tuple(strengths)
        self.frozen = _PENDING if weight.is_meta else freeze(self.law, weight, self.name)
        if strengths or self.frozen is not None:
            self.made_for = weight.shape

    def live(self) -> bool:
        """Whether a read is noisy now."""
        switch = self.switch
        return not switch.off and (self.training or not switch.gated)

    def forward(self, weight: Tensor) -> Tensor:
        """The noisy weight, or ``weight`` itself while noise is off."""
        switch = self.switch
        if switch.off or (switch.gated and not self.training):
            return weight
        running = self.scope.running
        kept = None
        if running:
            kept = running[-1]
            if kept is None:
                return weight
        if type(weight) is not nn.Parameter and is_dtensor(weight):
            if kept is None:
                return weight  # FSDP2 looks at its sharded Parameter between forwards.
            raise UnsupportedParameterError(_DTENSOR.format(name=self.name))
        refuse_export("weight", self.name)
        if kept is None:
            return self.make_noisy(weight, self.draw(weight))
        # Compiled code cannot see edits of the weight: it applies the law again, and merges what comes out equal.
        compiling = torch.compiler.is_compiling()
        state = None if compiling else _state(weight, switch.factor)
        last: Kept | None = kept.get(self.tensor_name)
        if last is None:
            noise = self.draw(weight)
        else:
            noise, noisy, of, before = last
            if noise is PER_EXAMPLE:
                kept[self.tensor_name] = noise, weight, weight, None
                return weight
            if of is weight and before == state and not compiling:
                return noisy
        noisy = self.make_noisy(weight, noise)
        kept[self.tensor_name] = noise, noisy, weight, state
        return noisy

    def factor(self) -> float:
        """What multiplies the strength now; negative for the mirrored draw."""
        return self.switch.compiled_factor() if torch.compiler.is_compiling() else self.switch.factor

    def make_noisy(self, weight: Tensor, noise: Any, factor: float | None = None) -> Tensor:
        """Apply the law to a draw, leaving an embedding's padding row clean."""
        if factor is None:
            factor = self.switch.compiled_factor() if torch.compiler.is_compiling() else self.switch.factor
        if type(noise) is Key:
            noisy: Tensor = self.fused(weight, noise, factor)
        elif self.strength_names:
            noisy = apply_law(self.law, weight, noise, factor, self.strengths())
        else:
            noisy = self.law.apply(weight, noise, factor)
        if self.clean_row is None:
            return noisy
        padded: Tensor = CleanRow.apply(noisy, weight.detach(), self.clean_row)  # type: ignore[no-untyped-call]
        return padded

    def sample(self, weight: Tensor) -> Tensor:
        """One noisy weight without a gradient, whether noise is on or not."""
        with torch.no_grad():
            return self.make_noisy(weight, self.draw(weight))

    def strengths(self) -> dict[str, Tensor]:
        """What the law has learned, by name."""
        return {name: getattr(self, name) for name in self.strength_names}

    def draw(self, weight: Tensor) -> Any:
        """The held draw, the frozen one, or a fresh one."""
        if self.made_for is not None and self.made_for != weight.shape:
            # What is learned or frozen would be broadcast, and so the weight.
            raise UnsupportedParameterError(
                _RESIZED.format(name=self.name, now=tuple(weight.shape), then=tuple(self.made_for))
            )
        held = self.switch.held
        if held is not None:
            return held.take(self.law, weight)
        if self.frozen is None:
            if self.fused is not None and _engine.fuses(weight):
                return Key(_random.key())
            return self.law.draw(weight)
        if isinstance(self.frozen, str):
            self.frozen = freeze(self.law, weight, self.name)
        return redraw(self.law, weight, self.frozen)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WeightNoise:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.frozen = _moved(self.frozen, fn)
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        missing: list[str] = []
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing, unexpected_keys, error_msgs
        )
        if len(missing) == len(self.strength_names) > 0:
            # One text for all of them, so that Python shows it once.
            warnings.warn(_PLAIN_CHECKPOINT, LearnedStrengthWarning, stacklevel=2)
        else:
            missing_keys += missing

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        estimator = "" if self.estimator == "shared" else f", estimator={self.estimator!r}"
        return f"{self.law!r}, when={self.switch.when!r}{estimator}"


_PLAIN_CHECKPOINT = (
    "The checkpoint holds no learned noise strengths, as one of the plain model: they keep the values they have. "
    "weightnoise.learned_strengths(model) has their names."
)

_RESIZED = (
    "Parameter '{name}' has the shape {now} now, and its noise learned or froze something for the shape {then}. "
    "Call weightnoise.remove_weight_noise(model) and add the noise again."
)

_DTENSOR = (
    "Parameter '{name}' is a DTensor inside the forward of its module (tensor parallelism), where "
    "weight noise is not supported. Call weightnoise.remove_weight_noise(model) before parallelize_module, "
    "or use fully_shard, whose weights are whole inside the forward."
)


def _state(weight: Tensor, factor: float) -> tuple[int, bool, float]:
    # Inference tensors count no versions.
    return 0 if weight.is_inference() else weight._version, torch.is_grad_enabled(), factor


def _moved(draw: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """A frozen draw on the device to which ``fn`` moves tensors; its dtype and its numbers stay."""
    if isinstance(draw, tuple):
        return tuple(_moved(part, fn) for part in draw)
    return draw.to(fn(draw.new_empty(0)).device) if isinstance(draw, Tensor) else draw


def is_dtensor(weight: object) -> bool:
    """Whether it is a tensor over several processes."""
    # By its interface: importing torch.distributed.tensor takes long, and its place has moved.
    return hasattr(weight, "device_mesh") and hasattr(weight, "placements")
