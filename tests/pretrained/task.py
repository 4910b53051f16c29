"""A pretrained model with labelled data: what every test and the table take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Task:
    """A model in eval mode, its examples, and how many of its answers are right.

    Attributes:
        model: called with ``inputs``.
        inputs: all examples, as the model takes them.
        correct: from the model's output to a boolean for each example.
    """

    model: nn.Module
    inputs: tuple[Tensor, ...]
    correct: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """The share of right answers of a model that is called as ours is."""
        return self.correct(model(*self.inputs)).double().mean().item()


def copy_weights(model: nn.Module, values: dict[str, Tensor]) -> nn.Module:
    """``model`` with these parameters, in eval mode; all of them are given and have the right shapes."""
    model.load_state_dict(values, strict=True)
    return model.eval().requires_grad_(False)
