"""One attention call as shapes, strides and numbers: everything of it but the data. Pure; nothing here touches a GPU.

`AttnProblem.of` holds every check that needs no device contents. ValueError: a shape, stride, place or number is
wrong. TypeError: a dtype or the kind of an object is wrong. Each message names the argument, its value and what is
allowed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

HOST = -1
MAX_HEAD_DIM = 256
MAX_ROWS = 2**31 - 1
MAX_SPLITS = 256
CUDA_ALIGNMENT = 16  # bytes; the tensor memory accelerator of the GPU needs it of addresses and strides

FLOAT16 = np.dtype(np.float16)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32 = np.dtype(np.float32)
INT32 = np.dtype(np.int32)

# Shape, strides in bytes, dtype, and the CUDA ordinal or HOST. A plain tuple, since one is made per array and call.
Spec = tuple[tuple[int, ...], tuple[int, ...], "np.dtype[Any]", int]
Strides = tuple[int, int, int]  # of batch, row and head, in elements


class Request(NamedTuple):
    """What a caller asked for, hashable, so that equal calls are checked once."""

    q: Spec
    k: Spec
    v: Spec
    out: Spec | None
    cu_seqlens_q: Spec | None
    cu_seqlens_k: Spec | None
    seqused_q: Spec | None
    seqused_k: Spec | None
    alibi_slopes: Spec | None
    sinks: Spec | None
    max_seqlen_q: int | None
    max_seqlen_k: int | None
    softmax_scale: float | None
    softcap: float
    window: tuple[int, int]
    num_splits: int
    sm_margin: int


ARRAYS = Request._fields[:10]


@dataclass(frozen=True, slots=True)
class AttnProblem:
    """A checked call. Sizes count rows, heads and elements; strides count elements."""

    device: int  # CUDA ordinal, or HOST
    dtype: np.dtype[Any]
    batch: int
    nheads: int
    nheads_k: int
    head_dim: int
    head_dim_v: int
    packed: bool
    rows_q: int  # packed: of all sequences; dense: of each batch entry
    rows_k: int
    max_seqlen_q: int
    max_seqlen_k: int
    q_strides: Strides
    k_strides: Strides
    v_strides: Strides
    out_strides: Strides
    out_shape: tuple[int, ...]
    lse_shape: tuple[int, ...]
    alibi_batch_stride: int
    softmax_scale: float
    softcap: float
    window_left: int
    window_right: int
    num_splits: int
    sm_margin: int

    @property
    def alignment(self) -> int:
        """What the addresses of q, k, v and out must be multiples of, in bytes."""
        return self.dtype.itemsize if self.device == HOST else CUDA_ALIGNMENT

    @staticmethod
    def of(r: Request) -> AttnProblem:
        """Checks a request. Raises ValueError, TypeError or NotImplementedError."""
        packed = r.cu_seqlens_q is not None
        _check_tensors(r, packed)
        shape_q, shape_k, shape_v = r.q[0], r.k[0], r.v[0]
        out_shape = (*shape_q[:-1], shape_v[-1])
        batch = _check_batch(r)
        _check_heads(shape_q, shape_k)
        rows_q, rows_k = shape_q[-3], shape_k[-3]
        for name, rows in (("q", rows_q), ("k", rows_k)):
            if rows * (1 if packed else batch) > MAX_ROWS:
                raise ValueError(f"{name} has {rows} rows in {batch} sequences; at most {MAX_ROWS} in all are allowed")
        nheads = shape_q[-2]
        _check_options(r)
        return AttnProblem(
            device=r.q[3],
            dtype=r.q[2],
            batch=batch,
            nheads=nheads,
            nheads_k=shape_k[-2],
            head_dim=shape_q[-1],
            head_dim_v=shape_v[-1],
            packed=packed,
            rows_q=rows_q,
            rows_k=rows_k,
            max_seqlen_q=r.max_seqlen_q or 0,
            max_seqlen_k=r.max_seqlen_k or 0,
            q_strides=_strides("q", r.q),
            k_strides=_strides("k", r.k),
            v_strides=_strides("v", r.v),
            out_strides=_out_strides(r.out, out_shape),
            out_shape=out_shape,
            lse_shape=(nheads, rows_q) if packed else (batch, nheads, rows_q),
            alibi_batch_stride=_alibi_batch_stride(r, batch, nheads),
            softmax_scale=_softmax_scale(r.softmax_scale, shape_q[-1]),
            softcap=r.softcap,
            window_left=r.window[0],
            window_right=r.window[1],
            num_splits=r.num_splits,
            sm_margin=r.sm_margin,
        )


def check_lse(lse: Spec, problem: AttnProblem) -> None:
    """ValueError or TypeError unless lse is a contiguous float32 array of the problem's lse_shape, beside q."""
    shape, strides, dtype, device = lse
    if dtype != FLOAT32:
        raise TypeError(f"lse has dtype {dtype}; it must be float32")
    if device != problem.device:
        raise ValueError(f"lse is {place(device)}, but q is {place(problem.device)}; all arrays must be in one place")
    if shape != problem.lse_shape:
        raise ValueError(f"lse has shape {shape}; it must be {problem.lse_shape}")
    dense = [math.prod(shape[i + 1 :]) * dtype.itemsize for i in range(len(shape))]
    if 0 not in shape and any(n > 1 and s != d for n, s, d in zip(shape, strides, dense, strict=True)):
        raise ValueError(f"lse has strides {strides} bytes; it must be contiguous")


def place(device: int) -> str:
    """A device ordinal in words."""
    return "on the host" if device == HOST else f"on CUDA device {device}"


def _check_tensors(r: Request, packed: bool) -> None:
    dims_q, dims_k = ("total_q", "total_k") if packed else ("batch, seqlen_q", "batch, seqlen_k")
    _check_rank("q", r.q, 3 if packed else 4, f"({dims_q}, nheads, head_dim)")
    _check_rank("k", r.k, 3 if packed else 4, f"({dims_k}, nheads_k, head_dim)")
    _check_rank("v", r.v, 3 if packed else 4, f"({dims_k}, nheads_k, head_dim_v)")
    device, dtype = r.q[3], r.q[2]
    allowed = (FLOAT16, BFLOAT16, FLOAT32) if device == HOST else (FLOAT16, BFLOAT16)
    if dtype not in allowed:
        where = "NumPy arrays" if device == HOST else "a GPU"
        raise TypeError(f"q has dtype {dtype}; allowed on {where} are {', '.join(map(str, allowed))}")
    for name, spec in (("k", r.k), ("v", r.v), ("out", r.out)):
        if spec is not None and spec[2] != dtype:
            raise TypeError(f"{name} has dtype {spec[2]}, but q has {dtype}; q, k, v and out must have the same")
    for name in ARRAYS[1:]:
        spec = getattr(r, name)
        if spec is not None and spec[3] != device:
            raise ValueError(f"{name} is {place(spec[3])}, but q is {place(device)}; all arrays must be in one place")
    _check_head_dim("q", r.q)
    _check_head_dim("v", r.v)
    if r.k[0][-1] != r.q[0][-1]:
        raise ValueError(f"k has head_dim {r.k[0][-1]}, but q has {r.q[0][-1]}; they must be equal")
    if r.v[0][:-1] != r.k[0][:-1]:
        raise ValueError(f"v has shape {r.v[0]}, but k has {r.k[0]}; they must be equal up to the last dimension")


def _check_rank(name: str, spec: Spec, ndim: int, layout: str) -> None:
    if len(spec[0]) != ndim:
        raise ValueError(f"{name} has shape {spec[0]}; it must have {ndim} dimensions {layout}")


def _check_head_dim(name: str, spec: Spec) -> None:
    head_dim = spec[0][-1]
    if head_dim % 8 or not 8 <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"{name} has head_dim {head_dim}; it must be a multiple of 8 from 8 to {MAX_HEAD_DIM}")


def _check_heads(shape_q: tuple[int, ...], shape_k: tuple[int, ...]) -> None:
    nheads, nheads_k = shape_q[-2], shape_k[-2]
    if nheads < 1 or nheads_k < 1 or nheads % nheads_k:
        raise ValueError(f"q has {nheads} heads and k has {nheads_k}; nheads must be a positive multiple of nheads_k")


def _check_batch(r: Request) -> int:
    if r.cu_seqlens_q is None:
        if r.k[0][0] != r.q[0][0]:
            raise ValueError(f"k has batch {r.k[0][0]}, but q has {r.q[0][0]}; they must be equal")
        return r.q[0][0]
    shape = r.cu_seqlens_q[0]
    if len(shape) != 1 or shape[0] < 1:
        raise ValueError(f"cu_seqlens_q has shape {shape}; it must be (batch + 1,)")
    batch = shape[0] - 1
    _check_vector("cu_seqlens_q", r.cu_seqlens_q, batch + 1, "batch + 1", INT32)
    _check_vector("cu_seqlens_k", r.cu_seqlens_k, batch + 1, "batch + 1", INT32)
    _check_vector("seqused_q", r.seqused_q, batch, "batch", INT32)
    _check_vector("seqused_k", r.seqused_k, batch, "batch", INT32)
    return batch


def _check_vector(name: str, spec: Spec | None, length: int, meaning: str, dtype: np.dtype[Any]) -> None:
    if spec is None:
        return
    if spec[2] != dtype:
        raise TypeError(f"{name} has dtype {spec[2]}; it must be {dtype}")
    if spec[0] != (length,):
        raise ValueError(f"{name} has shape {spec[0]}; it must be ({length},), that is ({meaning},)")
    if length > 1 and spec[1][0] != dtype.itemsize:
        raise ValueError(f"{name} has a stride of {spec[1][0]} bytes; it must be contiguous")


def _strides(name: str, spec: Spec) -> Strides:
    """Strides of batch (0 when packed), row and head in elements, once the memory layout has been checked."""
    shape, strides, dtype, device = spec
    itemsize = dtype.itemsize
    if strides[-1] != itemsize and 0 not in shape:
        raise ValueError(f"{name} has a last-dimension stride of {strides[-1]} bytes; it must be contiguous")
    unit = itemsize if device == HOST else CUDA_ALIGNMENT
    result = [0]
    for extent, stride in zip(shape[:-1], strides[:-1], strict=True):
        if extent < 2 or 0 in shape:
            stride = shape[-1] * itemsize  # never used to reach anything, so any legal value will do
        elif stride % unit:
            raise ValueError(f"{name} has strides {strides} bytes; each must be a multiple of {unit} bytes")
        elif stride < 0 and device != HOST:
            raise ValueError(f"{name} has strides {strides} bytes; on a GPU none may be negative")
        result.append(stride // itemsize)
    return (result[-3], result[-2], result[-1])


def _out_strides(out: Spec | None, shape: tuple[int, ...]) -> Strides:
    if out is None:
        head_dim_v, nheads, rows = shape[-1], shape[-2], shape[-3]
        return (0 if len(shape) == 3 else rows * nheads * head_dim_v, nheads * head_dim_v, head_dim_v)
    if out[0] != shape:
        raise ValueError(f"out has shape {out[0]}; it must be {shape}")
    strides = _strides("out", out)
    if 0 not in shape and any(s == 0 and n > 1 for n, s in zip(shape, out[1], strict=True)):
        raise ValueError(f"out has strides {out[1]} bytes; none may be 0, since its rows would overlap")
    return strides


def _alibi_batch_stride(r: Request, batch: int, nheads: int) -> int:
    _check_vector("sinks", r.sinks, nheads, "nheads", FLOAT32)
    if r.alibi_slopes is None:
        return 0
    shape, strides, dtype, _ = r.alibi_slopes
    if dtype != FLOAT32:
        raise TypeError(f"alibi_slopes has dtype {dtype}; it must be float32")
    if shape not in ((nheads,), (batch, nheads)):
        raise ValueError(f"alibi_slopes has shape {shape}; it must be ({nheads},) or ({batch}, {nheads})")
    if nheads > 1 and strides[-1] != dtype.itemsize:
        raise ValueError(f"alibi_slopes has a last-dimension stride of {strides[-1]} bytes; it must be contiguous")
    return strides[0] // dtype.itemsize if len(shape) == 2 and batch > 1 else 0


def _softmax_scale(scale: float | None, head_dim: int) -> float:
    if scale is None:
        return 1.0 / math.sqrt(head_dim)
    if not abs(scale) <= float(np.finfo(np.float32).max):
        raise ValueError(f"softmax_scale is {scale}; it must be finite in float32")
    return scale


def _check_options(r: Request) -> None:
    if not 0.0 <= r.softcap <= float(np.finfo(np.float32).max):
        raise ValueError(f"softcap is {r.softcap}; it must be finite and at least 0 (0 is off)")
    for name, hint in (("max_seqlen_q", r.max_seqlen_q), ("max_seqlen_k", r.max_seqlen_k)):
        if hint is not None and not 0 <= hint <= MAX_ROWS:
            raise ValueError(f"{name} is {hint}; it must be from 0 to {MAX_ROWS}, or None when unknown")
    if not 0 <= r.sm_margin <= MAX_ROWS:
        raise ValueError(f"sm_margin is {r.sm_margin}; it must be at least 0")
    if not 0 <= r.num_splits <= MAX_SPLITS:
        raise ValueError(f"num_splits is {r.num_splits}; it must be from 0 (the library chooses) to {MAX_SPLITS}")
    if r.num_splits > 1 and r.q[3] != HOST:
        raise NotImplementedError(
            f"num_splits is {r.num_splits}; on a GPU this version has no split-KV, so 0 and 1 are allowed"
        )
