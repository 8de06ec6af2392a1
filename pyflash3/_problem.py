"""One attention call as shapes, strides and numbers: everything of it but the data. Pure; nothing here touches a GPU.

`AttnProblem.of` holds every check that needs no device contents. ValueError: a shape, stride, place or number is
wrong. TypeError: a dtype or the kind of an object is wrong. Each message names the argument, its value and what is
allowed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ._cache import CACHE_ARRAYS, CacheProblem, CacheRequest, RestOfCall, argument_name, checked_cache
from ._specs import (
    BFLOAT16,
    CUDA_ALIGNMENT,
    FLOAT16,
    FLOAT32,
    HOST,
    INT32,
    MAX_HEAD_DIM,
    MAX_HEAD_DIM_V,
    MAX_ROWS,
    MAX_SPLITS,
    Spec,
    Strides,
    check_head_dim,
    check_no_overlap,
    check_rank,
    check_vector,
    place,
    tensor_strides,
)


class Request(NamedTuple):
    """What a caller asked for, hashable, so that equal calls are checked once."""

    q: Spec
    k: Spec
    v: Spec | None  # None: the first d_v columns of k
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
    d_v: int | None
    cache: CacheRequest | None

    @property
    def kvcache(self) -> bool:
        """Whether the call is one of flash_attn_with_kvcache, which has names of its own for some arguments."""
        return self.cache is not None and self.cache.kvcache


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
    packed: bool  # q, out and lse
    rows_q: int  # packed: of all sequences; dense: of each batch entry
    rows_k: int  # likewise; paged: of each page
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
    cache: CacheProblem | None
    kvcache: bool  # whether its arguments have the names of flash_attn_with_kvcache

    @property
    def alignment(self) -> int:
        """What the addresses of tensors must be multiples of, in bytes."""
        return self.dtype.itemsize if self.device == HOST else CUDA_ALIGNMENT

    @staticmethod
    def of(r: Request) -> AttnProblem:
        """Checks a request. Raises ValueError or TypeError."""
        packed, packed_k = r.cu_seqlens_q is not None, r.cu_seqlens_k is not None
        _check_tensors(r, packed, packed_k)
        shape_q, shape_k = r.q[0], r.k[0]
        head_dim_v = _head_dim_v(r)
        out_shape = (*shape_q[:-1], head_dim_v)
        batch = _check_batch(r)
        _check_heads(r, shape_q, shape_k)
        rows_q, rows_k = shape_q[-3], shape_k[-3]
        k_name = argument_name(r.kvcache, "k")
        sides = (("q", rows_q, 1 if packed else batch), (k_name, rows_k, 1 if packed_k else shape_k[0]))
        for name, rows, entries in sides:
            if rows * entries > MAX_ROWS:
                raise ValueError(f"{name} has {rows * entries} rows in all; at most {MAX_ROWS} are allowed")
        nheads = shape_q[-2]
        _check_options(r)
        return AttnProblem(
            device=r.q[3],
            dtype=r.q[2],
            batch=batch,
            nheads=nheads,
            nheads_k=shape_k[-2],
            head_dim=shape_q[-1],
            head_dim_v=head_dim_v,
            packed=packed,
            rows_q=rows_q,
            rows_k=rows_k,
            max_seqlen_q=r.max_seqlen_q or 0,
            max_seqlen_k=r.max_seqlen_k or 0,
            q_strides=tensor_strides("q", r.q),
            k_strides=tensor_strides(k_name, r.k),
            v_strides=(0, 0, 0) if r.v is None else tensor_strides(argument_name(r.kvcache, "v"), r.v),
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
            cache=None if r.cache is None else checked_cache(r.cache, RestOfCall(r.k, r.v, r.seqused_k, r.q[2], batch)),
            kvcache=r.kvcache,
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


def _check_tensors(r: Request, packed_q: bool, packed_k: bool) -> None:
    k, v = argument_name(r.kvcache, "k"), argument_name(r.kvcache, "v")
    ndim_q, ndim_k = 3 if packed_q else 4, 3 if packed_k else 4
    check_rank("q", r.q, ndim_q, f"({'total_q' if packed_q else 'batch, seqlen_q'}, nheads, head_dim)")
    rows_k = "batch, seqlen_k"
    if packed_k:
        rows_k = "total_k"
    elif r.cache is not None:
        rows_k = "batch_cache, seqlen_cache" if r.cache.page_table is None else "num_pages, page_size"
    check_rank(k, r.k, ndim_k, f"({rows_k}, nheads_k, head_dim)")
    if r.v is not None:
        check_rank(v, r.v, ndim_k, f"({rows_k}, nheads_k, head_dim_v)")
    device, dtype = r.q[3], r.q[2]
    allowed = (FLOAT16, BFLOAT16, FLOAT32) if device == HOST else (FLOAT16, BFLOAT16)
    if dtype not in allowed:
        where = "NumPy arrays" if device == HOST else "a GPU"
        raise TypeError(f"q has dtype {dtype}; allowed on {where} are {', '.join(map(str, allowed))}")
    for name, spec in ((k, r.k), (v, r.v), ("out", r.out)):
        if spec is not None and spec[2] != dtype:
            raise TypeError(f"{name} has dtype {spec[2]}, but q has {dtype}; q, {k}, {v} and out must have the same")
    _check_places(r, device)
    check_head_dim("q", r.q, MAX_HEAD_DIM)
    if r.v is not None:
        check_head_dim(v, r.v, MAX_HEAD_DIM_V)
    if r.k[0][-1] != r.q[0][-1]:
        raise ValueError(f"{k} has head_dim {r.k[0][-1]}, but q has {r.q[0][-1]}; they must be equal")
    if r.v is not None and r.v[0][:-1] != r.k[0][:-1]:
        raise ValueError(f"{v} has shape {r.v[0]}, but {k} has {r.k[0]}; they must be equal up to the last dimension")


def _head_dim_v(r: Request) -> int:
    if r.v is not None:
        return r.v[0][-1]
    d_v, head_dim = r.d_v or 0, r.k[0][-1]
    most = min(head_dim, MAX_HEAD_DIM_V)
    if d_v % 8 or not 8 <= d_v <= most:
        raise ValueError(
            f"d_v is {d_v}; with {argument_name(r.kvcache, 'k')} of head_dim {head_dim} it must be a multiple of 8 "
            f"from 8 to {most}"
        )
    return d_v


def _check_places(r: Request, device: int) -> None:
    arrays = [(name, getattr(r, name)) for name in ARRAYS[1:]]
    if r.cache is not None:
        arrays += [(name, getattr(r.cache, name)) for name in CACHE_ARRAYS]
    for field, spec in arrays:
        if spec is not None and spec[3] != device:
            name = argument_name(r.kvcache, field)
            raise ValueError(f"{name} is {place(spec[3])}, but q is {place(device)}; all arrays must be in one place")


def _check_heads(r: Request, shape_q: tuple[int, ...], shape_k: tuple[int, ...]) -> None:
    nheads, nheads_k, k = shape_q[-2], shape_k[-2], argument_name(r.kvcache, "k")
    if nheads < 1 or nheads_k < 1 or nheads % nheads_k:
        raise ValueError(f"q has {nheads} heads and {k} has {nheads_k}; nheads must be a positive multiple of nheads_k")


def _check_batch(r: Request) -> int:
    if r.cu_seqlens_q is None:
        batch = r.q[0][0]
        if r.cache is None and r.k[0][0] != batch:
            raise ValueError(f"k has batch {r.k[0][0]}, but q has {batch}; they must be equal")
    else:
        shape = r.cu_seqlens_q[0]
        if len(shape) != 1 or shape[0] < 1:
            raise ValueError(f"cu_seqlens_q has shape {shape}; it must be (batch + 1,)")
        batch = shape[0] - 1
    check_vector("cu_seqlens_q", r.cu_seqlens_q, batch + 1, "batch + 1", INT32)
    check_vector("cu_seqlens_k", r.cu_seqlens_k, batch + 1, "batch + 1", INT32)
    check_vector("seqused_q", r.seqused_q, batch, "batch", INT32)
    check_vector(argument_name(r.kvcache, "seqused_k"), r.seqused_k, batch, "batch", INT32)
    return batch


def _out_strides(out: Spec | None, shape: tuple[int, ...]) -> Strides:
    if out is None:
        head_dim_v, nheads, rows = shape[-1], shape[-2], shape[-3]
        return (0 if len(shape) == 3 else rows * nheads * head_dim_v, nheads * head_dim_v, head_dim_v)
    if out[0] != shape:
        raise ValueError(f"out has shape {out[0]}; it must be {shape}")
    strides = tensor_strides("out", out)
    check_no_overlap("out", out)
    return strides


def _alibi_batch_stride(r: Request, batch: int, nheads: int) -> int:
    check_vector("sinks", r.sinks, nheads, "nheads", FLOAT32)
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
