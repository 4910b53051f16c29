"""Contexts on the noise of a model: they are entered, left, entered again, and put around functions.

While one is open, its say lies on every noise of the model. What holds is worked out from all that are open, so
they nest and close in any order.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import torch

from weightnoise._errors import AbandonedContextWarning, SpecError
from weightnoise._noise.control import NoiseControl, Override
from weightnoise._noise.decorating import decorated
from weightnoise.laws import Law, Noise

if TYPE_CHECKING:
    from typing_extensions import Self  # In typing from Python 3.11 on.


class AnyNoise(Protocol):
    """Noise on a weight or on activations."""

    name: str
    law: Noise
    handed: Law
    control: NoiseControl


Overrides: TypeAlias = list[tuple[AnyNoise, Override]]
FunctionT = TypeVar("FunctionT")


@dataclass(eq=False)
class Entry:
    """The overrides that one entry of a context has added to the noises.

    Attributes:
        overrides: for each noise, what the context says about it.
        thread: who entered.
        resets: how often a hold has drawn anew.
        hook: what counts the forwards of a hold that moves on with them.
    """

    overrides: Overrides
    thread: int = 0
    resets: int = 0
    hook: Any = None


class NoiseContext:
    """A context manager, also usable as a decorator; it may be entered again while it is open.

    The noises are looked up on entry, so a context may be made before noise is added. Around a generator or an
    asynchronous function it is open while the body runs, and not while that waits; each call is one entry, so
    that its draw is held from beginning to end.
    """

    def __init__(self, open_overrides: Callable[[], Overrides]) -> None:
        self._open_overrides = open_overrides
        self._entries: list[Entry] = []

    def __enter__(self) -> Self:
        return self._lay(Entry(self._open_overrides()))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        entry = None
        try:
            entry = self._latest()
            self._lift(entry)
        except BaseException:  # An interrupt half-way: noise must not stay switched.
            self._lift(entry or self._latest())
            raise
        self._left(entry, kind)

    def _left(self, entry: Entry, kind: type[BaseException] | None) -> None:
        """Warn of what went wrong inside, now that the context is closed."""
        if kind is GeneratorExit:
            warnings.warn(_ABANDONED, AbandonedContextWarning, stacklevel=3)

    def __call__(self, function: FunctionT) -> FunctionT:
        """The function, method or coroutine function with its body inside the context."""
        return decorated(function, lambda: _EntryOfCall(self))

    def _lay(self, entry: Entry) -> Self:
        entry.thread = _thread()
        try:
            self._entries.append(entry)
            lay(entry.overrides)
            return self
        except BaseException:  # An interrupt too, up to the last line.
            self._lift(entry)
            raise

    def _lift(self, entry: Entry) -> None:
        """Take back what an entry has laid; it may be done twice."""
        if entry in self._entries:
            self._entries.remove(entry)
        lift(entry.overrides)

    def _latest(self) -> Entry:
        """The innermost entry of this thread; the innermost of all where another thread leaves for it."""
        thread = _thread()
        for entry in reversed(self._entries):
            if entry.thread == thread:
                return entry
        return self._entries[-1]


class _EntryOfCall:
    """A context around one call of a function, entered again with the same overrides whenever its body goes on."""

    def __init__(self, context: NoiseContext) -> None:
        self._context = context
        self._entry = Entry([])
        self._made = False

    def __enter__(self) -> None:
        if not self._made:
            self._entry.overrides = self._context._open_overrides()
            self._made = True
        self._context._lay(self._entry)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        entry = self._entry
        try:
            self._context._lift(entry)
        except BaseException:
            self._context._lift(entry)
            raise


def _thread() -> int:
    return 0 if torch.compiler.is_compiling() else threading.get_ident()  # Dynamo knows no threads.


def lay(overrides: Overrides) -> None:
    """Let a context have its say on each noise; an error where the strength cannot be what it makes of it."""
    for noise, override in overrides:
        noise.control.add(override)
    problems = dict.fromkeys(noise.handed.factor_problem(noise.control.factor) for noise, _ in overrides)
    if problems.keys() - {None}:
        raise SpecError(*(f"{problem}." for problem in problems if problem))


def lift(overrides: Overrides) -> None:
    """Take that back."""
    for noise, override in overrides:
        noise.control.discard(override)


_ABANDONED = (
    "A context on noise was closed with the generator that had it open when it was given up, and until now it "
    "has switched or held the noise for everybody. Do not yield inside a context: decorate the generator with "
    "it, which opens it while the body runs."
)
