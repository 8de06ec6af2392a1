"""What a call of flash_attn_with_kvcache does before the attention, in NumPy: for reference.py."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


class Cached(NamedTuple):
    """Per sequence the rows of q, rotated, and its keys and values; and the caches as the call leaves them."""

    q: list[npt.NDArray[Any]]
    k: list[npt.NDArray[Any]]
    v: list[npt.NDArray[Any]]
    k_cache: npt.NDArray[Any]
    v_cache: Any  # None where the values are columns of k_cache
    values: npt.NDArray[Any]  # v_cache, or these columns


def through_cache(
    q: Any, k_cache: Any, v_cache: Any, k: Any, v: Any, rotary_cos: Any, rotary_sin: Any, cache_seqlens: Any,
    cache_batch_idx: Any, cache_leftpad: Any, page_table: Any, cu_seqlens_q: Any, cu_seqlens_k_new: Any,
    rotary_seqlens: Any, window: tuple[int, int], rotary_interleaved: bool, d_v: int | None,
) -> Cached:  # fmt: skip
    """All of attention_with_kvcache but the attention."""
    q = to_numpy(q)
    caches = [to_numpy(x).copy() for x in (k_cache, v_cache) if x is not None]
    batch = q.shape[0] if cu_seqlens_q is None else len(cu_seqlens_q) - 1
    capacity = k_cache.shape[1] * (1 if page_table is None else page_table.shape[1])
    filled = np.broadcast_to(np.asarray(capacity if cache_seqlens is None else to_numpy(cache_seqlens)), batch)
    places = _CachePlaces(cache_batch_idx, page_table, k_cache.shape[1])
    rows_q = _sequences(q, cu_seqlens_q)
    new = [[packed([], cache) for cache in caches] for _ in range(batch)]
    if k is not None:
        rows = [_sequences(to_numpy(x), cu_seqlens_k_new) for x in (k, v) if x is not None]
        new = [list(of_one) for of_one in zip(*rows, strict=True)]
    if rotary_cos is not None:
        tables = to_float64(rotary_cos), to_float64(rotary_sin)
        base = filled if rotary_seqlens is None else to_numpy(rotary_seqlens)
        for b in range(batch):
            steps = np.arange(len(rows_q[b])) * int(max(window) >= 0)
            rows_q[b] = _rotated(rows_q[b], tables, base[b] + steps, rotary_interleaved)
            new[b][0] = _rotated(new[b][0], tables, base[b] + np.arange(len(new[b][0])), rotary_interleaved)
    ends = [int(filled[b]) + len(new[b][0]) for b in range(batch)]
    for b in range(batch):
        for cache, added in zip(caches, new[b], strict=True):
            cache[places.of(b, int(filled[b]), ends[b])] = added
    begins = [0] * batch if cache_leftpad is None else to_numpy(cache_leftpad).tolist()
    used = [places.of(b, begins[b], ends[b]) for b in range(batch)]
    values = caches[0][..., :d_v] if v_cache is None else caches[1]
    keys_of, values_of = ([cache[rows] for rows in used] for cache in (caches[0], values))
    return Cached(rows_q, keys_of, values_of, caches[0], None if v_cache is None else values, values)


@dataclass(frozen=True)
class _CachePlaces:
    """Where the rows of a sequence lie in a cache."""

    batch_idx: Any
    page_table: Any
    page_size: int

    def of(self, b: int, begin: int, end: int) -> tuple[Any, Any]:
        """Indices of rows [begin, end) of sequence b."""
        rows = np.arange(begin, max(begin, end))
        entry = b if self.batch_idx is None else int(self.batch_idx[b])
        if self.page_table is None:
            return np.full_like(rows, entry), rows
        return to_numpy(self.page_table[entry])[rows // self.page_size], rows % self.page_size


def _sequences(x: npt.NDArray[Any], cu_seqlens: Any) -> list[npt.NDArray[Any]]:
    """The rows of every sequence."""
    if cu_seqlens is None:
        return list(x)
    return [x[a:b] for a, b in itertools.pairwise(to_numpy(cu_seqlens))]


def packed(sequences: list[npt.NDArray[Any]], like: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Sequences of rows one behind the other; like is any array of such rows."""
    return np.concatenate([np.empty((0, *like.shape[-2:]), like.dtype), *sequences])


def starts(sequences: list[npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
    """cu_seqlens of sequences that are packed one behind the other."""
    return np.array([0, *itertools.accumulate(map(len, sequences))], np.int64)


def _rotated(
    x: npt.NDArray[Any], tables: tuple[Float64, Float64], positions: npt.NDArray[np.int64], interleaved: bool
) -> npt.NDArray[Any]:
    """x (rows, nheads, head_dim) with rotary embedding (Su et al., RoFormer, 2021), rounded to x's dtype."""
    cos, sin = (table[positions][:, None, :] for table in tables)
    half = cos.shape[-1]
    first = slice(0, 2 * half, 2) if interleaved else slice(0, half)
    second = slice(1, 2 * half, 2) if interleaved else slice(half, 2 * half)
    a, b = to_float64(x[..., first]), to_float64(x[..., second])
    turned: npt.NDArray[Any] = x.copy()
    turned[..., first] = (a * cos - b * sin).astype(x.dtype)
    turned[..., second] = (a * sin + b * cos).astype(x.dtype)
    return turned


def to_numpy(x: Any) -> npt.NDArray[Any]:
    """A NumPy or CuPy array as a NumPy array."""
    return x.get() if hasattr(x, "get") else np.asarray(x)  # CuPy arrays convert only on request


def to_float64(x: Any) -> Float64:
    """The same in float64."""
    return to_numpy(x).astype(np.float64)
