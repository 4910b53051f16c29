"""The command ``weightnoise sweep``: a model, a metric and laws to a report, a table and a figure."""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Any

import torch
from torch import nn

import weightnoise
from weightnoise._activations import noisy_activations
from weightnoise._cli.files import locked, try_to_write, write_whole
from weightnoise._cli.journal import Journal
from weightnoise._cli.load import load_allowed, load_metric, load_model
from weightnoise._cli.notation import read_spec
from weightnoise._cli.output import CommandError, check_extras, say
from weightnoise._random.philox import engine
from weightnoise._robustness.collect import run_plan
from weightnoise._robustness.metric import Metric, fingerprint
from weightnoise._robustness.plan import law_name, make_plan
from weightnoise._robustness.report import RobustnessReport
from weightnoise._weights import noisy_parameters


def run_sweep(options: argparse.Namespace) -> None:
    """Run the command."""
    if options.plot is not None:
        check_extras("--plot", "matplotlib")
    model, metric = load_model(options.model, seed=options.seed), load_metric(options.metric)
    laws = _read_laws(options.laws or [], load_allowed(options.allow))
    for path in filter(None, (options.out, options.plot)):
        try_to_write(path)
    with nullcontext() if options.out is None else locked(options.out):
        report = _measured(options, model, metric, laws)
    print(report)
    if options.out is not None:
        print(f"Report: {options.out}")
    if options.plot is not None:
        figure = report.plot(metric=options.metric.partition(":")[2])
        file = io.BytesIO()
        figure.savefig(file, dpi=150, format=options.plot.suffix[1:].lower())
        write_whole(options.plot, file.getvalue())
        print(f"Plot: {options.plot}")


def _read_laws(texts: Sequence[str], allowed: Sequence[Any]) -> dict[str, Any]:
    laws: dict[str, Any] = {}
    for text in texts:
        law = read_spec(text, allowed)
        if law_name(law) in laws:
            raise CommandError(f"--law {law_name(law)} is given twice")
        laws[law_name(law)] = law
    return laws


def _measured(
    options: argparse.Namespace, model: nn.Module, metric: Metric, laws: Mapping[str, Any]
) -> RobustnessReport:
    """The report of this sweep, as far as it is not there yet."""
    settings: dict[str, Any] = {
        "seed": options.seed,
        "antithetic": options.antithetic,
        "by_parameter": options.by_parameter,
        "until_sem": options.until_sem,
    }
    levels, draws = list(chain.from_iterable(options.levels)), options.draws
    goal = {"threshold": options.threshold, "higher_is_better": not options.lower_is_better}
    noise = [*noisy_parameters(model).items(), *noisy_activations(model).items()]
    if not laws and not noise:
        raise CommandError("the model carries no noise of its own: give --law")
    about = {
        "model": options.model,
        "metric": options.metric,
        "laws": list(laws),
        "levels": levels,
        "draws": draws,
        **settings,
        **goal,
        "noise on the model": [f"{name}: {law_name(law)}" for name, law in noise],
        "weights": fingerprint(model),
        "torch": torch.__version__,
        "weightnoise": weightnoise.__version__,
        "engine": engine().partition(" ")[0],  # Without its instruction set, which changes no number.
    }
    journal = Journal(options.out, about, fresh=options.fresh)
    if journal.report is not None:
        say(f"{options.out} is complete; --fresh measures again")
        return journal.report
    if journal.measured:
        say(f"going on after {len(journal.measured)} evaluations")
    plan = make_plan(metric, levels, None, laws or None, draws, **settings, vectorize=False)
    return journal.run(lambda: run_plan(model, plan, **goal, progress=True, store=journal))
