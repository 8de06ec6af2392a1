"""Latent caches (MLA): the formula of single sequences in float32, since no peer computes the grid `mla`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .cache_shapes import CacheShape

SEQUENCES = 3  # of a batch, the first and the last one among them


def difference(xp: Any, shape: CacheShape, q: Any, cache: Any, table: Any, out: Any) -> float:
    """max|out - formula| over a few sequences, relative to the largest value of the formula. xp: NumPy or CuPy.

    q (batch, seqlen_q, nheads, head_dim); cache (batch, rows, 1, head_dim), or with table (batch, pages; NumPy) the
    pages (num_pages, page_size, 1, head_dim); out (batch, seqlen_q, nheads, head_dim_v).
    """
    worst, largest = [], []
    for b in np.unique(np.linspace(0, len(shape.lengths) - 1, SEQUENCES).astype(int)).tolist():
        rows = cache[b] if table is None else cache[xp.asarray(table[b])].reshape(-1, *cache.shape[2:])
        want = sequence(xp, q[b], rows[: shape.lengths[b], 0], shape.dim_v, shape.causal)
        worst.append(float(xp.abs(out[b].astype(np.float32) - want).max()))
        largest.append(float(xp.abs(want).max()))
    return max(worst) / max(largest) if np.isfinite(worst).all() else math.inf


def sequence(xp: Any, q: Any, k: Any, d_v: int, causal: bool) -> Any:
    """softmax(q k^T / sqrt(head_dim)) k[:, :d_v] in float32; q (rows, nheads, head_dim), k (keys, head_dim)."""
    keys = k.astype(np.float32)
    scores = q.astype(np.float32) @ keys.T / math.sqrt(keys.shape[1])
    if causal:
        hidden = np.arange(len(keys)) > np.arange(len(q))[:, None] + len(keys) - len(q)
        scores = xp.where(xp.asarray(hidden)[:, None], -np.inf, scores)
    weights = xp.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ keys[:, :d_v]
