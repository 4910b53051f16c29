"""Writing new values into Parameters, all or none; and how often optimizers have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook


@contextmanager
def written(values: Iterable[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """The values are in the Parameters inside, and stay; if anything fails, what was there before comes back."""
    before: list[tuple[nn.Parameter, Tensor]] = []
    try:
        with torch.no_grad():
            for parameter, value in values:
                before.append((parameter, parameter.clone()))
                parameter.copy_(value)
        yield
    except BaseException:
        for parameter, value in before:
            with torch.no_grad(), suppress(RuntimeError):  # The one that could not be written needs it not.
                parameter.copy_(value)
        raise


STEPS: list[int] = []  # One number, once `optimizer_steps` has been asked.


def optimizer_steps() -> int:
    """How many steps optimizers have made since this was first asked: torch counts no change by a fused one."""
    if not STEPS:
        STEPS.append(0)
        register_optimizer_step_post_hook(_count)
    return STEPS[0]


def _count(*_: object) -> None:
    STEPS[0] += 1
