"""The laws of noise: what is drawn, and how it is applied to a weight.

A law separates *drawing* from *applying*. Keeping a draw for a forward, holding it, mirroring it,
scaling it and reproducing it then work for every law at once, also for a law of your own.
"""

from weightnoise.laws._additive import Gaussian, Uniform
from weightnoise.laws._custom import Custom
from weightnoise.laws._masks import DropConnect
from weightnoise.laws._protocol import Noise, problem_of, straight_through
from weightnoise.laws._spec import Chain, as_law

__all__ = [
    "Chain",
    "Custom",
    "DropConnect",
    "Gaussian",
    "Noise",
    "Uniform",
    "as_law",
    "problem_of",
    "straight_through",
]
