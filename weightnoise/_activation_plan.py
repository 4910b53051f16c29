"""The plan of noise on activations: what a spec would do to a model, without touching it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from weightnoise._activations import ActivationSpec, chosen_modules, layers
from weightnoise._attach.hook import At
from weightnoise._plan import few, table
from weightnoise.laws import Noise


@dataclass(frozen=True)
class PlannedActivationNoise:
    """One row of an `ActivationNoisePlan`.

    Attributes:
        name: the full name of the module; "" for the model itself.
        module: its class.
        law: the law that goes on what it puts out or takes in.
        other_names: of the same module, where it stands in several places; each of its calls is noisy.
    """

    name: str
    module: str
    law: Noise
    other_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class ActivationNoisePlan:
    """The effect that `add_activation_noise` would have. It prints as a table.

    Attributes:
        at: ``"output"`` or ``"input"``.
        rows: the modules that get noise, in the order of the model.
        clean: the names of the Linear and Conv modules that stay clean there.
    """

    at: At
    rows: tuple[PlannedActivationNoise, ...]
    clean: tuple[str, ...]

    def __str__(self) -> str:
        """The table, one line a module, and which layers stay clean."""
        head = (f"{self.at} of", "module", "law", "also called")
        body = [
            (row.name or "the model", row.module, repr(row.law), ", ".join(row.other_names) or "-")
            for row in self.rows
        ]
        count = f"{len(self.rows)} module{'s' * (len(self.rows) != 1)} noisy"
        return "\n".join(
            [*table(head, body), f"{count}; Linear and Conv layers clean: {few(self.clean) or 'none'}"]
        )


def plan_activation_noise(model: nn.Module, spec: ActivationSpec, *, at: At = "output") -> ActivationNoisePlan:
    """Tell what `add_activation_noise` with these arguments would do; the model stays as it is.

    How strong the noise is hangs on the data that goes through, which a plan has not seen.

    Args:
        model: any module.
        spec: as for `add_activation_noise`.
        at: as for `add_activation_noise`.

    Returns:
        A plan that prints as a table: name, class and law of each module with noise.

    Raises:
        TypeError: if ``model`` is no module.
        WeightNoiseError: what `add_activation_noise` would raise.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> print(plan_activation_noise(model, {"0": 0.1, nn.ReLU: Gaussian(0.1, relative_to="std")}))
        output of  module  law                                   also called
        ---------  ------  ------------------------------------  -----------
        0          Linear  Gaussian(std=0.1)                     -
        1          ReLU    Gaussian(std=0.1, relative_to='std')  -
        2 modules noisy; Linear and Conv layers clean: 2
    """
    chosen = chosen_modules("plan_activation_noise", model, spec, at)
    rows = (
        PlannedActivationNoise(node.names[0], _class_of(node.module), noise.law, node.names[1:])
        for node, noise in chosen.items()
    )
    noisy = {node.module for node in chosen}
    clean = (node.names[0] for node in layers(model) if node.module not in noisy)
    return ActivationNoisePlan(at, tuple(rows), tuple(clean))


def _class_of(module: nn.Module) -> str:
    return type(module).__name__.removeprefix("Parametrized")
