"""Measured memory devices, as values of `ProgrammingNoise`.

Each is a fit that its source has published, with what the source does not say left out. Change a value with
`dataclasses.replace`: ``replace(devices.SONOS, time=86400.0)``; leave a part out with ``programming=()``,
``drift=()``, ``relaxation=()``, ``shift=()`` or ``read=()``. Times are seconds since the first read, which is t0
after programming. Beyond the measurements a `DeviceRangeWarning` comes once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from weightnoise.laws import ProgrammingNoise

__all__ = ["PCM", "PCM_JOSHI", "RERAM_CMO", "RERAM_MILO", "RERAM_WAN", "SONOS"]

_DAY = 86400.0

PCM = ProgrammingNoise()
"""Phase-change memory up to 25 microsiemens: programming, drift and 1/f read noise.

Source:
    Nandakumar et al., Phase-change memory models for deep learning training and inference, 2019; coefficients as
    in the open-source IBM Analog Hardware Acceleration Kit, which gives no longest time.
"""

PCM_JOSHI = ProgrammingNoise(
    25.0,
    g_min=0.25,
    programming=(0.28638599, 0.07585724 * 25.0, -0.00178767 * 25.0**2),
    g_reference=25.0,
    drift=(),
    t0=27.36,
    read=(),
    measured=(None, 25.0, 0.0),
)
"""Phase-change memory from 0.25 to 25 microsiemens, 27 s after programming: programming alone.

Source:
    Joshi et al., Accurate deep neural network inference using computational phase-change memory, 2020, figure 3b;
    the quadratic fit of CrossSim (Sandia National Laboratories).
"""

RERAM_WAN = ProgrammingNoise(
    40.0,
    programming=(
        (0.0, (0.348, 16.030, -43.853, 45.393, -16.815)),
        (_DAY, (0.701, 22.086, -50.773, 47.095, -16.458)),
        (2 * _DAY, (0.782, 20.274, -43.507, 37.062, -11.934)),
    ),
    g_reference=40.0,
    drift=(),
    t0=1.0,
    read=(),
    measured=(None, 40.0, 2 * _DAY),
)
"""Resistive memory up to 40 microsiemens: the spread around the target 1 s, 1 day and 2 days after programming.

Short-term read noise is not in it; the kit that the fit is from takes about 1 % of the largest weight: add
``Gaussian(0.01, relative_to="absmax")`` in a list.

Source:
    Wan et al., A compute-in-memory chip based on resistive random-access memory, 2022 (extended data, figure 3);
    polynomials as in the IBM Analog Hardware Acceleration Kit.
"""

RERAM_CMO = ProgrammingNoise(
    88.199997,
    g_min=9.0,
    pairs=(),
    programming=(0.00081107, 0.00106879 * 88.199997),
    g_reference=88.199997,
    shift=((0.0, (0.0,)), (_DAY, (-0.08900206 * math.log1p(_DAY),))),
    drift=(),
    relaxation=((0.0, (0.41183342,)), (_DAY, (0.41183342 + 0.04201137 * math.log1p(_DAY),))),
    t0=1.0,
    read=tuple((g, 0.0277316483 * math.log10(g)) for g in (1.0, 4.0, 9.0, 13.0, 20.0, 30.0, 45.0, 65.0, 95.0)),
    t_read=1e-6,
    bounds=(9.0, 88.199997),
    measured=(9.0, 88.199997, None),
)
"""Resistive memory of conductive metal oxide and HfOx, one device for each weight, from 9 to 88.2 microsiemens.

Programmed to within 0.2 % of the target; for 2 % ``programming=(0.0112185391, 0.01129027418 * 88.199997)``. The
relaxation is linear in ln t from 1 s on; its source goes on to ten years in this way.

Source:
    Falcone et al., All-in-one analog AI hardware: on-chip training and inference with conductive-metal-oxide/HfOx
    ReRAM devices, 2025, arXiv 2502.04524; coefficients as in the IBM Analog Hardware Acceleration Kit.
"""

RERAM_MILO = ProgrammingNoise(
    225.0,
    g_min=50.0,
    programming=(4.782321, -0.009107 * 225.0),
    g_reference=225.0,
    drift=(),
    read=(),
    measured=(50.0, 225.0, 0.0),
)
"""Resistive memory from 50 to 225 microsiemens, programmed with verification (IGVVA-100): programming alone.

Source:
    Milo et al., Optimized programming algorithms for multilevel RRAM in hardware neural networks, 2021, figure 4;
    the linear fit of CrossSim.
"""


def _saturating(height: float, scale: float) -> tuple[tuple[float, float], ...]:
    """``height (1 - exp(-I / scale))`` at some currents; straight lines between them are within 0.2 nA."""
    currents = (*range(0, 201, 40), 250, 300, 400, 500, 600, 800, 1000, 1300, 1600)
    return tuple((float(one), round(height * -math.expm1(-one / scale), 3)) for one in currents)


def _moved(at_hundreds: Iterable[float]) -> tuple[tuple[float, float], ...]:
    """What a current gains, given at 0, 100, ... 1400 nA."""
    return tuple((100.0 * place, value) for place, value in enumerate(at_hundreds))


SONOS = ProgrammingNoise(
    1600.0,
    programming=tuple(
        (day * _DAY, _saturating(*fit))
        for day, fit in enumerate(
            (
                (19.88665, 176.3115),
                (25.59102, 186.85544),
                (28.72753, 193.56834),
                (31.04318, 198.90332),
                (33.76214, 204.77023),
                (34.57909, 207.34309),
            )
        )
    ),
    shift=(
        (0.0, (0.0,)),
        (
            1 * _DAY,
            _moved(
                (
                    0.7,
                    -0.7,
                    -3.8,
                    -8.4,
                    -13.1,
                    -16.8,
                    -19.4,
                    -22.0,
                    -24.9,
                    -27.5,
                    -29.5,
                    -31.1,
                    -33.6,
                    -36.2,
                    -38.9,
                )
            ),
        ),
        (
            2 * _DAY,
            _moved(
                (0.7, 0.1, -3.0, -8.1, -13.6, -18.2, -21.8, -25.2, -28.9, -32.5, -35.3, -37.5, -40.0, -43.1, -45.9)
            ),
        ),
        (
            3 * _DAY,
            _moved(
                (1.2, 0.6, -2.8, -8.7, -15.4, -20.8, -24.8, -28.6, -32.8, -36.9, -40.1, -42.7, -46.0, -50.4, -54.9)
            ),
        ),
        (
            4 * _DAY,
            _moved(
                (0.9, 1.0, -2.2, -8.8, -16.0, -21.8, -26.1, -30.4, -35.4, -40.4, -44.2, -47.0, -50.6, -55.6, -60.2)
            ),
        ),
        (
            5 * _DAY,
            _moved(
                (1.2, 1.2, -2.4, -9.6, -17.4, -23.5, -28.2, -32.7, -37.9, -42.9, -46.7, -49.4, -52.6, -57.1, -60.3)
            ),
        ),
    ),
    drift=(),
    t0=_DAY,
    read=_saturating(12.58037, 215.36557),
    t_read=None,
    measured=(0.0, 1600.0, 5 * _DAY),
)
"""Charge-trap memory (SONOS, 40 nm) below its threshold, in nA up to 1600: drift, spread over 5 days, read noise.

Tables of the fits of CrossSim, whose spread and read noise are saturating exponentials of the current. Its
polynomials of degree 10 for the mean drift swing above 1400 nA (at 1600 nA to -246, -98, -197, -160 and -118 nA on
the days 1 to 5): here the drift stays what it is at 1400 nA.

Source:
    Agrawal et al., Subthreshold operation of SONOS analog memory to enable accurate low-power neural network
    inference, 2022, figures 10 and 11; fits of CrossSim.
"""
