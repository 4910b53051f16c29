"""The command ``weightnoise report``: reports shown, converted, put together, drawn."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from weightnoise._cli.files import locked, read_text, try_to_write, write_whole
from weightnoise._cli.terminal import CommandError, check_extras, say
from weightnoise._errors import WeightNoiseError
from weightnoise._robustness.merging import config, differing
from weightnoise._robustness.report import RobustnessReport


def run_report(options: argparse.Namespace) -> None:
    """Run the command."""
    check_plot(options)
    for path in filter(None, (options.out, options.plot)):
        try_to_write(path)
    if options.out is not None and options.out.resolve() in [path.resolve() for path in options.reports]:
        raise CommandError(f"{options.out} is one of the reports: give another --out")
    contents = {path: _content(path) for path in options.reports}
    reports = {path: _report(path, content, options.threshold) for path, content in contents.items()}
    for path, content in contents.items():
        _check_settings(path, content)
    report = _together(reports)
    sweep = {name: value for content in contents.values() for name, value in content.get("sweep", {}).items()}
    metric = sweep.get("metric", report.made_by.get("metric", "metric"))
    if options.out is not None:
        with locked(options.out):
            write_whole(options.out, _written(report, options, metric, sweep.get("vary")))
    said = [content["tolerance"] for content in contents.values() if "tolerance" in content]
    show(report, "\n".join([str(report), *said]), metric, options, sweep.get("vary"))
    for path, content in contents.items():
        if content.get("done") is not None:
            done, total = content["done"]
            of = f" of {total}" if total else ""
            say(f"{path} is not finished: {done}{of} draws are measured; its command goes on from there")
    if missing := _missing_shards(contents):
        say(f"shards that are missing: {', '.join(missing)}")
    of_draws = {path: content["asked"]["draws"] for path, content in contents.items() if _is_shard(content)}
    for path, draws in of_draws.items():
        if draws < (most := max(of_draws.values())):
            say(f"{path} is of {draws} draws, and others are of {most}: give it more --draws")


def check_plot(options: argparse.Namespace) -> None:
    """Refuse options of a figure that is not asked for, or cannot be drawn."""
    page = options.out is not None and options.out.suffix.lower() == ".html"
    if options.plot is not None:
        check_extras("--plot", "matplotlib")
    elif not page and (options.axis is not None or options.log_axis):
        raise CommandError(f"--{'log-axis' if options.log_axis else 'axis'} is about a figure: give --plot too")


def show(report: RobustnessReport, text: str, metric: str, options: argparse.Namespace, vary: str | None) -> None:
    """Print a report, and say where it is; draw it."""
    print(text)
    if options.out is not None:
        print(f"Report: {options.out}")
    if options.plot is not None:
        file = io.BytesIO()
        figure = report.plot(metric=_short(metric), level=_axis(options, vary), log=options.log_axis)
        figure.savefig(file, dpi=150, format=options.plot.suffix[1:].lower())
        write_whole(options.plot, file.getvalue())
        print(f"Plot: {options.plot}")


def _short(metric: str) -> str:
    """The name of a metric without that of its module."""
    return metric.replace(":", ".").rpartition(".")[2]


def _axis(options: argparse.Namespace, vary: str | None) -> str:
    return str(options.axis or vary or "noise level")


def _written(report: RobustnessReport, options: argparse.Namespace, metric: str, vary: str | None) -> str:
    """A report in the form that the name of its file asks for."""
    match options.out.suffix.lower():
        case ".csv":
            return report.to_csv()
        case ".md":
            shown: Any = ("mean", "interval", "worst") + (() if report.threshold is None else ("yield",))
            return f"{report.to_markdown(*shown)}\n"
        case ".html":
            return report.to_html(_short(metric), level=_axis(options, vary), log=options.log_axis)
    return report.to_json()


def _together(reports: Mapping[Path, RobustnessReport]) -> RobustnessReport:
    (first, mine), *others = reports.items()
    for path, report in others:
        if differences := differing(config(mine), config(report)):
            raise CommandError(f"{first} and {path} do not belong together: {', '.join(differences)}", code=1)
    try:
        return mine.merge(*(report for _, report in others)) if others else mine
    except WeightNoiseError as error:
        raise CommandError(f"{' '.join(map(str, reports))}: {error}", code=1) from None


def _is_shard(content: Mapping[str, Any]) -> bool:
    return bool(content.get("sweep", {}).get("shard")) and isinstance(content.get("asked", {}).get("draws"), int)


def _missing_shards(contents: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    sweeps = [content.get("sweep", {}) for content in contents.values()]
    shards = {tuple(sweep["shard"]) for sweep in sweeps if sweep.get("shard")}
    counts = sorted({count for _, count in shards})
    return [f"{k}/{count}" for count in counts for k in range(1, count + 1) if (k, count) not in shards]


def _content(path: Path) -> dict[str, Any]:
    """What is in a file that a sweep has written."""
    try:
        content = json.loads(read_text(path))
    except (RecursionError, ValueError) as error:
        raise CommandError(f"{path} holds no report: {error}", code=1) from None
    if not isinstance(content, dict) or "measured" not in content:
        return content if isinstance(content, dict) else {}
    so_far = content.get("so far")
    if not isinstance(so_far, dict) or not so_far.get("curves"):
        raise CommandError(f"{path} is not finished, and nothing is measured yet: give its command again", code=1)
    return {**so_far, **{name: content[name] for name in ("sweep", "asked") if name in content}}


def _check_settings(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse what a sweep would not have written beside its report."""
    sweep, asked = content.get("sweep", {}), content.get("asked", {})
    if isinstance(sweep, dict) and isinstance(asked, dict):
        texts = [sweep.get("metric"), sweep.get("vary"), content.get("tolerance")]
        counts = [sweep.get("shard"), content.get("done")]
        if all(isinstance(text, str | None) for text in texts) and all(map(_are_two_counts, counts)):
            return
    raise CommandError(f"{path} holds no report: the settings in it are damaged", code=1)


def _are_two_counts(found: Any) -> bool:
    return found is None or (isinstance(found, list) and [type(one) for one in found] == [int, int])


def _report(path: Path, content: Mapping[str, Any], threshold: float | None) -> RobustnessReport:
    try:
        report = RobustnessReport.from_dict(content)
    except WeightNoiseError as error:
        raise CommandError(f"{path} holds no report: {error}", code=1) from None
    return report if threshold is None else replace(report, threshold=threshold)
