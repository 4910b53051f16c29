"""The budget of the hot path: how many functions of the package one read of a noisy weight calls."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import weightnoise as wn
from weightnoise._random import philox

PACKAGE = str(Path(wn.__file__).parent)


def called(model: nn.Module, x: torch.Tensor) -> list[str]:
    """The functions of the package that one forward calls, in order."""
    model(x)  # What is imported or made the first time.
    names: list[str] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            names.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        model(x)
    finally:
        sys.setprofile(before)
    return names


@pytest.mark.parametrize(
    ("size", "law", "most"),
    [
        (8, wn.Gaussian(0.1), 12),
        pytest.param(
            64,
            wn.Gaussian(0.1),
            16,
            marks=pytest.mark.skipif(philox._LIBRARY is None, reason="the engine was not built: nothing is fused"),
        ),
    ],
    ids=["small", "fused"],
)
def test_calls_of_a_read(size: int, law: wn.Noise, most: int) -> None:
    model = wn.add_weight_noise(nn.Linear(size, size), law)
    names = called(model, torch.randn(2, size))
    assert len(names) <= most, names


@pytest.mark.parametrize("size", [8, 64])
@pytest.mark.parametrize("kind", ["eval", "no_noise"])
def test_calls_of_a_read_while_noise_is_off(kind: str, size: int) -> None:
    model = wn.add_weight_noise(nn.Linear(size, size), wn.Gaussian(0.1), when="training")
    x = torch.randn(2, size)
    if kind == "eval":
        model.eval()
        assert len(called(model, x)) <= 3
    else:
        with wn.no_noise(model):
            assert len(called(model, x)) <= 2
