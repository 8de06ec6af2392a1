"""Attention over parts of the keys, merged into attention over all of them."""

from __future__ import annotations

import math
from ctypes import sizeof
from typing import Any

import numpy as np

from . import _abi, _host
from ._call import check_writable, native, spec
from ._lib import library
from ._prepared import DTYPE_CODES
from ._specs import (
    FLOAT32,
    HOST,
    MAX_ROWS,
    MAX_SPLITS,
    Spec,
    check_no_overlap,
    check_rank,
    leading_strides,
    place,
)

Array = Any  # numpy.ndarray

__all__ = ["flash_attn_combine"]

_DIMS = ("split", "batch", "row", "head")


def flash_attn_combine(
    out_partial: Array, lse_partial: Array, out: Array | None = None, out_dtype: Any = None
) -> tuple[Any, Any]:
    """Merges results over parts of the keys: the last step of split-KV attention.

        lse = log(sum over splits of exp(lse_partial))
        out = sum over splits of exp(lse_partial - lse) * out_partial

    A split whose lse_partial is minus infinity has seen no key; its out_partial is not read and may hold anything. With
    nothing but such splits, out is 0 and lse minus infinity.

    Args:
        out_partial: (num_splits, batch, seqlen, nheads, head_dim) float32, 1 to 256 splits, the last dimension
            contiguous.
        lse_partial: (num_splits, batch, seqlen, nheads) float32, natural logarithm, with any strides. This is
            FlashAttention-3's order; the lse that flash_attn_func returns is (batch, nheads, seqlen), so stacked ones
            are passed as lse_partial.swapaxes(2, 3).
        out: (batch, seqlen, nheads, head_dim) of out_dtype to write to; None: a new array.
        out_dtype: float16, ml_dtypes.bfloat16 or float32; None: that of out, else float32.

    Returns:
        (out, lse), lse (batch, seqlen, nheads) float32: a view whose rows lie one behind the other, as in
        FlashAttention-3.

    Raises:
        ValueError: a shape, stride or place is wrong.
        TypeError: a dtype or the kind of an object is wrong.
        NotImplementedError: the arrays are on a GPU, for which this version has no kernel.
        ImportError: libflash3.so was not found or is of another version.
    """
    partial, lses = native("out_partial", out_partial), native("lse_partial", lse_partial)
    result = None if out is None else native("out", out)
    dtype = _check(spec(partial), spec(lses), None if result is None else spec(result), out_dtype)
    num_splits, batch, seqlen, nheads, head_dim = partial.shape
    if result is None:
        result = np.empty((batch, seqlen, nheads, head_dim), dtype)
    else:
        check_writable("out", result)
    lse = np.empty((batch, nheads, seqlen), np.float32).swapaxes(1, 2)
    params = _abi.CombineParams(
        struct_size=sizeof(_abi.CombineParams),
        abi_version=_abi.ABI_VERSION,
        backend=_abi.BACKEND_HOST,
        dtype=DTYPE_CODES[dtype],
        num_splits=num_splits,
        batch=batch,
        nheads=nheads,
        head_dim=head_dim,
        num_threads=_host.num_threads(),
        seqlen=seqlen,
    )
    for name, x, dims in (
        ("out_partial", partial, 4), ("lse_partial", lses, 4), ("out", result, 3), ("lse", lse, 3),
    ):  # fmt: skip
        address = _host.pointer(x)
        if address % x.itemsize:
            raise ValueError(f"{name} starts at address {address:#x}; it must be a multiple of {x.itemsize} bytes")
        setattr(params, name, address)
        for dim, stride in zip(_DIMS[-dims:], x.strides, strict=False):
            setattr(params, f"{name}_{dim}_stride", stride // x.itemsize)
    lib = library()
    lib.check(lib.cdll.flash3_combine(params, None))
    return (result if out is None else out), lse


def _check(partial: Spec, lses: Spec, out: Spec | None, out_dtype: Any) -> np.dtype[Any]:
    """The dtype of out, once everything is right."""
    check_rank("out_partial", partial, 5, "(num_splits, batch, seqlen, nheads, head_dim)")
    for name, x in (("out_partial", partial), ("lse_partial", lses)):
        if x[2] != FLOAT32:
            raise TypeError(f"{name} has dtype {x[2]}; it must be float32")
    for name, x_or_none in (("out_partial", partial), ("lse_partial", lses), ("out", out)):
        if x_or_none is not None and x_or_none[3] != HOST:
            raise NotImplementedError(
                f"{name} is {place(x_or_none[3])}; this version combines NumPy arrays only, for want of a CUDA kernel"
            )
    shape = partial[0]
    if not 1 <= shape[0] <= MAX_SPLITS:
        raise ValueError(f"out_partial has shape {shape}; the first dimension must be from 1 to {MAX_SPLITS} splits")
    if shape[3] < 1 or shape[4] < 1:
        raise ValueError(f"out_partial has shape {shape}; nheads and head_dim must be at least 1")
    if shape[1] * shape[2] > MAX_ROWS:
        raise ValueError(f"out_partial has shape {shape}; at most {MAX_ROWS} rows in all are allowed")
    if lses[0] != shape[:-1]:
        raise ValueError(f"lse_partial has shape {lses[0]}; it must be {shape[:-1]}")
    leading_strides("out_partial", partial)
    _check_lse_strides(lses)
    return _check_out(shape[1:], out, out_dtype)


def _check_lse_strides(lses: Spec) -> None:
    shape, strides, dtype, _ = lses
    if math.prod(shape) and any(n > 1 and s % dtype.itemsize for n, s in zip(shape, strides, strict=True)):
        raise ValueError(f"lse_partial has strides {strides} bytes; each must be a multiple of {dtype.itemsize} bytes")


def _check_out(shape: tuple[int, ...], out: Spec | None, out_dtype: Any) -> np.dtype[Any]:
    dtype = (FLOAT32 if out is None else out[2]) if out_dtype is None else np.dtype(out_dtype)
    if dtype not in DTYPE_CODES:
        name = "out" if out_dtype is None else "out_dtype"
        raise TypeError(f"{name} is of dtype {dtype}; allowed are {', '.join(map(str, DTYPE_CODES))}")
    if out is None:
        return dtype
    if out[2] != dtype:
        raise TypeError(f"out has dtype {out[2]}, but out_dtype is {dtype}; they must be equal")
    if out[0] != shape:
        raise ValueError(f"out has shape {out[0]}; it must be {shape}")
    leading_strides("out", out)
    check_no_overlap("out", out)
    return dtype
