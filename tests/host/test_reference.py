"""reference.attention against the formula written as loops, so that everything else may rest on it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pyflash3 import reference


def loops(
    q: Any, k: Any, v: Any, left: int, right: int, softcap: float, slopes: Any, sinks: Any
) -> tuple[list[list[float]], list[float]]:
    """One sequence and head: q (m, d), k (n, d), v (n, d_v) -> (out, lse) as lists, term by term."""
    m, n, scale = len(q), len(k), 1 / math.sqrt(q.shape[1])
    out, lse = [], []
    for i in range(m):
        terms = {}
        for j in range(n):
            diagonal = i + n - m
            if (left < 0 or j >= diagonal - left) and (right < 0 or j <= diagonal + right):
                s = scale * sum(float(a) * float(b) for a, b in zip(q[i], k[j], strict=True))
                s = softcap * math.tanh(s / softcap) if softcap else s
                terms[j] = s - slopes * abs(diagonal - j)
        total = sum(math.exp(s) for s in terms.values()) + (0.0 if sinks is None else math.exp(sinks))
        lse.append(math.log(total) if total else -math.inf)
        weights = {j: math.exp(s - lse[-1]) for j, s in terms.items()}
        out.append([sum(w * float(v[j][c]) for j, w in weights.items()) for c in range(v.shape[1])])
    return out, lse


@pytest.mark.parametrize("seqlens", [(5, 7), (7, 5), (1, 9), (6, 1), (4, 4)])
@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (1, 2), (0, 0), (3, -1), (2, 0)])
@pytest.mark.parametrize(("softcap", "slope", "sink"), [(0.0, 0.0, None), (1.5, 0.25, None), (0.0, 0.5, -0.75)])
def test_equals_loops(
    seqlens: tuple[int, int], window: tuple[int, int], softcap: float, slope: float, sink: float | None
) -> None:
    rng = np.random.default_rng(1)
    q = rng.normal(size=(2, seqlens[0], 4, 8))
    k = rng.normal(size=(2, seqlens[1], 2, 8))
    v = rng.normal(size=(2, seqlens[1], 2, 3))
    slopes = np.full(4, slope, np.float32) if slope else None
    sinks = None if sink is None else np.full(4, sink, np.float32)
    out, lse = reference.attention(q, k, v, window_size=window, softcap=softcap, alibi_slopes=slopes, sinks=sinks)
    for b in range(2):
        for h in range(4):
            want, want_lse = loops(q[b, :, h], k[b, :, h // 2], v[b, :, h // 2], *window, softcap, slope, sink)
            np.testing.assert_allclose(out[b, :, h], want, atol=1e-12)
            np.testing.assert_allclose(lse[b, h], want_lse, atol=1e-12)


def test_packed_equals_each_sequence_alone() -> None:
    rng = np.random.default_rng(2)
    q, k, v = (rng.normal(size=(n, 2, 8)) for n in (9, 12, 12))
    cu_q, cu_k = np.array([0, 4, 4, 9], np.int32), np.array([0, 0, 5, 12], np.int32)
    used_k = np.array([0, 3, 7], np.int32)
    out, lse = reference.attention(q, k, v, causal=True, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, seqused_k=used_k)
    for b in range(3):
        rows, keys = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b] + used_k[b])
        want, want_lse = reference.attention(q[None, rows], k[None, keys], v[None, keys], causal=True)
        np.testing.assert_array_equal(out[rows], want[0])
        np.testing.assert_array_equal(lse[:, rows], want_lse[0])


def test_causal_is_a_right_window_of_zero() -> None:
    q, k, v = np.random.default_rng(3).normal(size=(3, 1, 6, 1, 8))
    causal = reference.attention(q, k, v, causal=True, window_size=(2, 5))
    window = reference.attention(q, k, v, window_size=(2, 0))
    for a, b in zip(causal, window, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_nan_shows_only_where_it_is_seen(poison: float) -> None:
    q, k, v = np.random.default_rng(4).normal(size=(3, 1, 6, 1, 8))
    clean, clean_lse = reference.attention(q, k, v, causal=True)
    for x in (k, v):
        kept = x[0, 4].copy()
        x[0, 4] = poison
        out, lse = reference.attention(q, k, v, causal=True)
        np.testing.assert_array_equal(out[0, :4], clean[0, :4])
        np.testing.assert_array_equal(lse[0, 0, :4], clean_lse[0, 0, :4])
        assert not np.isfinite(out[0, 4:]).any()
        x[0, 4] = kept


def test_rounding_is_worse_than_float64_and_not_by_much() -> None:
    q, k, v = np.random.default_rng(5).normal(size=(3, 1, 64, 2, 64)).astype(np.float16)
    exact, _ = reference.attention(q, k, v)
    rounded, _ = reference.attention(q, k, v, rounding=np.float16)
    assert 1e-5 < np.abs(rounded - exact).max() < 1e-2


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_with_kvcache_equals_rows_put_together_by_hand(interleaved: bool, causal: bool) -> None:
    """Two sequences in pages of three rows; pairs of columns are complex numbers, turned by an angle."""
    rng = np.random.default_rng(6)
    q, k, v = rng.normal(size=(2, 2, 2, 32)), rng.normal(size=(2, 2, 1, 32)), rng.normal(size=(2, 2, 1, 3))
    k_cache, v_cache = rng.normal(size=(9, 3, 1, 32)), rng.normal(size=(9, 3, 1, 3))
    table, filled, leftpad = [[4, 0, 8], [7, 2, 1]], [4, 5], [0, 2]
    angle = rng.uniform(size=(10, 8))

    def turned(x: Any, position: int) -> Any:
        half = np.arange(8)
        first, second = (2 * half, 2 * half + 1) if interleaved else (half, half + 8)
        z = (x[..., first] + 1j * x[..., second]) * np.exp(1j * angle[position])
        y = x.copy()
        y[..., first], y[..., second] = z.real, z.imag
        return y

    out, lse, new_k_cache, new_v_cache = reference.attention_with_kvcache(
        q, k_cache, v_cache, k, v, np.cos(angle), np.sin(angle), np.array(filled, np.int32),
        cache_leftpad=np.array(leftpad), page_table=np.array(table), causal=causal, rotary_interleaved=interleaved,
    )  # fmt: skip
    for b in range(2):
        for t in range(2):
            row = filled[b] + t
            k_cache[table[b][row // 3], row % 3] = turned(k[b, t], row)
            v_cache[table[b][row // 3], row % 3] = v[b, t]
        rows = range(leftpad[b], filled[b] + 2)
        keys, values = (np.stack([x[table[b][j // 3], j % 3] for j in rows]) for x in (k_cache, v_cache))
        queries = np.stack([turned(q[b, i], filled[b] + (i if causal else 0)) for i in range(2)])
        want, want_lse = reference.attention(queries[None], keys[None], values[None], causal=causal)
        np.testing.assert_allclose(out[b], want[0], atol=1e-12)
        np.testing.assert_allclose(lse[b], want_lse[0], atol=1e-12)
    np.testing.assert_allclose(new_k_cache, k_cache, atol=1e-12)
    np.testing.assert_array_equal(new_v_cache, v_cache)
