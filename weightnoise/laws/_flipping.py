"""Flipping single bits, of integer codes and of floats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from weightnoise._errors import OptionError
from weightnoise._random import seeds as _seeds
from weightnoise._random.places import event_places, first_places
from weightnoise._torch.modes import in_transform, number_of, sees_operations

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
BITS = (64, 32, 16, 16)
NAMES = ("sign", "exponent", "mantissa")

_MANTISSA = (52, 23, 10, 7)
_WHOLE = {64: torch.int64, 32: torch.int32, 16: torch.int16}


def positions_of(dtype: torch.dtype, bits: int, chosen: Sequence[int | str]) -> list[int]:
    """The numbers of the bits that may flip: of a code of ``bits`` bits, or, for 0, of a float."""
    kind = DTYPES.index(dtype)
    size, mantissa = (bits, bits - 1) if bits else (BITS[kind], _MANTISSA[kind])
    named = {"sign": [size - 1], "exponent": range(mantissa, size - 1), "mantissa": range(mantissa)}
    found = [bit for one in chosen or range(size) for bit in (named[one] if isinstance(one, str) else (one,))]
    return list(dict.fromkeys(found))


def flip(
    weight: Tensor,
    draw: Tensor,
    factor: float | Tensor,
    step: Tensor | None,
    p: float | None,
    count: int | None,
    bits: int,
    chosen: Sequence[int | str],
    clamp: bool,
) -> Tensor:
    """A copy of the weight with the flipped bits that belong to a draw; no gradient goes through it.

    Args:
        weight: the clean weight.
        draw: a key, and the number of the dtype that it was drawn for.
        factor: what multiplies ``p`` or ``count``; the mirrored draw has other faults.
        step: of an integer code, for each weight; None for the bits of floats.
        p: the probability of a flip.
        count: how many flips there are, in the place of p.
        bits: the length of an integer code; 0 for floats.
        chosen: the positions, all for none.
        clamp: whether what is no finite number becomes the largest one.
    """
    named = [NAMES.index(one) - len(NAMES) if isinstance(one, str) else one for one in chosen]
    given = -1.0 if p is None else p, -1 if count is None else count, bits, named, clamp
    scale = weight.new_zeros(()) if step is None else step
    if torch.compiler.is_compiling() or sees_operations() or in_transform():
        if not isinstance(factor, Tensor):
            factor = torch.full((), factor, dtype=torch.float64, device="cpu")
        flipped: Tensor = torch.ops.weightnoise.flip_bits(weight, draw, factor, scale, *given)
        return flipped
    return _flip(weight, draw, factor, scale, *given)


def _flip(
    weight: Tensor,
    draw: Tensor,
    factor: float | Tensor,
    step: Tensor,
    p: float,
    count: int,
    bits: int,
    named: Sequence[int],
    clamp: bool,
) -> Tensor:
    chosen = [NAMES[one] if one < 0 else one for one in named]
    key, kind = draw.tolist()
    times = number_of(factor)
    if times < 0:
        key, times = _seeds.derive_seed(key, "mirror"), -times
    bit_of = positions_of(DTYPES[kind], bits, chosen)
    size = weight.numel() * len(bit_of)
    if count < 0:
        places = event_places(key, size, p, p * times)
    elif round(count * times) <= size:
        places = first_places(key, size, round(count * times))
    else:
        raise OptionError(f"BitFlip(count={count}) scaled by {times:g} is more than the {size} bits of a weight.")
    noisy = weight.clone(memory_format=torch.contiguous_format)
    # Of another float than it was drawn for, the upper bits are the same.
    bit = torch.tensor(bit_of, dtype=torch.int64, device="cpu")[places % len(bit_of)]
    bit += 0 if bits else BITS[DTYPES.index(weight.dtype)] - BITS[kind]
    there = bit >= 0
    at, bit = (one[there].to(weight.device) for one in (places // len(bit_of), bit))
    if bits:
        _move_codes(noisy.view(-1), weight, step, at, bit, bits)
    else:
        _move_floats(noisy.view(-1), at, bit, clamp)
    return noisy


def _move_codes(flat: Tensor, weight: Tensor, step: Tensor, at: Tensor, bit: Tensor, bits: int) -> None:
    """Add what the flips do to integer codes."""
    one = step.numel() == 1
    own = step.reshape(()) if one else step.expand(weight.shape)[torch.unravel_index(at, weight.shape)]
    code = (flat[at].to(step.dtype) / torch.where(own > 0, own, 1.0)).round().long()
    value = torch.where(bit == bits - 1, -1, 1) << bit
    moved = torch.where((code >> bit) & 1 == 1, -value, value) * own
    # Several flips of one weight are added up before they are rounded.
    places, inverse = torch.unique(at, return_inverse=True)
    total = torch.zeros(len(places), dtype=moved.dtype, device=moved.device).index_add_(0, inverse, moved)
    flat[places] = (flat[places].to(moved.dtype) + total).to(flat.dtype)


def _move_floats(flat: Tensor, at: Tensor, bit: Tensor, clamp: bool) -> None:
    """Flip the bits of floats: a sum of different powers of 2, which carries nothing."""
    whole = flat.view(_WHOLE[flat.element_size() * 8])
    value = torch.ones_like(bit) << bit
    whole.index_add_(0, at, torch.where((whole[at].long() >> bit) & 1 == 1, -value, value).to(whole.dtype))
    if clamp:
        made, largest = flat[at], torch.finfo(flat.dtype).max
        flat[at] = torch.where(made.isfinite(), made, torch.where(torch.signbit(made), -largest, largest))


_OPERATOR = torch.library.custom_op(
    "weightnoise::flip_bits",
    _flip,
    mutates_args=(),
    schema=(
        "(Tensor weight, Tensor draw, Tensor factor, Tensor step, float p, int count, int bits, int[] named, "
        "bool clamp) -> Tensor"
    ),
)


@_OPERATOR.register_fake
def _fake(weight: Tensor, *args: Any) -> Tensor:
    return weight.new_empty(weight.shape)


@_OPERATOR.register_vmap
def _batched(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
    size = info.batch_size
    each = [
        [one.select(dim, place) if isinstance(dim, int) else one for one, dim in zip(args, in_dims, strict=True)]
        for place in range(size)
    ]
    return torch.stack([torch.ops.weightnoise.flip_bits(*one) for one in each]), 0
