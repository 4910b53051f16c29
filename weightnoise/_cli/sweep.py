"""The commands that measure: ``weightnoise sweep`` and ``weightnoise tolerance``."""

from __future__ import annotations

import argparse
import io
from itertools import chain
from pathlib import Path
from typing import Any

from weightnoise._cli.files import write_whole
from weightnoise._cli.jobs import executor, of_shard
from weightnoise._cli.output import CommandError, check_extras
from weightnoise._cli.subject import journal, load_subject
from weightnoise._robustness.collect import run_plan
from weightnoise._robustness.plan import make_plan
from weightnoise._robustness.report import RobustnessReport
from weightnoise._robustness.tolerance import make_goal, make_limits, run_search


def run_sweep(options: argparse.Namespace) -> None:
    """Run the command."""
    if options.plot is not None:
        check_extras("--plot", "matplotlib")
    subject = load_subject(options)
    settings: dict[str, Any] = {
        "seed": options.seed,
        "antithetic": options.antithetic,
        "by_parameter": options.by_parameter,
        "until_sem": options.until_sem,
        "reads": options.reads,
    }
    levels = list(chain.from_iterable(options.levels))
    draws = of_shard(options.draws, options.shard, options.antithetic)
    goal = {"threshold": options.threshold, "higher_is_better": not options.lower_is_better}
    about = {**subject.about, "levels": levels, "draws": options.draws, "shard": options.shard, **settings, **goal}
    with journal(options.out, about, options.fresh) as kept:
        if kept.content is None:
            plan = make_plan(
                subject.metric, levels, None, subject.laws or None, draws, **settings, vectorize=False
            )
            with kept.saved(), executor(options) as workers:
                report = run_plan(subject.model, plan, **goal, progress=True, store=kept, executor=workers)
            kept.finish(report.to_dict())
        else:
            report = RobustnessReport.from_dict(kept.content)
    show(report, str(report), options.metric, options.out, options.plot)


def run_tolerance(options: argparse.Namespace) -> None:
    """Run the command."""
    if options.plot is not None:
        check_extras("--plot", "matplotlib")
    subject = load_subject(options)
    if len(subject.laws) > 1:
        raise CommandError("a tolerance is that of one law: give --law once")
    asked = {name: getattr(options, name) for name in ("at_least", "at_most", "quantile", "chip_yield")}
    limits = make_limits(options.first, options.highest, options.resolution)
    settings: dict[str, Any] = {"seed": options.seed, "antithetic": options.antithetic, "reads": options.reads}
    goal = make_goal(**asked)
    about = {**subject.about, "draws": options.draws, **settings, **asked, **limits, "of": "tolerance"}
    with journal(options.out, about, options.fresh) as kept:
        if kept.content is None:
            law = next(iter(subject.laws.values()), None)
            plan = make_plan(
                subject.metric, [0.0], law, None, options.draws, **settings, by_parameter=False, until_sem=None,
                vectorize=False,
            )  # fmt: skip
            with kept.saved(), executor(options) as workers:
                found = run_search(
                    subject.model, plan, goal, limits, 0.95, progress=True, store=kept, executor=workers
                )
            kept.finish({**found.report.to_dict(), "tolerance": str(found)})
            report, said = found.report, str(found)
        else:
            report, said = RobustnessReport.from_dict(kept.content), str(kept.content.get("tolerance"))
    show(report, f"{report}\n{said}", options.metric, options.out, options.plot)


def show(report: RobustnessReport, text: str, metric: str, out: Path | None, plot: Path | None) -> None:
    """Print a report, and say where it is; draw it."""
    print(text)
    if out is not None:
        print(f"Report: {out}")
    if plot is not None:
        figure = report.plot(metric=metric.partition(":")[2])
        file = io.BytesIO()
        figure.savefig(file, dpi=150, format=plot.suffix[1:].lower())
        write_whole(plot, file.getvalue())
        print(f"Plot: {plot}")
