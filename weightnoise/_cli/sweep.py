"""The commands that measure: ``weightnoise sweep`` and ``weightnoise tolerance``."""

from __future__ import annotations

import argparse
from itertools import chain
from typing import Any

from weightnoise._cli.jobs import executor, of_shard
from weightnoise._cli.report import check_plot, show
from weightnoise._cli.subject import journal, load_subject
from weightnoise._cli.terminal import CommandError
from weightnoise._cli.vary import check_factors
from weightnoise._robustness.collect import run_plan
from weightnoise._robustness.plan import make_plan
from weightnoise._robustness.report import RobustnessReport
from weightnoise._robustness.tolerance import make_goal, make_limits, run_search


def run_sweep(options: argparse.Namespace) -> None:
    """Run the command."""
    check_plot(options)
    subject = load_subject(options)
    settings: dict[str, Any] = {
        "seed": options.seed,
        "antithetic": options.antithetic,
        "by_parameter": options.by_parameter,
        "until_sem": options.until_sem,
        "reads": options.reads,
    }
    levels = list(chain.from_iterable(options.levels))
    check_factors(levels, subject.laws)
    if options.log_axis and (len(levels) == 1 or any(isinstance(level, (str, tuple)) for level in levels)):
        raise CommandError("--log-axis needs two levels or more, and numbers without names")
    goal = {"threshold": options.threshold, "higher_is_better": not options.lower_is_better}
    about = {**subject.about, "levels": levels, "shard": options.shard, **settings}
    asked: dict[str, Any] = {"draws": options.draws, **goal}
    whole = make_plan(
        subject.metric, levels, None, subject.laws or None, options.draws, **settings, vectorize=False
    )
    plan = of_shard(whole, options.shard)
    with journal(options.out, about, options.fresh, asked) as kept:
        if kept.content is None:
            with kept.saved(), executor(options) as workers:
                report = run_plan(subject.model, plan, **goal, progress=True, store=kept, executor=workers)
            kept.finish(report.to_dict())
        else:
            report = RobustnessReport.from_dict(kept.content)
    show(report, str(report), options.metric, options, options.vary)


def run_tolerance(options: argparse.Namespace) -> None:
    """Run the command."""
    check_plot(options)
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
    show(report, f"{report}\n{said}", options.metric, options, options.vary)
