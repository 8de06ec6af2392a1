"""Attention over a KV cache that grows, with FlashAttention-3's name and arguments."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _values
from ._call import Cache, Options, attend, device_module, native, spec
from ._specs import HOST, MAX_ROWS

Array = Any  # numpy.ndarray, cupy.ndarray, or a CUDA object with __dlpack__

__all__ = ["flash_attn_with_kvcache"]


def flash_attn_with_kvcache(
    q: Array,
    k_cache: Array,
    v_cache: Array | None,
    k: Array | None = None,
    v: Array | None = None,
    rotary_cos: Array | None = None,
    rotary_sin: Array | None = None,
    cache_seqlens: Array | int | None = None,
    cache_batch_idx: Array | None = None,
    cache_leftpad: Array | None = None,
    page_table: Array | None = None,
    cu_seqlens_q: Array | None = None,
    cu_seqlens_k_new: Array | None = None,
    max_seqlen_q: int | None = None,
    rotary_seqlens: Array | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Array | None = None,
    sinks: Array | None = None,
    rotary_interleaved: bool = True,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    out: Array | None = None,
    return_lse: bool = False,
    d_v: int | None = None,
    max_seqlen_k: int | None = None,
) -> Any:
    """Exact attention of new queries over cached keys, after the keys of this step have been added to the cache.

    In one call: k and v, if given, are written into the cache behind the cache_seqlens rows of each sequence, with
    rotary embedding on the way if rotary_cos is given; then q, rotated likewise, attends to the sequence's keys, which
    are its rows from cache_leftpad up to cache_seqlens plus the new ones. Nothing else of the cache is written, and
    what its unused rows and pages hold, NaN included, never changes a bit. The formula, and every argument not named
    here, are those of flash_attn_func, with seqlen_k the number of these keys: causal is aligned to the last of them.

    On a GPU lengths, indices and page tables are read by the kernels, so a captured CUDA graph stays right while the
    cache grows; a cache_seqlens that is an int is a constant of the graph.

    On a GPU one of two kernels computes the call, by the shapes of its arrays: the split-KV kernel, which shares out
    the keys, where a sequence has at most 64 queries under all query heads of a KV head together, or the one of
    flash_attn_func where there are more and num_splits is 0 or 1. With num_splits 0 that one, too, shares out the keys
    where tiles of queries are few. Which one it is changes results by rounding at most. They have head dims up to 256;
    latent caches, head_dim 576 with d_v 512 in pages of a multiple of 8 rows, have a kernel of their own.

    Args:
        q: (batch, seqlen_q, nheads, head_dim), or with cu_seqlens_q (total_q, nheads, head_dim).
        k_cache: (batch_cache, seqlen_cache, nheads_k, head_dim), where batch_cache is batch unless cache_batch_idx is
            given; or with page_table (num_pages, page_size, nheads_k, head_dim), with pages of any size from 1. Written
            in place if k is given.
        v_cache: like k_cache, with head_dim_v. None: the values are the first d_v columns of k_cache, a latent cache as
            multi-head latent attention has it: (num_pages, page_size, 1, 576) with d_v 512.
        k: (batch, seqlen_new, nheads_k, head_dim), or with cu_seqlens_k_new (total_new, nheads_k, head_dim): new keys,
            also none. Needs cache_seqlens.
        v: like k, with head_dim_v; None with v_cache=None, where each new row is written once.
        rotary_cos: (seqlen_rotary, rotary_dim / 2) of q's dtype, rows need not be contiguous: the cosine at each
            position, of which the first rotary_dim columns of q and k are turned: a multiple of 16, at most head_dim.
            Needs k. Row t of k has position cache_seqlens + t. Row i of q has position cache_seqlens + i with causal
            or any window, else cache_seqlens. The result is rounded to q's dtype, in q as in the cache.
        rotary_sin: like rotary_cos: the sines.
        cache_seqlens: (batch,) int32, or one int for all: filled rows of each sequence, before k is added and with
            those of cache_leftpad. None: all rows of the cache.
        cache_batch_idx: (batch,) int32: the entry of k_cache, or the row of page_table, of each sequence; None: entry b
            for sequence b. With k, no entry may appear twice.
        cache_leftpad: (batch,) int32: rows at the start of each sequence that are no keys; None: 0.
        page_table: (batch or batch_cache, max_pages) int32: row j of a sequence is row j % page_size of page
            page_table[b, j // page_size]. Entries behind its last row may hold anything. Sequences may share pages, but
            no two may add rows to the same one, and none may have a row as a key that another one adds.
        cu_seqlens_q: (batch + 1,) int32: q is packed, as in flash_attn_varlen_func.
        cu_seqlens_k_new: (batch + 1,) int32: k and v are packed likewise.
        max_seqlen_q: longest query sequence of packed q, a hint for tuning, as in flash_attn_varlen_func: worth giving,
            and a wrong one changes rounding at most.
        rotary_seqlens: (batch,) int32, takes the place of cache_seqlens in the positions of q and k.
        rotary_interleaved: columns 2i and 2i + 1 are turned together (GPT-J), otherwise i and i + rotary_dim / 2
            (GPT-NeoX).
        max_seqlen_k: keys of the longest sequence, new ones included, as far as the caller knows: a hint for tuning,
            worth giving where the cache has room for many more; a wrong one changes rounding at most. Three bits of it
            count, the rest is rounded up, so that calls whose caches grow by a row are not prepared anew.

    Returns:
        out (batch, seqlen_q, nheads, head_dim_v) or (total_q, nheads, head_dim_v); with return_lse (out, lse), lse
        (batch, nheads, seqlen_q) or (nheads, total_q) float32.

    Raises:
        ValueError, TypeError, NotImplementedError, RuntimeError, ImportError: as flash_attn_func.

    Lengths and indices are read where they lie. With the environment variable PYFLASH3_CHECK=1 they are checked before
    anything is written: sequences that outgrow the cache, page ids and entries that do not exist and positions outside
    of rotary_cos are a ValueError. Without it they give their sequence a wrong result and nothing else: reads stay
    inside of the arrays, and rows of k that have no place are dropped.
    """
    if isinstance(cache_seqlens, (int, np.integer)):
        cache_seqlens = same_for_all(cache_seqlens, q, cu_seqlens_q)
    options = Options(
        softmax_scale, causal, window_size, softcap, alibi_slopes, sinks, num_splits, pack_gqa, sm_margin, d_v
    )
    lengths = (cu_seqlens_q, None, None, cache_seqlens, max_seqlen_q, max_seqlen_k)
    cache = Cache(
        page_table, cache_batch_idx, cache_leftpad, k, v, cu_seqlens_k_new, rotary_cos, rotary_sin, rotary_seqlens,
        rotary_interleaved, kvcache=True,
    )  # fmt: skip
    return attend(q, k_cache, v_cache, options, out, return_lse, lengths, cache)


def same_for_all(value: int | np.integer[Any], q: Array, cu_seqlens_q: Array | None, wait: bool = False) -> Array:
    """value as cache_seqlens, an array beside q; with wait it is there for all streams."""
    length = _values.integer("cache_seqlens", value)
    if not 0 <= length <= MAX_ROWS:
        raise ValueError(f"cache_seqlens is {length}; it must be from 0 to {MAX_ROWS}")
    shape, _, _, device = spec(native("q", q))
    batch = shape[0] if shape else 0
    if cu_seqlens_q is not None:
        batch = max(0, len(native("cu_seqlens_q", cu_seqlens_q)) - 1)
    if device == HOST:
        return np.full(batch, length, np.int32)
    vector = device_module().int32_vector(device, batch, length)
    if wait:
        device_module().current_stream(device).synchronize()
    return vector
