"""The KV cache of a call: pages, left padding, new rows and rotary embedding, as shapes, strides and numbers.

Like _problem.py, which is the call as a whole.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from ._specs import INT32, MAX_ROWS, Spec, check_no_overlap, check_rank, check_vector, leading_strides, tensor_strides

# Arguments of flash_attn_with_kvcache that have other names in flash3.h and in flash_attn_varlen_func.
_KVCACHE_NAMES = {"k": "k_cache", "v": "v_cache", "k_new": "k", "v_new": "v", "seqused_k": "cache_seqlens"}


class CacheRequest(NamedTuple):
    """What a caller asked for of the cache."""

    page_table: Spec | None
    cache_batch_idx: Spec | None
    cache_leftpad: Spec | None
    k_new: Spec | None
    v_new: Spec | None
    cu_seqlens_k_new: Spec | None
    rotary_cos: Spec | None
    rotary_sin: Spec | None
    rotary_seqlens: Spec | None
    rotary_interleaved: bool
    kvcache: bool  # whether the call is one of flash_attn_with_kvcache


CACHE_ARRAYS = CacheRequest._fields[:9]


class CacheProblem(NamedTuple):
    """A checked cache: the fields of flash3_params that are no pointers, under their names there."""

    batch_cache: int
    page_size: int
    num_pages: int
    max_pages: int
    page_table_batch_stride: int
    k_new_batch_stride: int
    k_new_row_stride: int
    k_new_head_stride: int
    v_new_batch_stride: int
    v_new_row_stride: int
    v_new_head_stride: int
    seqlen_k_new: int
    total_k_new: int
    rotary_cos_row_stride: int
    rotary_sin_row_stride: int
    seqlen_rotary: int
    rotary_dim: int
    rotary_interleaved: int


def argument_name(kvcache: bool, field: str) -> str:
    """What a field of flash3_params is called in flash_attn_with_kvcache, or in the other functions."""
    return _KVCACHE_NAMES.get(field, field) if kvcache else field


class RestOfCall(NamedTuple):
    """What the cache is checked against."""

    k: Spec
    v: Spec | None
    seqused_k: Spec | None
    dtype: np.dtype[Any]
    batch: int


def checked_cache(r: CacheRequest, call: RestOfCall) -> CacheProblem:
    """Checks a request. Raises ValueError or TypeError."""
    check_vector("cache_batch_idx", r.cache_batch_idx, call.batch, "batch", INT32)
    check_vector("cache_leftpad", r.cache_leftpad, call.batch, "batch", INT32)
    check_vector("rotary_seqlens", r.rotary_seqlens, call.batch, "batch", INT32)
    parts = _pages(r, call), _new_rows(r, call), _rotary(r, call), (int(r.rotary_interleaved),)
    return CacheProblem._make(itertools.chain(*parts))


def _pages(r: CacheRequest, call: RestOfCall) -> tuple[int, int, int, int, int]:
    """batch_cache, page_size, num_pages, max_pages, page_table_batch_stride"""
    name, shape = argument_name(r.kvcache, "k"), call.k[0]
    batch_cache = shape[0] if r.page_table is None else r.page_table[0][0] if r.page_table[0] else 0
    if r.page_table is None:
        _check_entries(r, name, shape, batch_cache, call.batch)
        return batch_cache, 0, 0, 0, 0
    table, strides, dtype, _ = r.page_table
    if dtype != INT32:
        raise TypeError(f"page_table has dtype {dtype}; it must be int32")
    if len(table) != 2 or table[1] < 1:
        raise ValueError(f"page_table has shape {table}; it must be (batch, max_pages) with at least one page")
    _check_entries(r, "page_table", table, batch_cache, call.batch)
    if table[1] > 1 and strides[1] != dtype.itemsize:
        raise ValueError(f"page_table has a last-dimension stride of {strides[1]} bytes; it must be contiguous")
    stride = strides[0] if table[0] > 1 else table[1] * dtype.itemsize
    if stride < 0 or stride % dtype.itemsize:
        raise ValueError(f"page_table has strides {strides} bytes; they must be positive multiples of 4 bytes, or 0")
    if shape[0] < 1 or shape[1] < 1:
        raise ValueError(f"{name} has shape {shape}; with page_table it must have at least one page of one row")
    if shape[1] * table[1] > MAX_ROWS:
        raise ValueError(
            f"page_table has {table[1]} columns; of pages of {shape[1]} rows at most {MAX_ROWS // shape[1]} are allowed"
        )
    return batch_cache, shape[1], shape[0], table[1], stride // dtype.itemsize


def _check_entries(r: CacheRequest, name: str, shape: tuple[int, ...], entries: int, batch: int) -> None:
    if r.cache_batch_idx is None:
        if entries != batch:
            raise ValueError(
                f"{name} has shape {shape}, but q has batch {batch}; the first dimension must be equal, unless "
                "cache_batch_idx says which entries are used"
            )
    elif entries < 1:
        raise ValueError(f"{name} has shape {shape}; with cache_batch_idx the first dimension must be at least 1")


def _new_rows(r: CacheRequest, call: RestOfCall) -> tuple[int, ...]:
    """Strides of k_new, strides of v_new, seqlen_k_new, total_k_new"""
    k_name, v_name = argument_name(r.kvcache, "k_new"), argument_name(r.kvcache, "v_new")
    if call.v is not None:
        _check_pair((k_name, r.k_new), (v_name, r.v_new))
    elif r.v_new is not None:
        name = argument_name(r.kvcache, "v")
        raise ValueError(
            f"{v_name} is given, but {name} is None; it must be None too, as values are columns of {k_name}"
        )
    if r.k_new is None:
        if r.cu_seqlens_k_new is not None:
            raise ValueError(f"cu_seqlens_k_new is given, but {k_name} is None; both or neither must be given")
        return (0,) * 8
    if call.seqused_k is None:
        name = argument_name(r.kvcache, "seqused_k")
        raise ValueError(f"{name} is None; with {k_name} it must be given, as it says where the new rows go")
    packed = r.cu_seqlens_k_new is not None
    check_vector("cu_seqlens_k_new", r.cu_seqlens_k_new, call.batch + 1, "batch + 1", INT32)
    for name, field, x, cache in ((k_name, "k", r.k_new, call.k), (v_name, "v", r.v_new, call.v)):
        if x is not None and cache is not None:
            _check_new_tensor(name, x, argument_name(r.kvcache, field), cache, call, packed)
    if r.v_new is not None and r.k_new[0][:-1] != r.v_new[0][:-1]:
        raise ValueError(
            f"{v_name} has shape {r.v_new[0]}, but {k_name} has {r.k_new[0]}; they must be equal up to the last "
            "dimension"
        )
    rows = r.k_new[0][-3]
    if rows * (1 if packed else call.batch) > MAX_ROWS:
        raise ValueError(f"{k_name} has shape {r.k_new[0]}; at most {MAX_ROWS} rows in all are allowed")
    v_strides = (0, 0, 0) if r.v_new is None else tensor_strides(v_name, r.v_new)
    return *tensor_strides(k_name, r.k_new), *v_strides, rows, rows


def _check_pair(a: tuple[str, Spec | None], b: tuple[str, Spec | None]) -> None:
    for (name, x), (other, y) in ((a, b), (b, a)):
        if x is None and y is not None:
            raise ValueError(f"{name} is None, but {other} is given; both or neither must be")


def _check_new_tensor(name: str, new: Spec, cache_name: str, cache: Spec, call: RestOfCall, packed: bool) -> None:
    check_rank(name, new, 3 if packed else 4, f"({'total_new' if packed else 'batch, seqlen_new'}, nheads_k, head_dim)")
    if new[2] != call.dtype:
        raise TypeError(f"{name} has dtype {new[2]}, but q has {call.dtype}; they must have the same")
    lead = new[0][:1] if packed else (call.batch, new[0][1])
    if new[0] != (*lead, *cache[0][-2:]):
        raise ValueError(f"{name} has shape {new[0]}; with this {cache_name} it must be {(*lead, *cache[0][-2:])}")
    check_no_overlap(cache_name, cache)


def _rotary(r: CacheRequest, call: RestOfCall) -> tuple[int, int, int, int]:
    """rotary_cos_row_stride, rotary_sin_row_stride, seqlen_rotary, rotary_dim"""
    _check_pair(("rotary_cos", r.rotary_cos), ("rotary_sin", r.rotary_sin))
    if r.rotary_cos is None or r.rotary_sin is None:
        return 0, 0, 0, 0
    k_name, head_dim = argument_name(r.kvcache, "k_new"), call.k[0][-1]
    if r.k_new is None:
        raise ValueError(f"rotary_cos is given, but {k_name} is None; rotary embedding turns q and new rows together")
    for name, x in (("rotary_cos", r.rotary_cos), ("rotary_sin", r.rotary_sin)):
        check_rank(name, x, 2, "(seqlen_rotary, rotary_dim / 2)")
        if x[2] != call.dtype:
            raise TypeError(f"{name} has dtype {x[2]}, but q has {call.dtype}; they must have the same")
    shape = r.rotary_cos[0]
    if shape[0] < 1 or shape[1] < 8 or shape[1] % 8 or 2 * shape[1] > head_dim:
        raise ValueError(
            f"rotary_cos has shape {shape}; it must be (seqlen_rotary, rotary_dim / 2) with at least one row and a "
            f"rotary_dim that is a multiple of 16 from 16 to head_dim ({head_dim})"
        )
    if shape[0] > MAX_ROWS:
        raise ValueError(f"rotary_cos has shape {shape}; at most {MAX_ROWS} rows are allowed")
    if r.rotary_sin[0] != shape:
        raise ValueError(f"rotary_sin has shape {r.rotary_sin[0]}; it must be rotary_cos's, {shape}")
    (cos_stride,) = leading_strides("rotary_cos", r.rotary_cos)
    (sin_stride,) = leading_strides("rotary_sin", r.rotary_sin)
    return cos_stride, sin_stride, shape[0], 2 * shape[1]
