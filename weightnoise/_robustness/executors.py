"""Draws that are measured by many processes, on any executor of `concurrent.futures`."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias
from uuid import uuid4

from torch import nn

from weightnoise._attach.find import every_noise
from weightnoise._errors import OptionError, OptionTypeError, WeightNoiseError, WorkerLostWarning
from weightnoise._robustness.cells import Cell, Found
from weightnoise._robustness.metric import warn
from weightnoise._robustness.plan import Plan
from weightnoise._robustness.running import Make, Rows, Run, asked, is_enough, log_cell, place_of, whole
from weightnoise._robustness.workers import Package, Task, chunks, cores, pack, ready, work

_DEATHS = 3  # Of workers, before it is given up.
_BEGIN: dict[str, Any] = {"initializer": None, "initargs": ()}
Piece: TypeAlias = tuple[Cell, tuple[int, ...]]  # Some draws of a cell.


def check_executor(executor: Any, model: nn.Module) -> None:
    """Refuse what is no executor, a closed one, and a model that would not arrive as it is."""
    if not isinstance(executor, Executor) and not callable(getattr(executor, "submit", None)):
        raise OptionTypeError(
            "evaluate_robustness(executor=...) takes an executor of concurrent.futures, got "
            f"{type(executor).__name__}."
        )
    if any(noise.control.overrides for noise in every_noise(model)):
        raise OptionError(
            "evaluate_robustness(executor=...) does not go inside a context on the noise of the model, which "
            "other "
            "processes would not see. Give scale and seed as levels=... and seed=..., or leave executor=... out."
        )
    try:
        executor.submit(ready).result()
    except RuntimeError as error:
        raise OptionError(
            f"evaluate_robustness(executor=...) takes no work: {error}. Give an open one."
        ) from error


def count_workers(executor: Any) -> int:
    """How many workers an executor has, where it says so; else as many as there are cores."""
    count = getattr(executor, "_max_workers", None)
    return count if isinstance(count, int) and count > 0 else cores()


@dataclass
class _Progress:
    """What is known of one cell, in order.

    Attributes:
        asked: the draws.
        found: those that have come back.
        rows: those up to which all have, until that is enough.
    """

    asked: Sequence[int]
    found: dict[int, Found] = field(default_factory=dict)
    rows: Rows = field(default_factory=dict)
    enough: bool = False

    @property
    def complete(self) -> bool:
        """Whether nothing more is asked."""
        return self.enough or len(self.rows) == len(self.asked)

    def add(self, plan: Plan, number: int, found: Found) -> None:
        """One more draw, whichever comes first."""
        self.found[number] = found
        while not self.enough and len(self.rows) < len(self.asked):
            following = self.asked[len(self.rows)]
            if following not in self.found:
                break
            self.rows[following] = self.found[following]
            self.enough = is_enough(plan, self.rows)


@dataclass
class _Pool:
    """Workers, and what they have been sent.

    Attributes:
        own: whether the executor is one that took the place of a broken one.
        to_send: how many pieces of work still bring the model along, unasked.
        deaths: how often workers have died.
    """

    executor: Any
    package: Package
    token: str
    workers: int
    to_send: int
    own: bool = False
    deaths: int = 0

    @property
    def forked(self) -> bool:
        """Whether workers are forks of this process."""
        context = getattr(self.executor, "_mp_context", None)
        return context is not None and context.get_start_method() == "fork"

    def renew(self, error: BrokenExecutor, lost: int) -> None:
        """Take new workers in the place of those that have died."""
        self.deaths += 1
        if self.deaths > _DEATHS:
            raise WeightNoiseError(
                f"Workers have died {self.deaths} times ({error}). Most often memory is short: give an "
                "executor with "
                "fewer workers. A sweep with --out has kept what was measured before."
            ) from error
        warn(
            f"A worker has died ({error}). {lost} draws that were on their way are done again.", WorkerLostWarning
        )
        context = getattr(self.executor, "_mp_context", None)
        begin = {name: getattr(self.executor, f"_{name}", default) for name, default in _BEGIN.items()}
        self.close()
        self.executor = ProcessPoolExecutor(self.workers, mp_context=context, **begin)
        self.own, self.to_send = True, self.workers

    def close(self) -> None:
        """End workers of our own."""
        if self.own:
            self.executor.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class RemoteRun(Run):
    """An evaluation whose draws are measured by workers.

    The result does not hang on which worker measures what, nor on the order: draws are numbered, and counted in
    order.
    """

    executor: Any
    pools: list[_Pool] = field(default_factory=list)  # The one that was made at the first call.

    def close(self) -> None:
        """End workers of our own."""
        for pool in self.pools:
            pool.close()

    def _pool(self, plan: Plan) -> _Pool:
        if not self.pools:
            workers = count_workers(self.executor)
            self.pools.append(_Pool(self.executor, pack(self.model, plan), uuid4().hex, workers, workers))
        return self.pools[0]

    def __call__(self, plan: Plan, cells: Sequence[Cell]) -> dict[Cell, Rows]:
        """What is found in each draw of each cell."""
        progress: dict[Cell, _Progress] = {}
        waiting: deque[Piece] = deque()
        pool = self._pool(plan)
        for cell in cells:
            progress[cell] = _Progress(asked(plan, cell))
            for number in progress[cell].asked:
                known = self.store.get(cell.key, number)
                if known is not None:
                    progress[cell].add(plan, number, known)
            missing = [number for number in progress[cell].asked if number not in progress[cell].found]
            waiting += [(cell, piece) for piece in chunks(missing, pool.workers, plan.antithetic)]
        _Work(self, pool, plan, progress, waiting).run()
        return {cell: whole(plan, cell, one.rows) for cell, one in progress.items()}


def run_on(executor: Any, model: nn.Module) -> Make:
    """What makes a run: in this process, or on the workers of an executor."""
    if executor is None:
        return Run
    check_executor(executor, model)
    return partial(RemoteRun, executor=executor)


class _Work:
    """Pieces of work on their way to workers and back."""

    def __init__(
        self, run: Run, pool: _Pool, plan: Plan, progress: dict[Cell, _Progress], waiting: deque[Piece]
    ) -> None:
        self.whole, self.pool, self.plan, self.progress, self.waiting = run, pool, plan, progress, waiting
        self.away: dict[Future[Any], Piece] = {}

    def run(self) -> None:
        """Until all is measured; what was submitted is called back after an error."""
        try:
            while self.waiting or self.away:
                try:
                    self._turn()
                except BrokenExecutor as error:
                    self.waiting.extendleft(reversed(self.away.values()))
                    lost = sum(len(numbers) for _, numbers in self.away.values())
                    self.away.clear()
                    self.pool.renew(error, lost)
        finally:
            for future, (cell, numbers) in self.away.items():
                if not future.cancel() and future.done() and future.exception() is None:
                    for number, found in zip(numbers, future.result() or (), strict=False):
                        self.whole.store.put(cell.key, number, found)

    def _turn(self) -> None:
        while self.waiting and len(self.away) < 2 * self.pool.workers:
            piece = self.waiting.popleft()
            if self.progress[piece[0]].enough:
                self.whole.tick.expect(-len(piece[1]))
            else:
                self._submit(piece, with_model=self.pool.to_send > 0)
        if not self.away:
            return
        done, _ = wait(self.away, return_when=FIRST_COMPLETED)
        for future in done:
            answer = future.result()
            piece = self.away.pop(future)
            if answer is None:  # This worker has not seen the model yet.
                self._submit(piece, with_model=True)
            else:
                self._take(*piece, answer)

    def _take(self, cell: Cell, numbers: Sequence[int], answer: Sequence[Found]) -> None:
        was_complete = self.progress[cell].complete
        for number, found in zip(numbers, answer, strict=True):
            self.whole.store.put(cell.key, number, found)
            self.progress[cell].add(self.plan, number, found)
            count = f"{len(self.progress[cell].found)} of {len(self.progress[cell].asked)}"
            self.whole.tick(f"{place_of(self.plan, cell)}, draw {count}")
        if self.progress[cell].complete and not was_complete:
            log_cell(self.plan, cell, whole(self.plan, cell, self.progress[cell].rows))

    def _submit(self, piece: Piece, with_model: bool) -> None:
        pool = self.pool
        task = Task(pool.token, os.getpid(), pool.workers, pool.forked, *piece)
        try:
            self.away[pool.executor.submit(work, task, pool.package if with_model else None)] = piece
        except BaseException:
            self.waiting.appendleft(piece)
            raise
        pool.to_send -= with_model
