"""The sum of ``csrc/kernels.h`` on a GPU, in one pass, by Triton.

The same operations in the same order and without contraction, so that a key has the same numbers as on a CPU.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from weightnoise._random import philox as _engine

BLOCKS = 256  # Of Philox in each program, with four numbers each.


@triton.jit
def _words(block, key):
    """The four words of each block: Philox 4x32-7 of Salmon, Moraes, Dror and Shaw, 2011."""
    a, b = block.to(tl.uint32), (block >> 32).to(tl.uint32)
    zero = a ^ a
    c, d = zero, zero
    low, high = zero + key.to(tl.uint32), zero + (key >> 32).to(tl.uint32)
    for _ in tl.static_range(7):
        first, first_high = a * 0xD2511F53, tl.umulhi(a, zero + 0xD2511F53)
        second, second_high = c * 0xCD9E8D57, tl.umulhi(c, zero + 0xCD9E8D57)
        a, b = second_high ^ b ^ low, second
        c, d = first_high ^ d ^ high, first
        low += 0x9E3779B9
        high += 0xBB67AE85
    return a, b, c, d


@triton.jit
def _normals(word, coefficients):
    """The quantiles that words stand for, as ``csrc/quantile.h`` has them."""
    bits = (word | 1).to(tl.int32, bitcast=True).to(tl.float32).to(tl.uint32, bitcast=True)
    row = coefficients + (((bits >> 23) & 255).to(tl.int32) - 127) * 6
    m = ((bits & 0x007FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    z = tl.load(row + 5)
    for term in tl.static_range(5):
        z = z * m + tl.load(row + 4 - term)
    return (z.to(tl.uint32, bitcast=True) ^ (word & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def _add(out, weight, scale, place, count, row_size, strength, z, scales: tl.constexpr):
    """``out = weight + strength * scale * z`` at some places."""
    inside = place < count
    factor = strength
    if scales == "row":
        factor = strength * tl.load(scale + place // row_size, mask=inside)
    if scales == "place":
        factor = strength * tl.load(scale + place % row_size, mask=inside)
    tl.store(out + place, tl.load(weight + place, mask=inside) + factor * z, mask=inside)


@triton.jit
def kernel(
    out, weight, scale, key, coefficients, count, row_size, strength, scales: tl.constexpr, blocks: tl.constexpr
):
    """The numbers of some blocks, at the places that ``csrc/kernels.h`` gives to the words of a block."""
    block = tl.program_id(0).to(tl.int64) * blocks + tl.arange(0, blocks)
    a, b, c, d = _words(block, tl.load(key))
    place = block // 16 * 64 + block % 16 * 2
    _add(out, weight, scale, place, count, row_size, strength, _normals(b, coefficients), scales)
    _add(out, weight, scale, place + 1, count, row_size, strength, _normals(a, coefficients), scales)
    _add(out, weight, scale, place + 32, count, row_size, strength, _normals(d, coefficients), scales)
    _add(out, weight, scale, place + 33, count, row_size, strength, _normals(c, coefficients), scales)


@cache
def _coefficients(device: torch.device) -> Tensor:
    return _engine.coefficients().to(device)


def add_normal(
    out: Tensor, weight: Tensor, key: Tensor, strength: float, scale: Tensor | None, width: int = 0
) -> None:
    """``out = weight + strength * scale * e``.

    Args:
        out: contiguous float32, as ``weight``.
        weight: of the same size.
        key: one int64 number on the device, of the standard normal numbers e. A CUDA graph reads it when replayed.
        strength: a factor.
        scale: float32 numbers, one for each of as many rows of ``weight``; None for 1.
        width: the length of a row where there is one for each place of it, the same in all rows; else 0.
    """
    count = weight.numel()
    scales = "none" if scale is None else "place" if width else "row"
    row_size = count
    if scale is not None:
        row_size = width or count // scale.numel()
    programs = triton.cdiv(count, 4 * BLOCKS)
    # Triton launches on the current device. Its interpreter takes tensors of the CPU.
    with torch.cuda.device(weight.device) if weight.is_cuda else nullcontext():
        kernel[(programs,)](
            out,
            weight,
            weight if scale is None else scale,
            key,
            _coefficients(weight.device),
            count,
            row_size,
            strength,
            scales=scales,
            blocks=BLOCKS,
            enable_fp_fusion=False,
        )
