"""What the functions compute, in NumPy float64: slow, plain, for users and tests to check against."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _values

Float64 = npt.NDArray[np.float64]

_ROWS_AT_ONCE = 1024  # bounds the score matrix of long sequences


def attention(
    q: Any,
    k: Any,
    v: Any,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    sinks: Any = None,
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
    seqused_q: Any = None,
    seqused_k: Any = None,
    rounding: Any = None,
) -> tuple[Float64, Float64]:
    """Attention in float64 on the values of the inputs, dense or (with cu_seqlens_q and cu_seqlens_k) packed.

    Args:
        q, k, v and all up to seqused_k: as in flash_attn_func and flash_attn_varlen_func, as NumPy or CuPy arrays of
            any dtype. seqused_* may also be given for dense calls.
        rounding: None, or a dtype to which every intermediate (scores, probabilities, result) is rounded. This is the
            "low precision" side of FlashAttention's error rule
            max|out - ref| <= 2 * max|lowp - ref| + 1e-5, with lowp = attention(..., rounding=q.dtype)[0].

    Returns:
        (out, lse), float64, of the shapes that flash_attn_func gives them: rows that seqused_q leaves out are 0 in out
        and -inf in lse.

    Masked keys are left out of every sum rather than multiplied by 0, so NaN and Inf show in exactly the rows that
    see them.
    """
    q, k, v = (_float64(x) for x in (q, k, v))
    packed = cu_seqlens_q is not None
    spans_q = _spans(q.shape, cu_seqlens_q, seqused_q)
    spans_k = _spans(k.shape, cu_seqlens_k, seqused_k)
    nheads = q.shape[-2]
    group = nheads // k.shape[-2]
    scale = 1.0 / np.sqrt(q.shape[-1]) if softmax_scale is None else softmax_scale
    window = _values.window(causal, window_size)
    slopes = None if alibi_slopes is None else np.broadcast_to(_float64(alibi_slopes), (len(spans_q), nheads))
    sink = np.full(nheads, -np.inf) if sinks is None else _float64(sinks)

    out = np.zeros((*q.shape[:-1], v.shape[-1]))
    lse = np.full((nheads, q.shape[0]) if packed else (q.shape[0], nheads, q.shape[1]), -np.inf)
    for b, (rows, keys) in enumerate(zip(spans_q, spans_k, strict=True)):
        # Views of one sequence: (rows, nheads, head_dim) and (nheads, rows).
        q_b, k_b, v_b, out_b, lse_b = (x if packed else x[b] for x in (q, k, v, out, lse))
        q_b, k_b, v_b, out_b, lse_b = q_b[rows], k_b[keys], v_b[keys], out_b[rows], lse_b[:, rows]
        for h in range(nheads):
            slope = 0.0 if slopes is None else float(slopes[b, h])
            k_h, v_h = k_b[:, h // group], v_b[:, h // group]
            head = _Head(k_h, v_h, scale, window, softcap, slope, float(sink[h]), rounding)
            for begin in range(0, len(q_b), _ROWS_AT_ONCE):
                part = slice(begin, begin + _ROWS_AT_ONCE)
                out_b[part, h], lse_b[h, part] = head.rows(q_b[part, h], begin, len(q_b))
    return out, lse


def attention_with_kvcache(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    k: Any = None,
    v: Any = None,
    rotary_cos: Any = None,
    rotary_sin: Any = None,
    cache_seqlens: Any = None,
    cache_batch_idx: Any = None,
    cache_leftpad: Any = None,
    page_table: Any = None,
    cu_seqlens_q: Any = None,
    cu_seqlens_k_new: Any = None,
    rotary_seqlens: Any = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    sinks: Any = None,
    rotary_interleaved: bool = True,
    rounding: Any = None,
) -> tuple[Float64, Float64, npt.NDArray[Any], npt.NDArray[Any]]:
    """flash_attn_with_kvcache in float64 on the values of its inputs, none of which is changed.

    Args:
        q, k_cache and all up to rotary_interleaved: as in flash_attn_with_kvcache, as NumPy or CuPy arrays.
        rounding: as in attention.

    Returns:
        (out, lse, k_cache, v_cache): out and lse as attention's; the caches, of their own dtypes, as the call leaves
        them. Rotated rows are rounded to the dtype of q before they are used, and new rows to that of the cache.
    """
    cached = _through_cache(
        q, k_cache, v_cache, k, v, rotary_cos, rotary_sin, cache_seqlens, cache_batch_idx, cache_leftpad, page_table,
        cu_seqlens_q, cu_seqlens_k_new, rotary_seqlens, _values.window(causal, window_size), rotary_interleaved,
    )  # fmt: skip
    out, lse = attention(
        _packed(cached.q, _numpy(q)), _packed(cached.k, cached.k_cache), _packed(cached.v, cached.v_cache),
        softmax_scale, causal, window_size, softcap, alibi_slopes, sinks, _starts(cached.q), _starts(cached.k),
        rounding=rounding,
    )  # fmt: skip
    if cu_seqlens_q is None:
        out = out.reshape(*q.shape[:-1], out.shape[-1])
        lse = lse.reshape(lse.shape[0], *q.shape[:2]).swapaxes(0, 1)
    return out, lse, cached.k_cache, cached.v_cache


class _Cached(NamedTuple):
    """Per sequence the rows of q, rotated, and its keys and values; and the caches as the call leaves them."""

    q: list[npt.NDArray[Any]]
    k: list[npt.NDArray[Any]]
    v: list[npt.NDArray[Any]]
    k_cache: npt.NDArray[Any]
    v_cache: npt.NDArray[Any]


def _through_cache(
    q: Any, k_cache: Any, v_cache: Any, k: Any, v: Any, rotary_cos: Any, rotary_sin: Any, cache_seqlens: Any,
    cache_batch_idx: Any, cache_leftpad: Any, page_table: Any, cu_seqlens_q: Any, cu_seqlens_k_new: Any,
    rotary_seqlens: Any, window: tuple[int, int], rotary_interleaved: bool,
) -> _Cached:  # fmt: skip
    """All of attention_with_kvcache but the attention."""
    q, k_cache, v_cache = _numpy(q), _numpy(k_cache).copy(), _numpy(v_cache).copy()
    batch = q.shape[0] if cu_seqlens_q is None else len(cu_seqlens_q) - 1
    capacity = k_cache.shape[1] * (1 if page_table is None else page_table.shape[1])
    filled = np.broadcast_to(np.asarray(capacity if cache_seqlens is None else _numpy(cache_seqlens)), batch)
    places = _CachePlaces(cache_batch_idx, page_table, k_cache.shape[1])
    rows_q = _sequences(q, cu_seqlens_q)
    new = [[_packed([], k_cache), _packed([], v_cache)] for _ in range(batch)]
    if k is not None:
        pairs = zip(_sequences(_numpy(k), cu_seqlens_k_new), _sequences(_numpy(v), cu_seqlens_k_new), strict=True)
        new = [list(pair) for pair in pairs]
    if rotary_cos is not None:
        tables = _float64(rotary_cos), _float64(rotary_sin)
        base = filled if rotary_seqlens is None else _numpy(rotary_seqlens)
        for b in range(batch):
            steps = np.arange(len(rows_q[b])) * int(max(window) >= 0)
            rows_q[b] = _rotated(rows_q[b], tables, base[b] + steps, rotary_interleaved)
            new[b][0] = _rotated(new[b][0], tables, base[b] + np.arange(len(new[b][0])), rotary_interleaved)
    ends = [int(filled[b]) + len(new[b][0]) for b in range(batch)]
    for b in range(batch):
        for cache, rows in zip((k_cache, v_cache), new[b], strict=True):
            cache[places.of(b, int(filled[b]), ends[b])] = rows
    begins = [0] * batch if cache_leftpad is None else _numpy(cache_leftpad).tolist()
    used = [places.of(b, begins[b], ends[b]) for b in range(batch)]
    return _Cached(rows_q, [k_cache[rows] for rows in used], [v_cache[rows] for rows in used], k_cache, v_cache)


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
        return _numpy(self.page_table[entry])[rows // self.page_size], rows % self.page_size


def _sequences(x: npt.NDArray[Any], cu_seqlens: Any) -> list[npt.NDArray[Any]]:
    """The rows of every sequence."""
    if cu_seqlens is None:
        return list(x)
    return [x[a:b] for a, b in itertools.pairwise(_numpy(cu_seqlens))]


def _packed(sequences: list[npt.NDArray[Any]], like: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Sequences of rows one behind the other; like is any array of such rows."""
    return np.concatenate([np.empty((0, *like.shape[-2:]), like.dtype), *sequences])


def _starts(sequences: list[npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
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
    a, b = _float64(x[..., first]), _float64(x[..., second])
    turned: npt.NDArray[Any] = x.copy()
    turned[..., first] = (a * cos - b * sin).astype(x.dtype)
    turned[..., second] = (a * sin + b * cos).astype(x.dtype)
    return turned


@dataclass(frozen=True)
class _Head:
    """One head of one sequence: k (seqlen_k, head_dim), v (seqlen_k, head_dim_v)."""

    k: Float64
    v: Float64
    scale: float
    window: tuple[int, int]
    softcap: float
    slope: float
    sink: float
    rounding: Any

    def rows(self, q: Float64, begin: int, seqlen_q: int) -> tuple[Float64, Float64]:
        """out and lse of query rows begin, begin + 1, ...; q (rows, head_dim)."""
        i = np.arange(begin, begin + len(q))[:, None]
        j = np.arange(len(self.k))[None, :]
        diagonal = i + len(self.k) - seqlen_q
        visible: npt.NDArray[np.bool_] = np.ones((len(q), len(self.k)), bool)
        if self.window[0] >= 0:
            visible &= j >= diagonal - self.window[0]
        if self.window[1] >= 0:
            visible &= j <= diagonal + self.window[1]
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and Inf of the inputs are the caller's business
            s = self._round(self._round(q @ self.k.T) * self.scale)
            if self.softcap > 0:
                s = self._round(self.softcap * np.tanh(s / self.softcap))
            s = s - self.slope * np.abs(diagonal - j)
            lse = _logsumexp(np.where(visible, s, -np.inf), self.sink)
            # An empty row has lse = -inf, but no visible s to subtract it from.
            p = np.where(visible, np.exp(s - np.where(np.isneginf(lse), 0.0, lse)[:, None]), 0.0)
            return self._round(_weighted_sum(self._round(p), visible, self.v)), lse

    def _round(self, x: Float64) -> Float64:
        return x if self.rounding is None else x.astype(self.rounding).astype(np.float64)


def _logsumexp(s: Float64, sink: float) -> Float64:
    """log(sum over a row of exp(s) + exp(sink)); -inf for an empty sum."""
    top = np.maximum(s.max(axis=1, initial=-np.inf), sink)
    base = np.where(np.isinf(top), 0.0, top)
    with np.errstate(divide="ignore"):
        total: Float64 = base + np.log(np.exp(s - base[:, None]).sum(axis=1) + np.exp(sink - base))
    return total


def _weighted_sum(p: Float64, visible: npt.NDArray[np.bool_], v: Float64) -> Float64:
    """Row i: sum over visible j of p_ij * v_j. A matrix product would add 0 * NaN for hidden keys."""
    finite: npt.NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(v), axis=1)
    out: Float64 = p @ np.where(finite[:, None], v, 0.0)
    for i in np.flatnonzero(np.logical_or.reduce(visible & ~finite, axis=1)):
        out[i] = p[i, visible[i]] @ v[visible[i]]
    return out


def _spans(shape: tuple[int, ...], cu_seqlens: Any, seqused: Any) -> list[slice]:
    """The rows in use of every sequence."""
    starts: Any
    ends: Any
    if cu_seqlens is None:
        starts, ends = np.zeros(shape[0], np.int64), np.full(shape[0], shape[1])
    else:
        cu = _numpy(cu_seqlens).astype(np.int64)
        starts, ends = cu[:-1], cu[1:]
    if seqused is not None:
        ends = starts + _numpy(seqused)
    return [slice(int(a), int(b)) for a, b in zip(starts, ends, strict=True)]


def _numpy(x: Any) -> npt.NDArray[Any]:
    return x.get() if hasattr(x, "get") else np.asarray(x)  # CuPy arrays convert only on request


def _float64(x: Any) -> Float64:
    return _numpy(x).astype(np.float64)
