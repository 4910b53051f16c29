"""Running statistics of batch normalisation, gathered anew for each chip."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from weightnoise._errors import OptionError, OptionTypeError
from weightnoise._torch.modules import forward_of, state_kept


def check_recalibration(model: nn.Module, loader: Any) -> None:
    """Refuse what gives its batches only once, and a model that has nothing to gather."""
    if loader is None:
        return
    if not callable(loader) and (not isinstance(loader, Iterable) or iter(loader) is loader):
        raise OptionTypeError(
            "evaluate_robustness(recalibrate=...) takes a DataLoader or a list of batches, which are gone "
            "through for "
            f"each chip, or a function of the model, got {type(loader).__name__}."
        )
    if not _norms(model):
        raise OptionError(
            "evaluate_robustness(recalibrate=...) gathers the running statistics of batch normalisation, and "
            "the model "
            "has none."
        )


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [one for one in model.modules() if isinstance(one, _BatchNorm) and one.running_mean is not None]


@contextmanager
def recalibrated(model: nn.Module, loader: Any) -> Iterator[None]:
    """The model with running statistics that are plain means over the batches; those before go back."""
    if loader is None:
        yield
        return
    with state_kept(model):
        _gather(model, loader)
        yield


def _gather(model: nn.Module, loader: Any) -> None:
    norms = _norms(model)
    momenta = [one.momentum for one in norms]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        for one in norms:
            one.reset_running_stats()
            one.momentum = None  # A mean over all batches.
            one.train()
        with torch.no_grad():
            if callable(loader) and not isinstance(loader, Iterable):
                loader(model)
            else:
                for batch in loader:
                    forward_of(model, batch)
        if any(one.num_batches_tracked is not None and one.num_batches_tracked == 0 for one in norms):
            raise OptionError(
                "evaluate_robustness(recalibrate=...) has given no batch to some batch normalisation."
            )
    finally:
        for one, momentum in zip(norms, momenta, strict=True):
            one.momentum = momentum
        for module, training in modes:
            module.training = training
