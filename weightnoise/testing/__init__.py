"""Checks to run on your own models and laws before you trust them with noise."""

from weightnoise.testing._arrives import assert_noise_arrives
from weightnoise.testing._gradients import check_gradients
from weightnoise.testing._law import check_law
from weightnoise.testing._restores import assert_restores
from weightnoise.testing._unbiased import assert_unbiased

__all__ = ["assert_noise_arrives", "assert_restores", "assert_unbiased", "check_gradients", "check_law"]
