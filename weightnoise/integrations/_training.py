"""The part that the callbacks of all frameworks share: the noise of one training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

import weightnoise as wn
from weightnoise._errors import OptionError
from weightnoise._noise.control import When
from weightnoise._robustness.metric import Metric
from weightnoise._select.choose import Spec


@dataclass(eq=False)
class NoisyTraining:
    """The options that the callbacks share, and what follows from them.

    Attributes:
        added: whether the noise on the model is ours to remove.
    """

    spec: Spec | None
    fn: Callable[[int], float] | None
    when: When
    remove: bool
    metric: Metric | None
    levels: Sequence[float]
    draws: int
    added: bool = False

    def __post_init__(self) -> None:
        if self.metric is not None and not self.levels:
            raise OptionError("WeightNoiseCallback(metric=...) needs levels=[...], the noise levels to evaluate.")

    def add(self, model: nn.Module) -> bool:
        """Add the noise; whether there is noise now where there was none."""
        noisy = wn.has_weight_noise(model)
        if noisy and (self.added or self.spec is None):
            return False
        if self.spec is None:
            raise wn.NotNoisyError("WeightNoiseCallback has no spec, and the model carries no weight noise.")
        wn.add_weight_noise(model, self.spec, when=self.when)
        self.added = True
        return True

    def schedule(self, model: nn.Module) -> wn.NoiseScheduler | None:
        """From its first step on; None without a function."""
        return None if self.fn is None else wn.NoiseScheduler(model, self.fn)

    def take_off(self, model: nn.Module) -> None:
        """Remove what was added here."""
        if self.added:
            wn.remove_weight_noise(model)
            self.added = False

    def end(self, model: nn.Module, log: Callable[[str, float], object]) -> wn.RobustnessReport | None:
        """How the model holds up, where there is a metric; then remove the noise unless it is to stay."""
        report = None
        if self.metric is not None:
            report = wn.evaluate_robustness(
                model, self.metric, levels=self.levels, draws=self.draws, progress=False
            )
            for name in report.curves:
                for level, mean in zip(report.levels, report[name].mean.tolist(), strict=True):
                    log(f"robustness/{name} at {level}", mean)
        if self.remove:
            self.take_off(model)
        return report
