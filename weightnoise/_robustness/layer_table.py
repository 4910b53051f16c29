"""The report of `layer_report`: rows, tables, a figure."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LayerNoise:
    """One row of a `LayerReport`: what the noise on one parameter does when it is alone.

    Attributes:
        name: of the parameter.
        law: the noise on it.
        strength: root mean square of the noise, in units of the weight.
        snr_db: of the weight over its noise.
        layer_error: relative, of the outputs of its module; NaN where that is not called, or its outputs change
            shape.
        exact: whether strength and error of the layer are in closed form, and not means over draws.
        model_error: relative, of the outputs of the model; over draws.
        model_error_sem: its standard error; NaN for one draw.
    """

    name: str
    law: str
    strength: float
    snr_db: float
    layer_error: float
    exact: bool
    model_error: float
    model_error_sem: float


@dataclass(frozen=True)
class LayerReport:
    """What `layer_report` has found. Prints as a table.

    Attributes:
        rows: one for each noisy parameter, the most sensitive first.
        draws: how many, for each.
        seed: of the draws.
    """

    rows: tuple[LayerNoise, ...]
    draws: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts."""
        return {"rows": [asdict(row) for row in self.rows], "draws": self.draws, "seed": self.seed}

    def to_csv(self) -> str:
        """The rows as comma-separated text with a header."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [field.name for field in fields(LayerNoise)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in self.rows)
        return text.getvalue()

    def to_markdown(self) -> str:
        """The rows as a table."""
        heads = ("parameter", "law", "strength", "SNR, dB", "error of the layer", "error of the model")
        lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for row in self.rows:
            how = "" if row.exact else " (draws)"
            cells = (
                row.name,
                row.law,
                f"{row.strength:.3g}{how}",
                f"{row.snr_db:.1f}",
                f"{100 * row.layer_error:.3g} %{how}",
                f"{100 * row.model_error:.3g} ± {100 * row.model_error_sem:.2g} %",
            )
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def __str__(self) -> str:
        return (
            f"{self.to_markdown()}\nrelative errors, noise on one parameter at a time; that of the model ± "
            "standard "
            f"error over {self.draws} draws, seed {self.seed}"
        )

    def plot(self) -> Figure:
        """Bars of the errors, the most sensitive parameter at the top; needs matplotlib."""
        from weightnoise._robustness.plots import plot_layers

        return plot_layers(self)
