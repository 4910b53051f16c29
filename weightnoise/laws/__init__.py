"""The laws of noise: what is drawn, and how it is applied to a weight.

A law separates *drawing* from *applying*. Keeping a draw for a forward, holding it, mirroring it,
scaling it and reproducing it then work for every law at once, also for a law of your own.
"""

from weightnoise.laws._additive import Gaussian, Uniform
from weightnoise.laws._custom import Custom
from weightnoise.laws._faults import BitFlip, StuckAt
from weightnoise.laws._fixed import Clip, Temperature
from weightnoise.laws._learned import LearnedGaussian, ParametricNoise, Variational
from weightnoise.laws._masks import DropConnect
from weightnoise.laws._multiplicative import LogNormal
from weightnoise.laws._programming import ProgrammingNoise
from weightnoise.laws._protect import Protect
from weightnoise.laws._protocol import (
    Noise,
    apply_law,
    factor_problem_of,
    freeze,
    problem_of,
    redraw,
    sample,
    straight_through,
    strengths_of,
)
from weightnoise.laws._quantize import QuantizationNoise, Quantize
from weightnoise.laws._spec import Chain, as_law

__all__ = [
    "BitFlip",
    "Chain",
    "Clip",
    "Custom",
    "DropConnect",
    "Gaussian",
    "LearnedGaussian",
    "LogNormal",
    "Noise",
    "ParametricNoise",
    "ProgrammingNoise",
    "Protect",
    "QuantizationNoise",
    "Quantize",
    "StuckAt",
    "Temperature",
    "Uniform",
    "Variational",
    "apply_law",
    "as_law",
    "factor_problem_of",
    "freeze",
    "problem_of",
    "redraw",
    "sample",
    "straight_through",
    "strengths_of",
]
