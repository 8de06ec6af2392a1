"""What the functions compute, in NumPy float64: slow, plain, for users and tests to check against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _values
from ._reference_cache import packed, starts, through_cache, to_float64, to_numpy

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
    d_v: int | None = None,
) -> tuple[Float64, Float64]:
    """Attention in float64 on the values of the inputs, dense or (with cu_seqlens_q and cu_seqlens_k) packed.

    Args:
        q, k, v and all up to seqused_k: as in flash_attn_func and flash_attn_varlen_func, as NumPy or CuPy arrays of
            any dtype. seqused_* may also be given for dense calls.
        rounding: None, or a dtype to which every intermediate (scores, probabilities, result) is rounded. This is the
            "low precision" side of FlashAttention's error rule
            max|out - ref| <= 2 * max|lowp - ref| + 1e-5, with lowp = attention(..., rounding=q.dtype)[0].
        d_v: with v=None, as in flash_attn_func.

    Returns:
        (out, lse), float64, of the shapes that flash_attn_func gives them: rows that seqused_q leaves out are 0 in out
        and -inf in lse.

    Masked keys are left out of every sum rather than multiplied by 0, so NaN and Inf show in exactly the rows that
    see them.
    """
    if (v is None) == (d_v is None):
        raise TypeError("one of v and d_v must be given, and the other be None")
    q, k = to_float64(q), to_float64(k)
    v = k[..., :d_v] if v is None else to_float64(v)
    is_packed = cu_seqlens_q is not None
    spans_q = _spans(q.shape, cu_seqlens_q, seqused_q)
    spans_k = _spans(k.shape, cu_seqlens_k, seqused_k)
    nheads = q.shape[-2]
    group = nheads // k.shape[-2]
    scale = 1.0 / np.sqrt(q.shape[-1]) if softmax_scale is None else softmax_scale
    window = _values.window(causal, window_size)
    slopes = None if alibi_slopes is None else np.broadcast_to(to_float64(alibi_slopes), (len(spans_q), nheads))
    sink = np.full(nheads, -np.inf) if sinks is None else to_float64(sinks)

    out = np.zeros((*q.shape[:-1], v.shape[-1]))
    lse = np.full((nheads, q.shape[0]) if is_packed else (q.shape[0], nheads, q.shape[1]), -np.inf)
    for b, (rows, keys) in enumerate(zip(spans_q, spans_k, strict=True)):
        # Views of one sequence: (rows, nheads, head_dim) and (nheads, rows).
        q_b, k_b, v_b, out_b, lse_b = (x if is_packed else x[b] for x in (q, k, v, out, lse))
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
    d_v: int | None = None,
) -> tuple[Float64, Float64, npt.NDArray[Any], Any]:
    """flash_attn_with_kvcache in float64 on the values of its inputs, none of which is changed.

    Args:
        q, k_cache and all up to rotary_interleaved: as in flash_attn_with_kvcache, as NumPy or CuPy arrays.
        rounding: as in attention.
        d_v: with v_cache=None, as in flash_attn_with_kvcache.

    Returns:
        (out, lse, k_cache, v_cache): out and lse as attention's; the caches, of their own dtypes, as the call leaves
        them, v_cache None where it was. Rotated rows are rounded to the dtype of q before they are used, and new rows
        to that of the cache.
    """
    cached = through_cache(
        q, k_cache, v_cache, k, v, rotary_cos, rotary_sin, cache_seqlens, cache_batch_idx, cache_leftpad, page_table,
        cu_seqlens_q, cu_seqlens_k_new, rotary_seqlens, _values.window(causal, window_size), rotary_interleaved, d_v,
    )  # fmt: skip
    out, lse = attention(
        packed(cached.q, to_numpy(q)), packed(cached.k, cached.k_cache), packed(cached.v, cached.values),
        softmax_scale, causal, window_size, softcap, alibi_slopes, sinks, starts(cached.q), starts(cached.k),
        rounding=rounding,
    )  # fmt: skip
    if cu_seqlens_q is None:
        out = out.reshape(*q.shape[:-1], out.shape[-1])
        lse = lse.reshape(lse.shape[0], *q.shape[:2]).swapaxes(0, 1)
    return out, lse, cached.k_cache, cached.v_cache


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
        cu = to_numpy(cu_seqlens).astype(np.int64)
        starts, ends = cu[:-1], cu[1:]
    if seqused is not None:
        ends = starts + to_numpy(seqused)
    return [slice(int(a), int(b)) for a, b in zip(starts, ends, strict=True)]
