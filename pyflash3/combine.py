"""Attention over parts of the keys, merged into attention over all of them."""

from __future__ import annotations

import contextlib
import math
from ctypes import sizeof
from typing import Any, NamedTuple

import numpy as np

from . import _abi, _host
from ._call import check_writable, device_module, native, spec
from ._lib import library
from ._prepared import DTYPE_CODES, alignment_error
from ._specs import (
    CUDA_ALIGNMENT,
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

Array = Any  # numpy.ndarray, cupy.ndarray, or a CUDA object with __dlpack__

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
        out: (batch, seqlen, nheads, head_dim) of out_dtype to write to; None: a new array. On a GPU addresses and
            strides of out_partial and out must be multiples of 16 bytes, and so must a row of out; the work is enqueued
            on CuPy's current stream.
        out_dtype: float16, ml_dtypes.bfloat16 or float32; None: that of out, else float32.

    Returns:
        (out, lse), lse (batch, seqlen, nheads) float32: a view whose rows lie one behind the other, as in
        FlashAttention-3.

    Raises:
        ValueError: a shape, stride or place is wrong.
        TypeError: a dtype or the kind of an object is wrong.
        NotImplementedError: this build has no code for the GPU that the arrays are on.
        RuntimeError: no CUDA driver, or CUDA refused a launch.
        ImportError: libflash3.so was not found or is of another version.
    """
    partial, lses = native("out_partial", out_partial), native("lse_partial", lse_partial)
    result = None if out is None else native("out", out)
    dtype = _check(spec(partial), spec(lses), None if result is None else spec(result), out_dtype)
    arrays = _Arrays(partial, lses, result)
    if isinstance(partial, np.ndarray):
        params = _params(arrays, HOST, dtype)
        return _run(params, arrays, out, dtype, _OnHost(), None)
    device = device_module()
    params = _params(arrays, spec(partial)[3], dtype)
    with device.on_device(params.device) or contextlib.nullcontext():
        return _run(params, arrays, out, dtype, device, device.stream())


class _Arrays(NamedTuple):
    """The arrays of a call; out may be missing."""

    out_partial: Any
    lse_partial: Any
    out: Any


class _OnHost:
    """What _device is for arrays on a GPU."""

    empty = staticmethod(np.empty)
    pointer = staticmethod(_host.pointer)


def _params(arrays: _Arrays, device: int, dtype: np.dtype[Any]) -> _abi.CombineParams:
    num_splits, batch, seqlen, nheads, head_dim = arrays.out_partial.shape
    return _abi.CombineParams(
        struct_size=sizeof(_abi.CombineParams),
        abi_version=_abi.ABI_VERSION,
        backend=_abi.BACKEND_HOST if device == HOST else _abi.BACKEND_CUDA,
        device=device,
        dtype=DTYPE_CODES[dtype],
        num_splits=num_splits,
        batch=batch,
        nheads=nheads,
        head_dim=head_dim,
        num_threads=_host.num_threads() if device == HOST else 0,
        seqlen=seqlen,
    )


def _run(
    params: _abi.CombineParams, arrays: _Arrays, out: Any, dtype: np.dtype[Any], memory: Any, stream: int | None
) -> tuple[Any, Any]:
    """Issues the call, and returns its result; out is the caller's own object."""
    result = arrays.out
    if result is None:
        result = memory.empty(arrays.out_partial.shape[1:], dtype)
    else:
        check_writable("out", result)
    lse = memory.empty((params.batch, params.nheads, params.seqlen), FLOAT32).swapaxes(1, 2)
    wide = FLOAT32.itemsize if stream is None else CUDA_ALIGNMENT
    for name, x, dims, alignment in (
        ("out_partial", arrays.out_partial, 4, wide),
        ("lse_partial", arrays.lse_partial, 4, FLOAT32.itemsize),
        ("out", result, 3, dtype.itemsize if stream is None else CUDA_ALIGNMENT),
        ("lse", lse, 3, FLOAT32.itemsize),
    ):
        address = memory.pointer(x)
        if address % alignment:
            raise alignment_error(name, address, alignment)
        setattr(params, name, address)
        for dim, stride in zip(_DIMS[-dims:], x.strides, strict=False):
            setattr(params, f"{name}_{dim}_stride", stride // x.itemsize)
    lib = library()
    lib.check(lib.cdll.flash3_combine(params, stream))
    return (result if out is None else out), lse


def _check(partial: Spec, lses: Spec, out: Spec | None, out_dtype: Any) -> np.dtype[Any]:
    """The dtype of out, once everything is right."""
    check_rank("out_partial", partial, 5, "(num_splits, batch, seqlen, nheads, head_dim)")
    for name, x in (("out_partial", partial), ("lse_partial", lses)):
        if x[2] != FLOAT32:
            raise TypeError(f"{name} has dtype {x[2]}; it must be float32")
    shape, device = partial[0], partial[3]
    for name, x_or_none in (("lse_partial", lses), ("out", out)):
        if x_or_none is not None and x_or_none[3] != device:
            where = f"{place(x_or_none[3])}, but out_partial is {place(device)}"
            raise ValueError(f"{name} is {where}; all arrays must be in one place")
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
    return _check_out(shape[1:], device, out, out_dtype)


def _check_lse_strides(lses: Spec) -> None:
    shape, strides, dtype, _ = lses
    if math.prod(shape) and any(n > 1 and s % dtype.itemsize for n, s in zip(shape, strides, strict=True)):
        raise ValueError(f"lse_partial has strides {strides} bytes; each must be a multiple of {dtype.itemsize} bytes")


def _check_out(shape: tuple[int, ...], device: int, out: Spec | None, out_dtype: Any) -> np.dtype[Any]:
    dtype = (FLOAT32 if out is None else out[2]) if out_dtype is None else np.dtype(out_dtype)
    if dtype not in DTYPE_CODES:
        name = "out" if out_dtype is None else "out_dtype"
        raise TypeError(f"{name} is of dtype {dtype}; allowed are {', '.join(map(str, DTYPE_CODES))}")
    unit = CUDA_ALIGNMENT // dtype.itemsize
    if device != HOST and shape[-1] % unit:
        raise ValueError(
            f"out_partial has head_dim {shape[-1]}; on a GPU it must be a multiple of {unit} for an out of {dtype}"
        )
    if out is None:
        return dtype
    if out[2] != dtype:
        raise TypeError(f"out has dtype {out[2]}, but out_dtype is {dtype}; they must be equal")
    if out[0] != shape:
        raise ValueError(f"out has shape {out[0]}; it must be {shape}")
    leading_strides("out", out)
    check_no_overlap("out", out)
    return dtype
