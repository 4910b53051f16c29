"""What a robustness evaluation found: statistics, comparisons, tables, files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from weightnoise._checks import plain_number
from weightnoise._errors import OptionError
from weightnoise._random import seeds as _seeds
from weightnoise._robustness import merging as _merging
from weightnoise._robustness import page as _page
from weightnoise._robustness import tables as _tables
from weightnoise._robustness.measurements import Level, Measurements

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class RobustnessReport(Measurements):
    """Values of a metric over noise levels and draws ("chips"), for one curve or several side by side.

    With several curves (laws, metrics, parameters) ``report[name]`` is the report of one of them, and has the
    statistics below, one for each level. NaN is a result, that of a model which has diverged: it counts as a draw,
    as the worst one, and as one that misses the threshold, and the mean over it is NaN. What was not measured,
    such as draws that an early stop has spared, counts nowhere. Mirrored (antithetic) draws are taken in pairs.

    Attributes:
        levels: the noise levels: numbers, or names.
        curves: from the name of a curve to its values, of shape (levels, draws).
        seed: of the draws.
        threshold: what the metric must reach; None where nothing was asked.
        higher_is_better: which way the metric is good.
        made_by: metric, laws, the fingerprint of the model, versions, date.
        antithetic: whether draws come in mirrored pairs, one beside the other.
        measured: from the name of a curve to what was measured, of the same shape; by default all of it.
        chips: the seed and the number of each draw; by default those of ``seed`` from 0 on.
        clean: from the name of a curve to the metric without noise; empty where that is not known.

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

    def compare(self, first: str | RobustnessReport, second: str | RobustnessReport) -> RobustnessReport:
        """The differences ``first - second``, draw by draw: a report, with intervals of its own.

        Draw k has the same random numbers under every law and for every model with the same names of parameters,
        so that its differences vary less than the values do.

        Args:
            first: the name of a curve of this report, or a report of one curve, such as that of another model.
            second: likewise.

        Raises:
            SpecError: for reports of other levels or draws.
        """
        each = (self[one] if isinstance(one, str) else one for one in (first, second))
        return _merging.differences(*each)

    def merge(self, *others: RobustnessReport) -> RobustnessReport:
        """The draws of several runs together: of other seeds, or other draws of the same one.

        A draw that is in two of them counts once. Date, Python and the number of threads may differ.

        Raises:
            SpecError: for reports of another metric, law, model, level, version or kind of draw, all of them
                named; and for one draw with two values.
        """
        return _merging.merged([self, *others])

    def seed_of(self, level: Level, draw: int | Literal["worst"]) -> int:
        """The seed that makes a chip again: ``hold_noise(model, seed=report.seed_of(0.1, "worst"))``.

        Args:
            level: the level; the numbers of a draw are the same at each of them.
            draw: the column of ``values``, or ``"worst"`` for the worst chip at this level.
        """
        return self._hold_of(level, draw)[0]

    def sign_of(self, level: Level, draw: int | Literal["worst"]) -> int:
        """The ``sign`` for `hold_noise`, beside `seed_of`: -1 for the second one of a mirrored pair."""
        return self._hold_of(level, draw)[1]

    def _hold_of(self, level: Level, draw: int | Literal["worst"]) -> tuple[int, int]:
        if level not in self.levels:
            raise OptionError(f"seed_of(level=...) must be one of the levels {self.levels}, got {level!r}.")
        draw = plain_number(draw)
        if draw == "worst":
            draw = self.worst_draws[self.levels.index(level)]
        if isinstance(draw, bool) or not isinstance(draw, int) or not 0 <= draw < len(self.chips):
            raise OptionError(f"seed_of(draw=...) must be from 0 to {len(self.chips) - 1}, got {draw!r}.")
        seed, number = self.chips[draw]
        return _seeds.numbered(seed, range(number, number + 1), self.antithetic)[0]

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts; None where nothing was measured, NaN and infinity as text."""
        return _tables.to_dict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RobustnessReport:
        """The report that `to_dict` wrote.

        Raises:
            SpecError: if it is none, or is damaged.
        """
        return cls(**_tables.fields_of(content))

    def to_json(self) -> str:
        """`to_dict` as text."""
        return _tables.to_json(self)

    @classmethod
    def from_json(cls, text: str) -> RobustnessReport:
        """The report that `to_json` wrote.

        Raises:
            SpecError: if it is none, or is damaged.
        """
        return cls.from_dict(_tables.content_of(text))

    def rows(self) -> list[dict[str, Any]]:
        """One dict for each curve, level and draw that was measured."""
        return _tables.rows(self)

    def to_csv(self) -> str:
        """`rows` as comma-separated text with a header."""
        return _tables.to_csv(self)

    def to_pandas(self) -> Any:
        """`rows` as a data frame; needs pandas."""
        import pandas

        return pandas.DataFrame(self.rows())

    def to_markdown(self, *show: _tables.Shown) -> str:
        """A table: a line per level, and for each curve one column, or several.

        Args:
            show: ``"mean"`` (± standard error, where there is one), ``"interval"`` (of the mean), ``"yield"``
                (with its interval), ``"worst"``; a number for that quantile. By default the mean.
        """
        return _tables.to_markdown(self, show or ("mean",))

    def __str__(self) -> str:
        return _tables.to_text(self)

    def to_html(self, title: str = "Robustness", *, level: str = "noise level", log: bool = False) -> str:
        """One HTML page: the table with intervals, the figure (where matplotlib is), and where it comes from.

        Args:
            title: of the page, and what to write at the axis of the metric.
            level: as for `plot`.
            log: as for `plot`.
        """
        return _page.to_html(self, title, lambda: self.plot(metric=title, level=level, log=log))

    def plot(self, *, metric: str = "metric", level: str = "noise level", log: bool = False) -> Figure:
        """Mean over level with a band of one standard deviation for each curve; needs matplotlib.

        A single level, as of ``by_parameter=True``, is drawn as bars, the most sensitive at the top. A dotted
        line is the metric without noise.

        Args:
            metric: what to write at the axis of the metric.
            level: what to write at the axis of the levels.
            log: whether that axis is logarithmic, as for times; it is linear below the smallest level above 0.

        Raises:
            OptionError: for ``log`` with a single level, or with names for levels.
        """
        from weightnoise._robustness.plots import plot_report

        return plot_report(self, metric, level, log)
