"""The laws of noise: what is drawn, and how it is applied to a weight.

A law separates *drawing* from *applying*. Keeping a draw for a forward, holding it, mirroring it,
scaling it and reproducing it then work for every law at once, also for a law of your own.
"""

from weightnoise.laws._activation import CurrentNoise, NEFTune, SaltAndPepper
from weightnoise.laws._additive import Gaussian, Uniform
from weightnoise.laws._custom import Custom
from weightnoise.laws._faults import BitFlip, StuckAt
from weightnoise.laws._fixed import Clip, Temperature
from weightnoise.laws._guarded import guarded, is_ours
from weightnoise.laws._law import (
    ActivationLaw,
    Noise,
    apply_law,
    deviation_of,
    factor_problem_of,
    freeze,
    is_straight_through,
    law_at,
    moved,
    problem_of,
    redraw,
    sample,
    straight_through,
    strengths_of,
)
from weightnoise.laws._learned import LearnedGaussian, ParametricNoise, Variational
from weightnoise.laws._masks import DropConnect
from weightnoise.laws._multiplicative import LogNormal
from weightnoise.laws._programming import ProgrammingNoise
from weightnoise.laws._protect import Protect
from weightnoise.laws._quantize import QuantizationNoise, Quantize
from weightnoise.laws._spec import Chain, as_law, innermost, is_for_activations, learns_or_freezes
from weightnoise.laws._variational_dropout import VariationalDropout

__all__ = [
    "ActivationLaw",
    "BitFlip",
    "Chain",
    "Clip",
    "CurrentNoise",
    "Custom",
    "DropConnect",
    "Gaussian",
    "LearnedGaussian",
    "LogNormal",
    "NEFTune",
    "Noise",
    "ParametricNoise",
    "ProgrammingNoise",
    "Protect",
    "QuantizationNoise",
    "Quantize",
    "SaltAndPepper",
    "StuckAt",
    "Temperature",
    "Uniform",
    "Variational",
    "VariationalDropout",
    "apply_law",
    "as_law",
    "deviation_of",
    "factor_problem_of",
    "freeze",
    "guarded",
    "innermost",
    "is_for_activations",
    "is_ours",
    "is_straight_through",
    "law_at",
    "learns_or_freezes",
    "moved",
    "problem_of",
    "redraw",
    "sample",
    "straight_through",
    "strengths_of",
]
