"""One attention problem of these tests: its arrays, the call, and the judgement of the result."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pyflash3 import flash_attn_func, flash_attn_varlen_func
from pyflash3.tools.compare import mismatch
from tests.gpu import formula
from tests.gpu.machine import DTYPES, bits, get, int32, normal, poison_free_memory, poisoned, put, wait, xp

# LSE is float32 throughout: a few units in the last place of the largest score (ALiBi reaches hundreds), and the
# rounding of the products that sum up to a score.
LSE_ABSOLUTE, LSE_RELATIVE = 1e-4, 1e-5
OUT_ABSOLUTE = 1e-5  # SPEC section 6

Lengths = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Problem:
    """lengths holds (seqlen_q, seqlen_k) per sequence; dense problems have the same one throughout.

    used holds how many rows of them are in use (seqused_q and seqused_k), for varlen problems only.
    """

    dtype: str = "bfloat16"
    lengths: Lengths = ((64, 64),)
    nheads: int = 6
    nheads_k: int = 6
    head_dim: int = 64
    head_dim_v: int = 0  # 0: as head_dim
    packed: bool = False
    used: Lengths | None = None
    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    alibi: bool = False
    sinks: bool = False
    seed: int = 0

    @property
    def dim_v(self) -> int:
        """Head dim of v."""
        return self.head_dim_v or self.head_dim

    @property
    def rows(self) -> Lengths:
        """(rows of q, rows of k) in use, per sequence."""
        return self.lengths if self.used is None else self.used

    def with_options(self, options: dict[str, Any]) -> Problem:
        """The same problem with other options."""
        return replace(self, **options)


@dataclass
class Inputs:
    """The arrays of a problem on the device, what a caller passes beside them, and the lengths on the host."""

    problem: Problem
    q: Any
    k: Any
    v: Any
    lengths: dict[str, Any] = field(default_factory=dict)  # cu_seqlens_q, ...: device arrays by argument name
    slopes: Any = None  # NumPy
    sinks: Any = None  # NumPy

    def options(self) -> dict[str, Any]:
        """Keyword arguments of the public functions, the lengths apart."""
        p = self.problem
        slopes = None if self.slopes is None else put(self.slopes)
        sinks = None if self.sinks is None else put(self.sinks)
        return {
            "causal": p.causal,
            "window_size": p.window,
            "softcap": p.softcap,
            "alibi_slopes": slopes,
            "sinks": sinks,
        }

    def out_shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return (*self.q.shape[:-1], self.v.shape[-1])

    def function(self) -> Callable[..., Any]:
        """The public function for this problem."""
        return flash_attn_varlen_func if self.problem.packed else flash_attn_func

    def call(self, **more: Any) -> tuple[Any, Any]:
        """(out, lse) of the library, with NaN in out before."""
        p = self.problem
        lse_shape = (p.nheads, self.q.shape[0]) if p.packed else (self.q.shape[0], p.nheads, self.q.shape[1])
        arguments = {"out": poisoned(self.out_shape(), p.dtype), **self.lengths, **self.options(), **more}
        poison_free_memory(lse_shape)
        out, lse = self.function()(self.q, self.k, self.v, **arguments, return_lse=True)
        assert lse.shape == lse_shape
        assert lse.dtype == np.float32
        return out, lse


def starts(lengths: Lengths, side: int) -> Any:
    """cu_seqlens of a side (0: q, 1: k), NumPy."""
    return np.concatenate([[0], np.cumsum([pair[side] for pair in lengths])]).astype(np.int32)


def make(p: Problem) -> Inputs:
    """Random inputs: q, k and v standard normal, q larger where a softcap is to matter."""
    batch = len(p.lengths)
    totals = [int(starts(p.lengths, side)[-1]) for side in (0, 1)]
    lead_q, lead_k = [(rows,) if p.packed else (batch, rows // batch) for rows in totals]
    q = normal((*lead_q, p.nheads, p.head_dim), p.dtype, 3 * p.seed)
    if p.softcap:
        q = (q.astype(np.float32) * 4).astype(DTYPES[p.dtype])
    inputs = Inputs(
        p,
        q,
        normal((*lead_k, p.nheads_k, p.head_dim), p.dtype, 3 * p.seed + 1),
        normal((*lead_k, p.nheads_k, p.dim_v), p.dtype, 3 * p.seed + 2),
    )
    rng = np.random.default_rng(p.seed)
    if p.packed:
        inputs.lengths = {f"cu_seqlens_{side}": int32(starts(p.lengths, i)) for i, side in enumerate("qk")}
        if p.used is not None:
            inputs.lengths |= {f"seqused_{s}": int32([pair[i] for pair in p.used]) for i, s in enumerate("qk")}
    if p.alibi:
        # (nheads,) or (batch, nheads), as the seed has it.
        shape = (p.nheads,) if p.seed % 2 else (batch, p.nheads)
        inputs.slopes = rng.uniform(0.01, 0.5, shape).astype(np.float32)
    if p.sinks:
        inputs.sinks = rng.standard_normal(p.nheads, np.float32)
    return inputs


def padded(x: Any, lengths: Lengths, side: int, rows: Lengths) -> Any:
    """Packed rows (total, heads, d) as (batch, longest, heads, d) in float64, 0 behind the rows in use."""
    used = np.array([pair[side] for pair in rows], np.int64)
    columns = np.arange(max(1, int(used.max(initial=1))))
    inside = columns < used[:, None]
    where = np.where(inside, starts(lengths, side)[:-1, None] + columns, 0)
    if x.shape[0] == 0:
        return xp.zeros((*where.shape, *x.shape[1:]))
    return xp.where(put(inside)[:, :, None, None], x.astype(np.float64)[put(where)], 0.0)


def expected(inputs: Inputs, softmax_scale: float | None = None) -> formula.Result:
    """The formula's answer, in padded form."""
    p = inputs.problem
    q, k, v = inputs.q, inputs.k, inputs.v
    if p.packed:
        q, k, v = (padded(x, p.lengths, side, p.rows) for x, side in ((q, 0), (k, 1), (v, 1)))
    elif p.lengths[0][1] == 0:
        k, v = (xp.zeros((x.shape[0], 1, *x.shape[2:])) for x in (k, v))
    slopes = None if inputs.slopes is None else np.broadcast_to(inputs.slopes, (len(p.lengths), p.nheads))
    scale = 1.0 / math.sqrt(p.head_dim) if softmax_scale is None else softmax_scale
    how = formula.Scores(scale, (p.window[0], 0) if p.causal else p.window, p.softcap, slopes, inputs.sinks)
    lens_q, lens_k = [np.array([pair[side] for pair in p.rows]) for side in (0, 1)]
    return formula.attention(q, k, v, lens_q, lens_k, how, DTYPES[p.dtype])


def in_padded_form(p: Problem, out: Any, lse: Any) -> tuple[Any, Any]:
    """out and lse of a call as expected() gives them."""
    if not p.packed:
        return out, lse
    lse_rows = padded(lse.T[:, :, None], p.lengths, 0, p.rows)[..., 0]
    return padded(out, p.lengths, 0, p.rows), lse_rows.transpose(0, 2, 1)


def error(x: Any, ref: Any) -> Any:
    """max|x - ref| as an array of one number; inf when NaN or Inf are not at the same places in both."""
    x = x.astype(np.float64)
    with np.errstate(invalid="ignore"):
        same = (x == ref) | (xp.isnan(x) & xp.isnan(ref))
        difference = xp.where(xp.isfinite(x) & xp.isfinite(ref), xp.abs(x - ref), np.inf)
    return xp.where(same, 0.0, difference).max()


def judge(p: Problem, out: Any, lse: Any, want: formula.Result, lse_more: float = 0.0) -> dict[str, float]:
    """Asserts FlashAttention's error rule for out, and a tolerance for lse; returns the figures.

    lse_more is what the lse may be off by beside that.
    """
    if out.size == 0:
        return {"error": 0.0, "allowed": OUT_ABSOLUTE, "lse_error": 0.0}
    out, lse = in_padded_form(p, out, lse)
    scaled = lse.astype(np.float64), want.lse
    weight = 1.0 / (LSE_ABSOLUTE + lse_more + LSE_RELATIVE * xp.where(xp.isfinite(want.lse), xp.abs(want.lse), 0.0))
    figures = xp.stack(
        [error(out, want.out), error(want.lowp, want.out), error(scaled[0] * weight, scaled[1] * weight)]
    )
    worst, lowp, lse_worst = (float(x) for x in get(figures))
    allowed = 2.0 * lowp + OUT_ABSOLUTE
    if worst > allowed:
        raise AssertionError(f"{p}: out: {mismatch(get(out), get(want.out), allowed)}")
    if lse_worst > 1.0:
        raise AssertionError(f"{p}: lse: {mismatch(get(lse), get(want.lse), LSE_ABSOLUTE + lse_more)}")
    return {"error": worst, "allowed": allowed, "lse_error": lse_worst * (LSE_ABSOLUTE + lse_more)}


def check(p: Problem, **more: Any) -> dict[str, float]:
    """Runs a problem and judges it; `more` goes to the public function."""
    return check_inputs(make(p), **more)


def check_inputs(inputs: Inputs, **more: Any) -> dict[str, float]:
    """The same for inputs that are made already."""
    p = inputs.problem
    out, lse = inputs.call(**more)
    wait()
    figures = judge(p, out, lse, expected(inputs))
    if p.used is not None:
        assert_untouched_tails(p, out)
    return figures


def assert_untouched_tails(p: Problem, out: Any) -> None:
    """Rows of out behind seqused_q still hold the poison."""
    assert p.used is not None
    begin = starts(p.lengths, 0)
    tail = np.concatenate([np.arange(begin[b] + p.used[b][0], begin[b + 1]) for b in range(len(p.lengths))]).astype(
        np.int64
    )
    assert bool((bits(out)[put(tail)] == bits(poisoned((1,), p.dtype))[0]).all()), (
        f"{p}: a row behind seqused is written"
    )
