"""Metrics that worker processes can import."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import nn

X = torch.linspace(-1, 1, 32).reshape(4, 8)


@torch.no_grad()
def total(model: nn.Module) -> float:
    """The sum of the outputs."""
    return model(X).sum().item()


def with_noise(model: nn.Module) -> dict[str, float]:
    """One that draws itself, and has several entries."""
    return {"total": total(model) + torch.rand(()).item(), "threads": float(torch.get_num_threads())}


class Meeting:
    """One that in the other processes waits until two of them measure, as a folder tells."""

    def __init__(self, folder: Path, home: int) -> None:
        self.folder, self.home = folder, home

    def __call__(self, model: nn.Module) -> float:
        if os.getpid() == self.home:
            return total(model)
        (self.folder / str(os.getpid())).touch()
        latest = time.monotonic() + 60
        while len(list(self.folder.iterdir())) < 2:
            if time.monotonic() > latest:
                raise TimeoutError("No second process came.")
            time.sleep(0.01)
        return total(model)


class Deadly:
    """One that takes its process with it, a number of times, counted in a folder."""

    def __init__(self, folder: Path, times: int, home: int) -> None:
        self.folder, self.times, self.home = folder, times, home

    def __call__(self, model: nn.Module) -> float:
        if os.getpid() != self.home:
            died = len(list(self.folder.iterdir()))
            if died < self.times:
                (self.folder / f"{os.getpid()}-{time.monotonic_ns()}").touch()
                os._exit(1)
        return total(model)


class Failing:
    """One that raises in the other processes."""

    def __init__(self, home: int) -> None:
        self.home = home

    def __call__(self, model: nn.Module) -> float:
        if os.getpid() != self.home:
            raise ZeroDivisionError("mine")
        return total(model)


class Counted(nn.Linear):
    """A layer that notes in a folder that a process has made it from a pickle."""

    folder: str = ""

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        (Path(self.folder) / f"{os.getpid()}-{time.monotonic_ns()}").touch()
