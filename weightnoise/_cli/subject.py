"""What a command measures: model, metric and laws, and all that the numbers depend on."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import weightnoise
from weightnoise._activations import noisy_activations
from weightnoise._cli.files import locked, try_to_write
from weightnoise._cli.journal import Journal
from weightnoise._cli.load import code_of, load_allowed, load_metric, load_model
from weightnoise._cli.terminal import CommandError, say
from weightnoise._cli.vary import read_laws
from weightnoise._random.philox import engine
from weightnoise._robustness.metric import Metric, model_fingerprint
from weightnoise._robustness.plan import is_function, law_name
from weightnoise._weights import noisy_parameters


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        laws: by name; empty for the noise on the model.
        about: all that the numbers depend on, but for the options of the command.
    """

    model: nn.Module
    metric: Metric
    laws: Mapping[str, Any]
    about: Mapping[str, Any]


def load_subject(options: argparse.Namespace) -> Subject:
    """Load what the options name."""
    model, metric = load_model(options.model, seed=options.seed), load_metric(options.metric)
    laws = read_laws(options.laws or [], load_allowed(options.allow), options.vary)
    for path in filter(None, (options.out, options.plot)):
        try_to_write(path)
    noise = [*noisy_parameters(model).items(), *noisy_activations(model).items()]
    if not laws and not noise:
        raise CommandError("the model carries no noise of its own: give --law")
    about = {
        "model": options.model,
        "metric": options.metric,
        "code of the metric": code_of(metric),
        "laws": list(laws),
        "vary": options.vary,
        "code of the laws": [code_of(law) for law in laws.values() if is_function(law) and options.vary is None],
        "noise on the model": [f"{name}: {law_name(law)}" for name, law in noise],
        "weights": model_fingerprint(model),
        "torch": torch.__version__,
        "weightnoise": weightnoise.__version__,
        "engine": engine().partition(" ")[0],  # Without its instruction set, which changes no number.
    }
    return Subject(model, metric, laws, about)


@contextmanager
def journal(
    path: Path | None, about: Mapping[str, Any], fresh: bool, asked: Mapping[str, Any] | None = None
) -> Iterator[Journal]:
    """What was measured so far, in a file that no other process writes."""
    with nullcontext() if path is None else locked(path):
        kept = Journal(path, about, fresh=fresh, asked=asked)
        if kept.content is not None:
            say(f"{path} is complete; --fresh measures again")
        elif kept.extends:
            say(f"going on from what is in {path}")
        elif kept.measured:
            say(f"going on after {len(kept.measured)} evaluations")
        yield kept
