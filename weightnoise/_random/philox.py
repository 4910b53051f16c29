"""The fast generator of random numbers on the CPU, where the package was built with it.

Its numbers are a function of a key and of their place (``csrc/``), and the key comes from torch's generator:
what torch does to reproduce random numbers holds for these as well.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightnoise._random.memory import address, size_of_rows
from weightnoise._torch.autograd import output_like
from weightnoise._torch.modes import in_transform, is_plain, runs_eagerly, sees_operations
from weightnoise._torch.operators import make_operator

_GROUP = 64  # As csrc/ has it.
LEAST = 2048  # Numbers for which a call pays.

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_LEVELS = ("baseline", "AVX2", "AVX-512")
_KINDS = {
    "p": ctypes.c_void_p, "n": ctypes.c_int64, "k": ctypes.c_uint64, "i": ctypes.c_int, "f": ctypes.c_float
}  # fmt: skip
_ARGUMENTS = {  # Of each function of the library. Without them, Python hands addresses over cut to 32 bits.
    "fill": "pnkiii", "add": "pppinfnkii", "add_rows": "pppipnnfki", "apply": "ipppppnii", "part": "pnnki",
    "of_rows": "ipppnnii", "of_columns": "ipppnnnii", "mark": "ppni", "quantile": "p", "use_threads": "p",
}  # fmt: skip


def _load() -> ctypes.CDLL | None:
    path = Path(__file__).with_name("_philox.dll" if os.name == "nt" else "_philox.so")  # As setup.py names it.
    if not path.exists() or os.environ.get("WEIGHTNOISE_ENGINE") == "torch":
        return None
    try:
        library = ctypes.CDLL(str(path))
    except OSError:  # Built for another machine: torch's generator serves.
        return None
    for name, kinds in _ARGUMENTS.items():
        getattr(library, f"weightnoise_{name}").argtypes = [_KINDS[kind] for kind in kinds]
    if os.name != "nt":  # Windows cannot be asked for a function of any library: there it is one thread.
        # Of the OpenMP runtime that torch has loaded.
        parallel = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
        if parallel is not None:
            library.weightnoise_use_threads(ctypes.cast(parallel, ctypes.c_void_p))
    return library


_LIBRARY = _load()
_TRITON = _LIBRARY is not None and os.environ.get("WEIGHTNOISE_ENGINE") == "triton"
_LEVEL = 0 if _LIBRARY is None else _LIBRARY.weightnoise_level()


def engine() -> str:
    """Which generator draws large CPU tensors: ``"philox"`` with its instruction set, or ``"torch"``.

    The numbers of Philox are the same for every instruction set and thread count. It draws for float32,
    bfloat16 and float16 tensors of 2,048 or more elements. torch's generator draws for smaller ones, for
    other devices, and in transformations of `torch.func`; and for all where the package was installed
    without a C compiler, or with the environment variable ``WEIGHTNOISE_ENGINE=torch``.

    ``WEIGHTNOISE_ENGINE=triton`` adds the same numbers to float32 weights on CUDA devices in one pass. It is off
    by default because it has been tested in Triton's interpreter and compiled for sm_80 and sm_90, and not yet
    run on a GPU. It takes what the C library knows, so it is off without that.

    Example:
        >>> engine() in ("philox (baseline)", "philox (AVX2)", "philox (AVX-512)", "torch")
        True

    Source:
        Salmon, Moraes, Dror and Shaw, Parallel random numbers: as easy as 1, 2, 3, 2011; Thomas, Luk, Leong and
        Villasenor, Gaussian random number generators, 2007.
    """
    cpu = "torch" if _LIBRARY is None else f"philox ({_LEVELS[_LEVEL]})"
    return f"{cpu}; on CUDA philox (Triton)" if _TRITON else cpu


def can_fill(like: Tensor, count: int) -> bool:
    """Whether the engine draws ``count`` numbers with the dtype and device of ``like``, here and now."""
    return (
        _LIBRARY is not None
        and count >= LEAST
        and like.is_cpu
        and like.dtype in _DTYPES
        and (torch.compiler.is_compiling() or not in_transform())
    )


def filled(key: Tensor, shape: Sequence[int], *, uniform: bool = False) -> Tensor:
    """Standard normal float32 numbers of the given shape, or uniform ones on [0, 1), that belong to ``key``."""
    if torch.compiler.is_compiling() or sees_operations():
        # An operation of torch's. The numbers are the same: a forward may be in a mode, its recomputation not.
        numbers: Tensor = torch.ops.weightnoise.filled(key, shape, uniform)
        return numbers
    return _filled(key, shape, uniform)


def _filled(key: int | Tensor, size: Sequence[int], uniform: bool) -> Tensor:
    assert _LIBRARY is not None
    out, count = torch.empty(size, dtype=torch.float32, device="cpu"), math.prod(size)
    at = address(out, torch.float32, count)
    _LIBRARY.weightnoise_fill(at, count, int(key), uniform, _LEVEL, torch.get_num_threads())
    return out


def _fake(key: Tensor, size: Sequence[int], uniform: bool) -> Tensor:
    return torch.empty(size, dtype=torch.float32, device="cpu")


def _batched(info: Any, in_dims: Any, key: Tensor, size: Sequence[int], uniform: bool) -> tuple[Tensor, int]:
    return torch.stack([_filled(one, size, uniform) for one in key.unbind(in_dims[0])]), 0


if _LIBRARY is not None:
    # A graph holds the key, so that two draws are never merged.
    make_operator("filled", "(Tensor key, SymInt[] size, bool uniform) -> Tensor", _filled, _fake, _batched)


def can_fuse(weight: Tensor, eagerly: bool = False) -> bool:
    """Whether `add_normal` is right for this weight and worth its call, here and now.

    Args:
        weight: any tensor.
        eagerly: whether `may_matter` said no.
    """
    return (
        weight.numel() >= LEAST
        and weight.dtype is torch.float32
        and (eagerly or runs_eagerly())  # First: what a transformation has wrapped has no memory to ask for.
        and ((_LIBRARY is not None and weight.is_cpu) or by_triton(weight))
        and is_plain(weight)
    )


def coefficients() -> Tensor:
    """The coefficients of the normal quantile (``csrc/quantile.h``), by octave and term."""
    assert _LIBRARY is not None
    out = torch.empty((32, 6), dtype=torch.float32, device="cpu")
    _LIBRARY.weightnoise_quantile(address(out, torch.float32, 192))
    return out


def by_triton(weight: Tensor) -> bool:
    """Whether `add_normal` takes a key on the device of this weight."""
    return _TRITON and weight.is_cuda and not in_transform()


def add_normal(
    weight: Tensor, key: int | Tensor, strength: float, scale: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """``weight + strength * scale * e``, in one pass, with the gradient going to ``weight`` unchanged.

    Args:
        weight: what `fuses` has agreed to.
        key: of the standard normal numbers e; a tensor on the device of the weight, where that is a GPU.
        strength: a factor.
        scale: one number, or one for each row (dimension 0) of the weight; or, with 1 as its first dimension, for
            each place of a row; None for 1.
        out: where to write it, which may be the weight, past autograd.
    """
    count = weight.numel()
    if out is None:
        out = output_like(weight)
    scales, width = (None, 0) if scale is None else _scales(scale, weight)
    if isinstance(key, Tensor):
        from weightnoise._random import triton as _triton  # Triton takes long to import, and most never need it.

        _triton.add_normal(out, weight, key, strength, scales, width)
        return out
    assert _LIBRARY is not None
    if scales is None:
        scale_at, row_size = None, count
    else:
        several = scales.numel()
        scale_at = address(scales, torch.float32, several)
        row_size = width or size_of_rows(count, several)
    _LIBRARY.weightnoise_add(
        address(out, torch.float32, count),
        address(weight, torch.float32, count),
        scale_at,
        width > 0,
        row_size,
        strength,
        count,
        key,
        _LEVEL,
        torch.get_num_threads(),
    )
    return out


def _scales(scale: Tensor | None, weight: Tensor) -> tuple[Tensor | None, int]:
    """The scales side by side, and the length of a row where there is one for each place of it; else 0.

    C takes a group of places at once, and so goes up to a group further.
    """
    if scale is None:
        return None, 0
    if not (scale.ndim > 1 and scale.shape[0] == 1 < scale.numel()):
        return scale.to(torch.float32).contiguous(), 0
    across = scale.to(torch.float32).expand(1, *weight.shape[1:]).reshape(-1)
    size = across.numel()
    return across.repeat(1 - (-_GROUP // size)), size


def add_normal_rows(rows: Tensor, index: Tensor, key: int, strength: float, scale: Tensor | None) -> Tensor:
    """The rows ``index`` of what `add_normal` makes of a weight, from these rows of the weight.

    Args:
        rows: of the weight, contiguous.
        index: which ones.
        key: of the standard normal numbers of the whole weight.
        strength: a factor.
        scale: one number, or one for each of ``rows``, or of shape (1, n) one for each place of a row; None for 1.
    """
    assert _LIBRARY is not None
    count, width = rows.shape
    if scale is None:
        scale = torch.ones((), dtype=torch.float32, device="cpu")
    scales, across = _scales(scale, rows)
    assert scales is not None
    if not across:
        scales = scales.reshape(-1).expand(count).contiguous()
    index, out = index.to(torch.int64).contiguous(), output_like(rows)
    _LIBRARY.weightnoise_add_rows(
        address(out, torch.float32, count * width),
        address(rows, torch.float32, count * width),
        address(scales, torch.float32, len(scales)),
        across > 0,
        address(index, torch.int64, count),
        count,
        width,
        strength,
        key,
        _LEVEL,
    )
    return out
