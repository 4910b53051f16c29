"""The errors and warnings of the package, by name."""

from __future__ import annotations

from collections.abc import Sequence


class WeightNoiseError(ValueError):
    """Base of every error that weightnoise raises about a model, a spec or a context.

    Args:
        problems: one sentence each, every one that was found.
    """

    # No __init__: Dynamo has to be able to trace `raise ExportError(...)`.

    @property
    def problems(self) -> tuple[str, ...]:
        """The sentences, for code that wants them one by one."""
        return self.args

    def __str__(self) -> str:
        """The sentence, or the list of them."""
        if len(self.args) == 1:
            return str(self.args[0])
        lines = "".join(f"\n  - {problem}" for problem in self.args)
        return f"{len(self.args)} problems, nothing was changed:{lines}"


class SpecError(WeightNoiseError):
    """The spec holds something that is no law, or a law with an impossible strength."""


class OptionError(WeightNoiseError):
    """An option of a law or of a call has a value that it cannot have."""


class OptionTypeError(OptionError, TypeError):
    """An option is of a kind that it cannot be of; a `TypeError` too."""


class NoMatchError(WeightNoiseError):
    """A pattern of the spec, or the spec as a whole, covers no parameter."""


class AlreadyNoisyError(WeightNoiseError):
    """A parameter that the spec covers carries weight noise already."""


class TiedParameterError(WeightNoiseError):
    """The spec covers one use of a tied parameter and leaves another clean."""


class UnsupportedParameterError(WeightNoiseError):
    """A parameter that the spec covers cannot carry noise: dtype, lazy, scripted, packed."""


class UnsupportedActivationError(WeightNoiseError):
    """The input or output of a module cannot carry noise, or cannot carry this law."""


class NotNoisyError(WeightNoiseError):
    """The call needs a model that carries noise, and this one carries none."""


class ExportError(WeightNoiseError, RuntimeError):
    """Noise is on while the model is exported or traced."""


class NoiseRoundsAwayWarning(UserWarning):
    """The noise is smaller than the spacing of a weight's numbers, so that it is lost."""


class InfiniteNoiseWarning(UserWarning):
    """The noise is beyond the largest numbers of a weight's dtype, so that noisy weights are infinite."""


class LeftCleanWarning(UserWarning):
    """What one may expect to be noisy is clean: a matrix that looks like a scale, or a Parameter that is gone."""


class LearnedStrengthWarning(UserWarning):
    """A checkpoint of the plain model was loaded: learned noise strengths keep their values."""


class AbandonedContextWarning(UserWarning):
    """A generator was given up inside a context on noise, which was open for everybody until then."""


class DeviceRangeWarning(UserWarning):
    """A law of a device is used at a time or a conductance beyond the measurements that it is from."""


class ForwardsNotCountedWarning(UserWarning):
    """A hold that moves on with the forwards of a module was left, and there were none."""


class CleanReadWarning(UserWarning):
    """A method of a module that is no forward reads a noisy parameter, and gets it clean."""


class RecomputedReadWarning(UserWarning):
    """A noisy weight is read again in a backward, by code that is no checkpoint of torch's."""


class NondeterministicMetricWarning(UserWarning):
    """The metric of a robustness evaluation differs between two runs without noise."""


class WorkerLostWarning(UserWarning):
    """A worker of a robustness evaluation has died, and its draws are done again."""


class NotVectorizedWarning(UserWarning):
    """The draws of a robustness evaluation cannot be evaluated together, and are one by one."""


def raise_problems(problems: Sequence[WeightNoiseError]) -> None:
    """Raise everything in ``problems`` as one error; do nothing when there is nothing.

    The error has the class that all problems share, else `WeightNoiseError`.
    """
    if not problems:
        return
    kinds = {type(problem) for problem in problems}
    kind = kinds.pop() if len(kinds) == 1 else WeightNoiseError
    raise kind(*(sentence for problem in problems for sentence in problem.problems))


RESIZED = (
    "Parameter '{name}' has the shape {now} now, and its noise learned or froze something for the shape {then}. "
    "Call weightnoise.remove_weight_noise(model) and add the noise again."
)

NO_LAYOUT = "which noise would make dense or cannot be added to. Make it dense with to_dense(), or leave it clean."
