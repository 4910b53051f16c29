"""The report of a robustness evaluation: numbers, statistics, tables, files."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from weightnoise._errors import OptionError, SpecError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class RobustnessReport:
    """Values of a metric over noise levels and draws, for one curve or several side by side.

    With several curves (laws, metrics, parameters) ``report[name]`` is the report of one of them, and
    has the statistics below. A draw that an early stop has spared is NaN and counts nowhere.

    Attributes:
        levels: the noise levels.
        curves: from the name of a curve to its values, of shape (levels, draws).
        seed: of the draws.
        threshold: what the metric must reach; None where nothing was asked.
        higher_is_better: which way the metric is good.
        made_by: versions, laws and the fingerprint of the model.

    Example:
        >>> report = RobustnessReport((0.0, 0.1), {"Gaussian": torch.tensor([[9.0, 9.0], [7.0, 8.0]])})
        >>> report.mean.tolist(), report.worst.tolist()
        ([9.0, 7.5], [9.0, 7.0])
        >>> print(report.to_markdown())
        | level | Gaussian |
        |---|---|
        | 0 | 9 ± 0 |
        | 0.1 | 7.5 ± 0.5 |
    """

    levels: tuple[float, ...]
    curves: Mapping[str, Tensor]
    seed: int = 0
    threshold: float | None = None
    higher_is_better: bool = True
    made_by: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in self.curves.items():
            if values.ndim != 2 or len(values) != len(self.levels):
                raise OptionError(
                    f"Curve {name!r} must have the shape (levels, draws) = ({len(self.levels)}, ...), "
                    f"got {tuple(values.shape)}."
                )

    def __getitem__(self, name: str) -> RobustnessReport:
        """The report of one curve."""
        return RobustnessReport(
            self.levels, {name: self.curves[name]}, self.seed, self.threshold, self.higher_is_better, self.made_by
        )

    @property
    def values(self) -> Tensor:
        """Levels x draws."""
        if len(self.curves) != 1:
            names = ", ".join(map(repr, self.curves))
            raise OptionError(f"The report has several curves: {names}. Ask for one of them: report[name].")
        return next(iter(self.curves.values()))

    @property
    def draws(self) -> Tensor:
        """How many draws there are per level."""
        return (~self.values.isnan()).sum(dim=1)

    @property
    def mean(self) -> Tensor:
        """Mean over the draws, per level."""
        # Rounding may not take it beyond the draws: where all are equal it is their value.
        none, values = self.values.isnan(), self.values
        low, high = (values.masked_fill(none, end) for end in (math.inf, -math.inf))
        return values.nanmean(dim=1).clamp(low.amin(dim=1), high.amax(dim=1))

    @property
    def std(self) -> Tensor:
        """Standard deviation over the draws (n - 1), per level; 0 for a single draw."""
        squares = (self.values - self.mean[:, None]).square().nansum(dim=1)
        return (squares / (self.draws - 1).clamp(min=1)).sqrt()

    @property
    def sem(self) -> Tensor:
        """Standard error of the mean, per level."""
        return self.std / self.draws.sqrt()

    @property
    def worst(self) -> Tensor:
        """The worst draw, per level."""
        worst = math.inf if self.higher_is_better else -math.inf
        filled = self.values.nan_to_num(nan=worst, posinf=math.inf, neginf=-math.inf)
        return filled.amin(dim=1) if self.higher_is_better else filled.amax(dim=1)

    @property
    def chip_yield(self) -> Tensor:
        """The share of draws that reach the threshold, per level."""
        if self.threshold is None:
            raise OptionError("The report has no threshold. Pass threshold=... to evaluate_robustness.")
        reached = self.values >= self.threshold if self.higher_is_better else self.values <= self.threshold
        return reached.sum(dim=1) / self.draws

    def quantile(self, q: float) -> Tensor:
        """The ``q`` quantile over the draws, per level."""
        return self.values.nanquantile(q, dim=1)

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts; NaN becomes None."""
        curves = {
            name: [[None if math.isnan(value) else value for value in row] for row in values.tolist()]
            for name, values in self.curves.items()
        }
        return {
            "levels": list(self.levels),
            "curves": curves,
            "seed": self.seed,
            "threshold": self.threshold,
            "higher_is_better": self.higher_is_better,
            "made_by": dict(self.made_by),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RobustnessReport:
        """The report that `to_dict` wrote.

        Raises:
            SpecError: if it is none, or is damaged.
        """
        try:
            curves = {
                name: torch.tensor(
                    [[math.nan if value is None else value for value in row] for row in rows],
                    dtype=torch.float64,
                    device="cpu",
                )
                for name, rows in content["curves"].items()
            }
            options = {name: content[name] for name in ("seed", "threshold", "higher_is_better", "made_by")}
            return cls(tuple(map(float, content["levels"])), curves, **options)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise SpecError(f"This is no report of RobustnessReport.to_dict, or a damaged one: {what}.") from None

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_json(cls, text: str) -> RobustnessReport:
        """The report that `to_json` wrote.

        Raises:
            SpecError: if it is none, or is damaged.
        """
        try:
            content = json.loads(text)
        except (RecursionError, ValueError) as error:
            raise SpecError(f"This is no report of RobustnessReport.to_json, or a damaged one: {error}.") from None
        return cls.from_dict(content)

    def rows(self) -> list[dict[str, Any]]:
        """One dict for each curve, level and draw."""
        return [
            {"curve": name, "level": level, "draw": draw, "value": value}
            for name, values in self.curves.items()
            for level, row in zip(self.levels, values.tolist(), strict=True)
            for draw, value in enumerate(row)
            if not math.isnan(value)
        ]

    def to_csv(self) -> str:
        """`rows` as comma-separated text with a header."""
        text = io.StringIO()
        writer = csv.DictWriter(text, ["curve", "level", "draw", "value"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows())
        return text.getvalue()

    def to_pandas(self) -> Any:
        """`rows` as a data frame; needs pandas."""
        import pandas

        return pandas.DataFrame(self.rows())

    def to_markdown(self) -> str:
        """A table: a line per level, and a column per curve with mean ± standard error."""
        parts = [self[name] for name in self.curves]
        lines = ["| level | " + " | ".join(self.curves) + " |", "|---" * (len(parts) + 1) + "|"]
        for place, level in enumerate(self.levels):
            cells = [f"{part.mean[place].item():.4g} ± {part.sem[place].item():.2g}" for part in parts]
            lines.append(f"| {level:g} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def __str__(self) -> str:
        made = ", ".join(f"{name} {value}" for name, value in self.made_by.items())
        return f"{self.to_markdown()}\nmean ± standard error over draws; seed {self.seed}{made and ', ' + made}"

    def merge(self, other: RobustnessReport) -> RobustnessReport:
        """The draws of two runs with different seeds and the same levels, curves and model, together."""
        mine, theirs = (
            {**report.made_by, "levels": report.levels, "curves": list(report.curves)} for report in (self, other)
        )
        differing = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
        if differing:
            raise SpecError(
                f"The reports differ in {', '.join(differing)}, so that their draws cannot be put together."
            )
        if self.seed == other.seed:
            raise SpecError(f"Both reports have the seed {self.seed}: the draws would be counted twice.")
        curves = {name: torch.cat([values, other.curves[name]], dim=1) for name, values in self.curves.items()}
        return RobustnessReport(
            self.levels, curves, self.seed, self.threshold, self.higher_is_better, self.made_by
        )

    def plot(self, *, metric: str = "metric") -> Figure:
        """Mean over level with a band of one standard deviation for each curve; needs matplotlib.

        Args:
            metric: what to write at the vertical axis.
        """
        from weightnoise._robustness.plots import plot_report

        return plot_report(self, metric)


def stack(values: Sequence[Sequence[float]]) -> Tensor:
    """Rows of different lengths as one tensor, NaN where a row is shorter."""
    longest = max(map(len, values))
    rows = [[*row, *[math.nan] * (longest - len(row))] for row in values]
    return torch.tensor(rows, dtype=torch.float64, device="cpu")
