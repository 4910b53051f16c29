"""A report as one HTML file, with its figure inside."""

from __future__ import annotations

import base64
import importlib.util
import io
from html import escape
from typing import Any

from weightnoise._robustness.measurements import Measurements
from weightnoise._robustness.tables import Shown, notes, to_markdown

_STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .3em .9em; border-bottom: 1px solid #ccc }
th { text-align: left } td { font-variant-numeric: tabular-nums } img { max-width: 100% }"""


def to_html(report: Measurements, title: str, plot: Any) -> str:
    """The page: table, figure where matplotlib is installed, what to know, and where the numbers come from."""
    show: tuple[Shown, ...] = ("mean", "interval", "worst")
    if report.threshold is not None:
        show = (*show, "yield")
    head, _, *body = [_cells(line) for line in to_markdown(report, show).splitlines()]
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in body)
    table = f"<table>\n<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>\n{rows}</table>"
    said = "".join(f"<li>{escape(note)}</li>\n" for note in notes(report))
    made_by = {
        **report.made_by,
        "seed": ", ".join(str(seed) for seed in dict.fromkeys(one for one, _ in report.chips)),
    }
    origin = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>\n" for name, value in made_by.items()
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"<style>\n{_STYLE}\n</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n{table}\n"
        f"<p>Mean ± standard error over draws; intervals of 95 %.</p>\n<ul>\n{said}</ul>\n{_figure(plot)}\n"
        f"<h2>Where it comes from</h2>\n<table>\n{origin}</table>\n</body>\n</html>\n"
    )


def _cells(line: str) -> list[str]:
    return [escape(cell) for cell in line.strip("| ").split(" | ")]


def _figure(plot: Any) -> str:
    if importlib.util.find_spec("matplotlib") is None:
        return ""
    file = io.BytesIO()
    plot().savefig(file, format="png", dpi=110)
    inside = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="the metric over the levels" src="data:image/png;base64,{inside}">'
