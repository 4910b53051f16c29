"""Where the draw of a noise comes from: what is held, the chip of its law, or fresh numbers."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from weightnoise._errors import RESIZED, UnsupportedParameterError
from weightnoise._noise.checkpoints import EffectiveControl, Recalled, held_draw
from weightnoise._noise.control import NoiseControl
from weightnoise._noise.draws import Key, Seed, drawing_alone, is_pending
from weightnoise._noise.frames import Frames, taken_from
from weightnoise._noise.learning import Learning
from weightnoise._noise.outside import taken_outside
from weightnoise._random import philox as _engine
from weightnoise._random import seeds as _seeds
from weightnoise._random.common import Common, drawn_with
from weightnoise._torch.modes import computes_numbers
from weightnoise._torch.modules import is_fully_sharded

Memory: TypeAlias = Literal["keep", "recompute"]


class Drawing(Learning):
    """What a noise draws for its weight."""

    control: NoiseControl
    name: str
    memory: Memory
    estimator: str
    takes_keys: bool  # Whether a key can stand for a draw of the law.
    shares: bool  # Whether a draw has numbers in common with another parameter of the layer.
    frames: Frames
    chip_draw: Any = None  # The draw of the law's chip.

    def is_managed(self) -> bool:
        """Whether `fully_shard` manages the owner, and writes the weight of each forward."""
        owner = None if self.owner is None else self.owner()
        return owner is not None and is_fully_sharded(owner)

    def draw(self, weight: Tensor, effective: EffectiveControl, eager: bool = False, kept: Any = None) -> Any:
        """The held draw, the frozen one, or a fresh one.

        Args:
            weight: to draw for.
            effective: what holds for this read.
            eager: whether `may_matter` has said no.
            kept: what the running forward has drawn; None where each read draws.
        """
        if self.built_for is not None and self.built_for != weight.shape:
            # What is learned or frozen would be broadcast, and so the weight.
            raise UnsupportedParameterError(
                RESIZED.format(name=self.name, now=tuple(weight.shape), then=tuple(self.built_for))
            )
        if (held := effective.held) is not None:
            if held.reads is None or not self.shares:
                return held_draw(effective, held, self, weight, self.handed)
            return drawn_with(self._common(kept), held_draw, effective, held, self, weight, self.handed)
        if isinstance(effective, Recalled):
            return effective.fresh(self, lambda: self._fresh(weight, False, kept))
        # Spelt out for a small weight, where a call counts.
        small = not self.shares and self.chip_draw is None and self.memory == "keep"
        if small and weight.numel() < _engine.LEAST:
            return self.handed.draw(weight)
        return self._fresh(weight, eager, kept)

    def _common(self, kept: Any) -> Common:
        if self.estimator != "shared":  # Its rows have signs of their own for each example.
            return Common()
        return Common(layer=taken_outside(self) if kept is None else taken_from(kept, self.tensor_name))

    def _fresh(self, weight: Tensor, eager: bool, kept: Any) -> Any:
        if self.shares:  # No seed can stand for what others have drawn.
            return drawn_with(self._common(kept), self._drawn, weight)
        if self.takes_keys and self.chip_draw is None and _engine.can_fuse(weight, eager):
            on_gpu = _engine._TRITON and _engine.by_triton(weight)
            return Key((_seeds.key(weight.device) if on_gpu else int(_seeds.key()),))
        if self.memory == "recompute" and computes_numbers() and not self.has_key(weight):
            key = _seeds.key()
            if type(key) is Tensor:  # A fake one has no number.
                return Seed(key)
        return self._drawn(weight)

    def has_key(self, weight: Tensor) -> bool:
        """Whether a key stands for a draw where no mode looks on, so that its numbers are the same in a mode."""
        return self.takes_keys and self.chip_draw is None and _engine.can_fuse(weight, True)

    def seeded_draw(self, weight: Tensor, seed: int) -> Any:
        """The draw that belongs to ``seed``, leaving torch's random state as it is."""
        with _seeds.seeded(seed, weight.device), torch.no_grad():
            return self._drawn(weight)

    def _drawn(self, weight: Tensor) -> Any:
        if self.chip_draw is None:
            return self.handed.draw(weight)
        if is_pending(self.chip_draw):
            if weight.is_meta:  # To see shapes.
                return self.handed.drawn(weight, self.handed.freeze(weight, self.name))
            with drawing_alone():
                if is_pending(self.chip_draw):
                    self.chip_draw = self.handed.freeze(weight, self.name)
        return self.handed.drawn(weight, self.chip_draw)
