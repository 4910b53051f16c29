"""Values of a metric over levels and draws, and their statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from weightnoise._errors import OptionError
from weightnoise._robustness.intervals import check_confidence
from weightnoise._robustness.sample import Sample

if TYPE_CHECKING:
    from typing_extensions import Self  # In typing from Python 3.11 on.

Level: TypeAlias = float | str
_NO_THRESHOLD = "The report has no threshold. Pass threshold=... to evaluate_robustness."


@dataclass(frozen=True, eq=False)
class Measurements:
    """Values of a metric over noise levels and draws: what a `RobustnessReport` is about, and its statistics."""

    levels: tuple[Level, ...]
    curves: Mapping[str, Tensor]
    seed: int = 0
    threshold: float | None = None
    higher_is_better: bool = True
    made_by: Mapping[str, str] = field(default_factory=dict)
    antithetic: bool = False
    measured: Mapping[str, Tensor] = field(default_factory=dict)
    chips: Sequence[tuple[int, int]] = ()
    clean: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        draws = max((values.shape[-1] for values in self.curves.values()), default=0)
        chips = tuple(self.chips) or tuple((self.seed, number) for number in range(draws))
        masks: dict[str, Tensor] = {}
        for name, values in self.curves.items():
            masks[name] = self.measured.get(name, torch.ones(values.shape, dtype=torch.bool, device="cpu"))
            if not tuple(values.shape) == tuple(masks[name].shape) == (len(self.levels), len(chips)):
                raise OptionError(
                    f"Curve {name!r} must have the shape (levels, draws) = ({len(self.levels)}, {len(chips)}), "
                    f"got {tuple(values.shape)}."
                )
        object.__setattr__(self, "measured", masks)
        object.__setattr__(self, "chips", chips)

    def __getitem__(self, name: str) -> Self:
        """The report of one curve."""
        clean = {name: self.clean[name]} if name in self.clean else {}
        return replace(self, curves={name: self.curves[name]}, measured={name: self.measured[name]}, clean=clean)

    @property
    def values(self) -> Tensor:
        """Levels x draws; NaN also where nothing was measured."""
        return self.curves[self._only()]

    def _only(self) -> str:
        if len(self.curves) != 1:
            names = ", ".join(map(repr, self.curves))
            raise OptionError(f"The report has several curves: {names}. Ask for one of them: report[name].")
        return next(iter(self.curves))

    @property
    def samples(self) -> list[Sample]:
        """The draws of each level that were measured."""
        values, mask = self.values.double().cpu(), self.measured[self._only()].cpu()
        units = torch.arange(len(self.chips), dtype=torch.int64, device="cpu") // (2 if self.antithetic else 1)
        return [
            Sample(row[there], units[there], self.higher_is_better)
            for row, there in zip(values, mask, strict=True)
        ]

    def _each(self, of: Callable[[Sample], Any]) -> Tensor:
        return torch.tensor([of(sample) for sample in self.samples], dtype=torch.float64, device="cpu")

    @property
    def draws(self) -> Tensor:
        """How many draws were measured, per level."""
        return self.measured[self._only()].sum(dim=1)

    @property
    def diverged(self) -> Tensor:
        """How many of the draws have NaN as their value, per level."""
        return (self.values.isnan() & self.measured[self._only()]).sum(dim=1)

    @property
    def mean(self) -> Tensor:
        """Mean over the draws, per level; NaN where a draw has diverged."""
        return self._each(lambda sample: sample.mean)

    @property
    def std(self) -> Tensor:
        """Standard deviation over the draws, of an unbiased variance (n - 1), per level; NaN for a single draw."""
        return self._each(lambda sample: sample.std)

    @property
    def sem(self) -> Tensor:
        """Standard error of the mean, per level; NaN for a single draw, or pair of mirrored ones."""
        return self._each(lambda sample: sample.sem)

    def interval(self, confidence: float = 0.95) -> Tensor:
        """Student's t interval for the mean over all chips, per level: levels x 2.

        Exact for normal values; for skewed ones, such as a few chips that fail, it wants many draws.
        """
        confidence = check_confidence("interval", confidence)
        mean, margin = self.mean, self._each(lambda sample: sample.margin(confidence))
        return torch.stack([mean - margin, mean + margin], dim=1)

    def draws_for(self, margin: float, confidence: float = 0.95) -> Tensor:
        """How many draws in all would make the `interval` ``± margin``, per level.

        By the spread seen so far: ``n >= (t sd / margin)^2``. NaN where none has been seen.
        """
        confidence = check_confidence("draws_for", confidence)
        if not margin > 0:
            raise OptionError(f"draws_for(margin=...) must be a number above 0, got {margin!r}.")
        return self._each(lambda sample: sample.draws_for(margin, confidence))

    @property
    def worst(self) -> Tensor:
        """The worst draw, per level; NaN where a draw has diverged."""
        return self._each(lambda sample: sample.worst)

    @property
    def worst_draws(self) -> list[int]:
        """Which draw is the worst, per level: a column of ``values``."""
        places = [mask.nonzero().flatten().tolist() for mask in self.measured[self._only()]]
        return [
            there[sample.worst_place] if there else -1 for there, sample in zip(places, self.samples, strict=True)
        ]

    @property
    def chip_yield(self) -> Tensor:
        """The share of draws that reach the threshold, per level."""
        threshold = self._threshold()
        return self._each(lambda sample: sample.share(threshold))

    def yield_interval(self, confidence: float = 0.95) -> Tensor:
        """The interval of Clopper and Pearson for the yield of all chips, per level: levels x 2.

        It covers that at least as often as it says. Two mirrored draws count as one.
        """
        confidence, threshold = check_confidence("yield_interval", confidence), self._threshold()
        return self._each(lambda sample: sample.share_interval(threshold, confidence))

    def _threshold(self) -> float:
        if self.threshold is None:
            raise OptionError(_NO_THRESHOLD)
        return self.threshold

    def quantile(self, q: float) -> Tensor:
        """The ``q`` quantile over the draws, per level; a draw that has diverged is the worst."""
        _check_quantile("quantile", q)
        return self._each(lambda sample: sample.quantile(q))

    def quantile_interval(self, q: float, confidence: float = 0.95) -> Tensor:
        """Two draws between which the ``q`` quantile of all chips lies, per level: levels x 2.

        Whatever the distribution, at least as often as it says; infinite where there are too few draws for it.
        """
        _check_quantile("quantile_interval", q)
        confidence = check_confidence("quantile_interval", confidence)
        return self._each(lambda sample: sample.quantile_interval(q, confidence))


def _check_quantile(where: str, q: float) -> None:
    if isinstance(q, bool) or not isinstance(q, (int, float)) or not 0 <= q <= 1:
        raise OptionError(f"{where}(q=...) must be a number from 0 to 1, got {q!r}.")
