"""The numbers of the generator, written from their definition in NumPy: see ``csrc/kernels.h``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from weightnoise._random import philox as _engine

Array = npt.NDArray[Any]


def philox(counter: tuple[Array | int, ...], key: tuple[int, int], rounds: int = 7) -> tuple[Array, ...]:
    """The four words of Philox 4x32 (Salmon, Moraes, Dror and Shaw, 2011) for each counter."""
    a, b, c, d = (np.asarray(word, dtype=np.uint64) for word in np.broadcast_arrays(*counter))
    low, high = key
    for _ in range(rounds):
        first, second = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b, c, d = (
            (second >> np.uint64(32)) ^ b ^ np.uint64(low), second & np.uint64(0xFFFFFFFF),
            (first >> np.uint64(32)) ^ d ^ np.uint64(high), first & np.uint64(0xFFFFFFFF),
        )  # fmt: skip
        low, high = (low + 0x9E3779B9) % 2**32, (high + 0xBB67AE85) % 2**32
    return a, b, c, d


def words(key: int, count: int, start: int = 0) -> Array:
    """The words at ``count`` places from ``start`` on."""
    place = np.arange(start, start + count, dtype=np.uint64)
    group, within = place // np.uint64(64), place % np.uint64(64)
    block = group * np.uint64(16) + within % np.uint64(32) // np.uint64(2)
    made = philox((block % 2**32, block >> np.uint64(32), 0, 0), (key % 2**32, key >> 32))
    return np.stack(made)[
        np.array([1, 0, 3, 2])[(within // np.uint64(32) * np.uint64(2) + within % np.uint64(2)).astype(int)],
        np.arange(count),
    ].astype(np.uint32)


def normals(words: Array) -> Array:
    """The standard normal numbers of some words."""
    bits = (words | np.uint32(1)).view(np.int32).astype(np.float32).view(np.uint32)
    octave = (bits >> np.uint32(23)) % np.uint32(256) - np.uint32(127)
    m = ((bits & np.uint32(0x007FFFFF)) | np.uint32(0x3F800000)).view(np.float32)
    of_octave = _engine.coefficients().numpy()[octave]
    total = of_octave[:, 5]
    for term in range(4, -1, -1):
        total = total * m + of_octave[:, term]
    return (total.view(np.uint32) ^ (words & np.uint32(0x80000000))).view(np.float32)


def uniforms(words: Array) -> Array:
    """The numbers on [0, 1) of some words."""
    return (words >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)
