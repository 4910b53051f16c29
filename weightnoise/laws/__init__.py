"""The laws of noise: what is drawn, and how it is applied to a weight.

A law separates *drawing* from *applying*. Keeping a draw for a forward, holding it, mirroring it,
scaling it and reproducing it then work for every law at once, also for a law of your own. What else may be
asked of a law has a default in `Law`; `_complete.py` gives those to laws of users.

Begin with `_law`, then `_additive`, the file of `Gaussian`. The imports below tell which file has which law; the
other files are what several of them need. May touch: `_random` and `_torch`. Promises: a law knows no module, and
its draw is independent of its strength.
"""

from weightnoise.laws._activation import CurrentNoise, NEFTune, SaltAndPepper
from weightnoise.laws._additive import Gaussian, Uniform
from weightnoise.laws._bits import BitFlip
from weightnoise.laws._complete import sample
from weightnoise.laws._converter import Converter
from weightnoise.laws._correlated import Correlated
from weightnoise.laws._custom import Custom
from weightnoise.laws._faults import StuckAt
from weightnoise.laws._fixed import Clip, LearnedClip, Temperature
from weightnoise.laws._frozen import Frozen
from weightnoise.laws._law import ActivationLaw, Law, Noise, straight_through
from weightnoise.laws._learned import LearnedGaussian, ParametricNoise
from weightnoise.laws._masks import DropConnect
from weightnoise.laws._multiplicative import LogNormal
from weightnoise.laws._products import OutputNoise
from weightnoise.laws._programming import ProgrammingNoise
from weightnoise.laws._protect import Protect
from weightnoise.laws._quantize import QuantizationNoise, Quantize
from weightnoise.laws._spec import Chain
from weightnoise.laws._state import StateDependentNoise
from weightnoise.laws._variational import Variational
from weightnoise.laws._variational_dropout import VariationalDropout

__all__ = [
    "ActivationLaw",
    "BitFlip",
    "Chain",
    "Clip",
    "Converter",
    "Correlated",
    "CurrentNoise",
    "Custom",
    "DropConnect",
    "Frozen",
    "Gaussian",
    "Law",
    "LearnedClip",
    "LearnedGaussian",
    "LogNormal",
    "NEFTune",
    "Noise",
    "OutputNoise",
    "ParametricNoise",
    "ProgrammingNoise",
    "Protect",
    "QuantizationNoise",
    "Quantize",
    "SaltAndPepper",
    "StateDependentNoise",
    "StuckAt",
    "Temperature",
    "Uniform",
    "Variational",
    "VariationalDropout",
    "sample",
    "straight_through",
]
