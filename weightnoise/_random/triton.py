"""The sum of ``csrc/kernels.h`` on a GPU, in one pass, by Triton.

The same operations in the same order and without contraction, so that a key has the same numbers as on a CPU.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCKS = 256  # Of Philox in each program, with four numbers each.


@triton.jit
def _words(block, key):
    """The four words of each block: Philox 4x32-10 of Salmon, Moraes, Dror and Shaw, 2011."""
    a, b = block.to(tl.uint32), (block >> 32).to(tl.uint32)
    zero = a ^ a
    c, d = zero, zero
    low, high = zero + key.to(tl.uint32), zero + (key >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        first, first_high = a * 0xD2511F53, tl.umulhi(a, zero + 0xD2511F53)
        second, second_high = c * 0xCD9E8D57, tl.umulhi(c, zero + 0xCD9E8D57)
        a, b = second_high ^ b ^ low, second
        c, d = first_high ^ d ^ high, first
        low += 0x9E3779B9
        high += 0xBB67AE85
    return a, b, c, d


@triton.jit
def _normals(radius, angle):
    """Two standard normals from two words, as ``box_muller`` makes them."""
    x = ((radius >> 1).to(tl.int32).to(tl.float32) + 0.5) * 4.656612873077393e-10  # 2^-31
    bits = x.to(tl.uint32, bitcast=True) + (0x3F800000 - 0x3F3504F3)
    e = ((bits >> 23).to(tl.int32) - 127).to(tl.float32)
    m = ((bits & 0x007FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    square = m * m
    p = m * 7.0376836292e-2 - 1.1514610310e-1
    p = p * m + 1.1676998740e-1
    p = p * m - 1.2420140846e-1
    p = p * m + 1.4249322787e-1
    p = p * m - 1.6668057665e-1
    p = p * m + 2.0000714765e-1
    p = p * m - 2.4999993993e-1
    p = p * m + 3.3333331174e-1
    log = p * m * square - e * 2.12194440e-4 - square * 0.5 + m + e * 0.693359375
    r = tl.sqrt_rn(tl.where(log < 0.0, log * -2.0, 0.0))
    t = (angle << 2).to(tl.int32, bitcast=True).to(tl.float32) * 3.6572951981896324e-10  # 2^-32 of a quarter turn
    q = (angle + 0x20000000) >> 30
    s = t * t
    sine = ((s * -1.9515295891e-4 + 8.3321608736e-3) * s - 1.6666654611e-1) * s * t + t
    cosine = ((s * 2.443315711809948e-5 - 1.388731625493765e-3) * s + 4.166664568298827e-2) * s * s
    cosine = cosine - s * 0.5 + 1.0
    swap = (q & 1) != 0
    first = tl.where(swap, sine, cosine).to(tl.uint32, bitcast=True) ^ (((q + 1) & 2) << 30)
    second = tl.where(swap, cosine, sine).to(tl.uint32, bitcast=True) ^ ((q & 2) << 30)
    return r * first.to(tl.float32, bitcast=True), r * second.to(tl.float32, bitcast=True)


@triton.jit
def _add(out, weight, scale, place, count, row_size, strength, z, by_row: tl.constexpr):
    """``out = weight + strength * scale * z`` at some places."""
    inside = place < count
    factor = strength
    if by_row:
        factor = strength * tl.load(scale + place // row_size, mask=inside)
    tl.store(out + place, tl.load(weight + place, mask=inside) + factor * z, mask=inside)


@triton.jit
def kernel(out, weight, scale, key, count, row_size, strength, by_row: tl.constexpr, blocks: tl.constexpr):
    """The numbers of some blocks: word w of block b of a group of 16 is place 16 w + b of its 64."""
    block = tl.program_id(0).to(tl.int64) * blocks + tl.arange(0, blocks)
    a, b, c, d = _words(block, tl.load(key))
    first, second = _normals(a, b)
    third, fourth = _normals(c, d)
    place = block // 16 * 64 + block % 16
    _add(out, weight, scale, place, count, row_size, strength, first, by_row)
    _add(out, weight, scale, place + 16, count, row_size, strength, second, by_row)
    _add(out, weight, scale, place + 32, count, row_size, strength, third, by_row)
    _add(out, weight, scale, place + 48, count, row_size, strength, fourth, by_row)


def add_normal(out: Tensor, weight: Tensor, key: Tensor, strength: float, scale: Tensor | None) -> None:
    """``out = weight + strength * scale * e``.

    Args:
        out: contiguous float32, as ``weight``.
        weight: of the same size.
        key: one int64 number on the device, of the standard normal numbers e. A CUDA graph reads it when replayed.
        strength: a factor.
        scale: float32 numbers, one for each of as many rows of ``weight``; None for 1.
    """
    count = weight.numel()
    row_size = count if scale is None else count // scale.numel()
    programs = triton.cdiv(count, 4 * BLOCKS)
    # Triton launches on the current device. Its interpreter takes tensors of the CPU.
    with torch.cuda.device(weight.device) if weight.is_cuda else nullcontext():
        kernel[(programs,)](
            out,
            weight,
            weight if scale is None else scale,
            key,
            count,
            row_size,
            strength,
            by_row=scale is not None,
            blocks=BLOCKS,
            enable_fp_fusion=False,
        )
