"""pyflash3.reference.attention once more, vectorised over heads and sequences, in float64 on the device.

test_formula.py holds the two together. Sequences are padded to one length; what lies behind their ends is ignored, but
must be finite, as must all inputs here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tests.gpu.machine import HOST, put, xp

_MOST_SCORES = 2**22 if HOST else 2**25  # held at a time, in several float64 arrays


class Scores(NamedTuple):
    """How scores come about. slopes (batch, nheads) and sinks (nheads) are NumPy arrays or None."""

    scale: float
    window: tuple[int, int]  # (-1, -1): unlimited; a causal mask is a right side of 0
    softcap: float
    slopes: Any
    sinks: Any


class Result(NamedTuple):
    """out and lowp (batch, rows, nheads, head_dim_v), lse (batch, nheads, rows), float64, 0 behind the ends."""

    out: Any
    lse: Any
    lowp: Any  # out of the same formula with every intermediate rounded to the dtype of the inputs


def attention(q: Any, k: Any, v: Any, lens_q: Any, lens_k: Any, how: Scores, lowp: Any) -> Result:
    """q (batch, rows, nheads, head_dim); k, v (batch, keys, nheads_k, ...); lens_* (batch,) NumPy integers.

    lowp is the dtype that Result.lowp is rounded to.
    """
    batch, rows, nheads, _ = q.shape
    keys, nheads_k, dim_v = v.shape[1:]
    group = nheads // nheads_k
    # One unit is a KV head of a sequence, with the query heads that share it.
    units = _Units(q, k, v, lens_q, lens_k, how, lowp)
    shape = (batch * nheads_k, group, rows)
    out, rounded, lse = xp.zeros((*shape, dim_v)), xp.zeros((*shape, dim_v)), xp.zeros(shape)
    row_step = max(1, min(rows, _MOST_SCORES // (group * keys)))
    unit_step = max(1, _MOST_SCORES // (group * keys * row_step))
    for u in range(0, shape[0], unit_step):
        for r in range(0, rows, row_step):
            at = slice(u, u + unit_step), slice(None), slice(r, r + row_step)
            out[at], lse[at], rounded[at] = units.block(at[0], at[2])
    inside = put(np.arange(rows) < np.asarray(lens_q)[:, None])
    heads_last = (0, 3, 1, 2, 4)
    split = (batch, nheads_k, group, rows, dim_v)
    outs = [
        xp.where(
            inside[:, :, None, None], x.reshape(split).transpose(heads_last).reshape(batch, rows, nheads, dim_v), 0
        )
        for x in (out, rounded)
    ]
    lse = xp.where(inside[:, None, :], lse.reshape(batch, nheads, rows), 0)
    return Result(outs[0], lse, outs[1])


class _Units:
    """q (units, group, rows, head_dim), k (units, head_dim, keys), v (units, keys, head_dim_v) in float64."""

    def __init__(self, q: Any, k: Any, v: Any, lens_q: Any, lens_k: Any, how: Scores, lowp: Any) -> None:
        batch, rows, nheads, dim = q.shape
        keys, nheads_k = k.shape[1:3]
        group = nheads // nheads_k
        count = batch * nheads_k
        split = q.astype(np.float64).reshape(batch, rows, nheads_k, group, dim)
        self.q = split.transpose(0, 2, 3, 1, 4).reshape(count, group, rows, dim)
        self.k = k.astype(np.float64).transpose(0, 2, 3, 1).reshape(count, dim, keys)
        self.v = v.astype(np.float64).transpose(0, 2, 1, 3).reshape(count, keys, v.shape[-1])
        self.lowp, self.how = lowp, how

        def per_unit(x: Any) -> Any:  # (units, 1, 1, 1), or one for all where sequences are alike
            x = np.asarray(x, np.int64)
            x = x[:1] if (x == x[0]).all() else np.repeat(x, nheads_k)
            return put(x[:, None, None, None])

        self.lens_k = per_unit(lens_k)
        self.shift = per_unit(np.asarray(lens_k, np.int64) - np.asarray(lens_q, np.int64))
        self.slopes = None if how.slopes is None else put(how.slopes.astype(np.float64).reshape(count, group, 1, 1))
        sinks = np.full(nheads, -np.inf) if how.sinks is None else how.sinks.astype(np.float64)
        self.sinks = put(np.tile(sinks.reshape(nheads_k, group, 1, 1), (batch, 1, 1, 1)))

    def block(self, u: slice, r: slice) -> tuple[Any, Any, Any]:
        """out, lse and lowp for some units and some rows."""
        q = self.q[u, :, r]
        count, group, rows, dim = q.shape
        keys = self.k.shape[-1]
        raw = xp.matmul(q.reshape(count, group * rows, dim), self.k[u]).reshape(count, group, rows, keys)
        j = xp.arange(keys)
        diagonal = xp.arange(r.start, r.start + rows)[:, None] + _of(self.shift, u)
        visible = j < _of(self.lens_k, u)
        left, right = self.how.window
        if left >= 0:
            visible = visible & (j >= diagonal - left)
        if right >= 0:
            visible = visible & (j <= diagonal + right)
        bias = None if self.slopes is None else self.slopes[u] * xp.abs(diagonal - j)
        out, lse = self._weigh(self._scores(raw, bias, visible, None), u, None)
        lowp, _ = self._weigh(self._scores(raw, bias, visible, self.lowp), u, self.lowp)
        return out, lse, lowp

    def _scores(self, raw: Any, bias: Any, visible: Any, rounding: Any) -> Any:
        s = _rounded(_rounded(raw, rounding) * self.how.scale, rounding)
        if self.how.softcap > 0:
            s = _rounded(self.how.softcap * xp.tanh(s / self.how.softcap), rounding)
        if bias is not None:
            s = s - bias
        return xp.where(visible, s, -np.inf)

    def _weigh(self, s: Any, u: slice, rounding: Any) -> tuple[Any, Any]:
        sinks = self.sinks[u]
        top = xp.maximum(s.max(axis=-1, keepdims=True), sinks)
        base = xp.where(xp.isinf(top), 0.0, top)
        p = xp.exp(s - base)
        total = p.sum(axis=-1, keepdims=True) + xp.exp(sinks - base)
        with np.errstate(divide="ignore"):  # the log of an empty row is -inf by definition
            lse = (base + xp.log(total))[..., 0]
        p = _rounded(p / xp.where(total == 0, 1.0, total), rounding)
        count, group, rows, keys = p.shape
        out = xp.matmul(p.reshape(count, group * rows, keys), self.v[u]).reshape(count, group, rows, -1)
        return _rounded(out, rounding), lse


def _of(x: Any, u: slice) -> Any:
    return x if len(x) == 1 else x[u]


def _rounded(x: Any, dtype: Any) -> Any:
    return x if dtype is None else x.astype(dtype).astype(np.float64)
