"""The context of a held draw: other draws are put in its place, and it moves on in time."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from weightnoise._checks import check_count
from weightnoise._errors import ForwardsNotCountedWarning, OptionError
from weightnoise._noise.context import AnyNoise, Entry, NoiseContext, Overrides, lay, lift
from weightnoise._noise.held import HeldDraw
from weightnoise._noise.over_mesh import make_held
from weightnoise._torch.modes import in_backward
from weightnoise._torch.tracing import outside_graphs


class HeldNoise(NoiseContext):
    """The context that `hold_noise` returns; inside, `reset` puts another draw in place, `advance` a later one.

    Args:
        open_overrides: the overrides of the chip of this number.
        weight_of: the clean weight of a noise; None for noise on activations.
        forwards: the module whose forwards are counted, and after how many of them the draw moves on a step.
    """

    def __init__(
        self,
        open_overrides: Callable[[int], Overrides],
        weight_of: Callable[[AnyNoise], Tensor | None],
        forwards: tuple[nn.Module, int] | None = None,
    ) -> None:
        super().__init__(lambda: open_overrides(0))
        self._reopen = open_overrides
        self._weight_of = weight_of
        self._forwards = forwards

    def reset(self, rows: Any = None) -> None:
        """Draw anew and hold that: a new episode, another chip. With a seed, the next of a reproducible series.

        Args:
            rows: for ``estimator="flipout"`` and ``"local"``, where each example of a batch has noise of its own:
                the rows whose noise is made anew, as a mask or as numbers, such as the environments whose episode
                has ended. The others keep theirs. None for all of it.

        Raises:
            OptionError: for rows that are none, or where some noise of the model is one for all rows.
        """
        entry = self._inside("reset")
        if rows is None:
            opened = self._reopen(entry.resets + 1)
            entry.resets += 1
            if entry.hook is not None:
                entry.hook.count = 0
        else:
            opened = _turned(entry.overrides, rows)
        _put(entry, opened)

    def advance(self, steps: int = 1) -> None:
        """Let time pass for the chip that is held: what belongs to a reading moves on, what belongs to it stays.

        With ``rho`` each standard normal number z becomes ``rho^steps z + sqrt(1 - rho^(2 steps)) e``, an AR(1)
        process; for several of them it is the sum of such processes, divided by the root of their number. The
        variance stays 1, and the autocorrelation over k steps is rho^k, or the mean of these. Without ``rho``
        the numbers are drawn anew. Each call draws once for each process, from the seed of the hold.

        Args:
            steps: how many, 1 or more.

        Raises:
            OptionError: for steps that are no whole number from 1 on, for ``reads="fresh"``, where each forward
                draws anew by itself, and for ``rho`` with a law that does not draw normal numbers.
        """
        steps = check_count("advance", "steps", steps, 1)
        self._move_on(self._inside("advance"), steps)

    def _move_on(self, entry: Entry, steps: int) -> None:
        later: dict[int, HeldDraw] = {}
        for noise, override in entry.overrides:
            held = override.held
            assert held is not None
            if held.reads is not None:
                raise OptionError("advance() has nothing to do with reads='fresh': each forward draws anew there.")
            new = later[id(held)] = later.get(id(held)) or held.later(steps)
            weight = self._weight_of(noise)
            if weight is not None:
                make_held(noise, new, weight)
        _put(entry, [(noise, replace(one, held=later[id(one.held)])) for noise, one in entry.overrides])

    def _inside(self, call: str) -> Entry:
        if not self._entries:
            raise RuntimeError(f"{call}() is for use inside `with hold_noise(model) as held:`.")
        return self._latest()

    def _lay(self, entry: Entry) -> Any:
        try:
            if self._forwards is not None:
                model, every = self._forwards
                entry.hook = entry.hook or _Forwards(every, lambda: self._move_on(entry, 1))
                entry.hook.handle = model.register_forward_pre_hook(entry.hook, prepend=True)
            return super()._lay(entry)
        except BaseException:  # An interrupt too, up to the last line.
            self._lift(entry)
            raise

    def _lift(self, entry: Entry) -> None:
        if entry.hook is not None and entry.hook.handle is not None:
            entry.hook.handle.remove()
        super()._lift(entry)

    def _left(self, entry: Entry, kind: type[BaseException] | None) -> None:
        super()._left(entry, kind)
        if kind is None and entry.hook is not None and not entry.hook.total:
            warnings.warn(_NOT_COUNTED, ForwardsNotCountedWarning, stacklevel=3)


class _Forwards:
    """A hook that counts the forwards of a module, and calls a function before every so many; none of copies."""

    def __init__(self, every: int = 1, due: Callable[[], None] | None = None) -> None:
        self.every, self.due = every, due
        self.count = self.total = 0
        self.handle: Any = None
        self._lock = threading.Lock()

    @outside_graphs
    def __call__(self, module: nn.Module, args: Any) -> None:
        """Count one; not where a checkpoint computes its forward again."""
        if self.due is None or in_backward():
            return
        with self._lock:
            if self.count and self.count % self.every == 0:
                self.due()
            self.count += 1
            self.total += 1

    def __deepcopy__(self, memo: object) -> _Forwards:
        return _Forwards()

    def __reduce__(self) -> tuple[type[_Forwards], tuple[()]]:
        return _Forwards, ()


def _put(entry: Entry, opened: Overrides) -> None:
    """Put overrides in the place of those of an entry, between the contexts around it and those inside it."""
    before = entry.overrides
    entry.overrides = [*before, *opened]  # So that leaving takes them all off, whatever happens here.
    was, now = dict(before), dict(opened)
    for noise, override in opened:
        if noise in was:
            noise.control.exchange(was[noise], override)
    lay([(noise, override) for noise, override in opened if noise not in was])
    lift([(noise, override) for noise, override in before if noise not in now])
    entry.overrides = opened


def _turned(overrides: Overrides, rows: Any) -> Overrides:
    """The same overrides, whose held draws have other numbers for some rows."""
    given = torch.as_tensor(rows, device="cpu")
    numbers = given.nonzero().flatten() if given.dtype == torch.bool else given.to(torch.int64)
    if given.ndim != 1 or (given.is_floating_point() and given.numel()) or (numbers < 0).any():
        raise OptionError(f"reset(rows=...) takes a mask or the numbers of rows, got {rows!r}.")
    shared = [repr(noise.name) for noise, override in overrides if getattr(override.held, "key", None) is None]
    if shared:
        raise OptionError(
            "reset(rows=...) is for noise that differs from row to row, estimator='flipout' or 'local'. One "
            f"for all rows is that of {', '.join(shared)}. Leave it clean, or call reset()."
        )
    turned = {id(override.held): override.held.turned(numbers) for _, override in overrides if override.held}
    return [(noise, replace(override, held=turned[id(override.held)])) for noise, override in overrides]


_NOT_COUNTED = (
    "hold_noise(every=...) was left, and has counted no forward of the module that it was given: the noise was "
    "one draw. Give it the module that you call; a compiled model as torch.compile has returned it."
)
