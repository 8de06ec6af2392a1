"""Calls that are prepared once and issued many times: nothing is checked, allocated or laid out again."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._call import Cache, Options, prepare
from ._planned import PlannedCall
from .kvcache import same_for_all

Array = Any  # numpy.ndarray, cupy.ndarray, or a CUDA object with __dlpack__

__all__ = ["KVCachePlan", "Plan", "plan", "plan_with_kvcache"]


class Plan(PlannedCall):
    """One call of flash_attn_func or flash_attn_varlen_func, ready to be issued again and again. `plan` makes it.

    Calling it reads the planned arrays and writes the same out and lse each time. The plan holds all of them, and its
    workspace, as long as it lives. On a GPU a call looks up CuPy's current stream of the arrays' device and whether it
    captures, enqueues the work there and does not wait for it. It allocates where the stream is not that of the last
    call: a workspace from the pool of the new one.

    Threads and streams: calls of one plan from several threads are issued one after the other. But a plan has one out
    and one lse, so the caller must order its calls on different streams, as for all writers of one array; otherwise
    use a plan per stream, or give each call its own out and lse.

    CUDA graphs: a call may be captured. The graph then uses the arrays of the plan: keep the plan, or those arrays, as
    long as the graph. Graphs that hold calls of the same plan share a workspace, so they must not run at the same time
    as each other. Calls outside of graphs do not disturb them. Make the plan before the capture: it allocates.
    """

    __slots__ = ()

    def __call__(
        self,
        *,
        q: Array | None = None,
        k: Array | None = None,
        v: Array | None = None,
        out: Array | None = None,
        lse: Array | None = None,
    ) -> Any:
        """Issues the call; arrays given here take the place of the planned ones, for this call only.

        Args:
            q: an array of the shape, strides, dtype and device of the planned q, at an address that is a multiple of
                16 bytes on a GPU and of the dtype's size on the host.
            k: the same for k.
            v: the same for v.
            out: the same for out.
            lse: the same for lse, at a multiple of 4 bytes, for a plan that has one.

        Returns:
            out, or (out, lse) for a plan that has an lse: the arrays that were written.

        Raises:
            ValueError: a replacement differs in shape, strides or place, is misaligned or read-only, or is an lse for
                a plan without one.
            TypeError: a replacement has another dtype, or is no array.
            RuntimeError: CUDA refused a launch.
        """
        if q is None and k is None and v is None and out is None and lse is None:
            return self._call()
        return self._call_with({"q": q, "k": k, "v": v, "out": out, "lse": lse})


class KVCachePlan(PlannedCall):
    """One call of flash_attn_with_kvcache, ready to be issued again and again. `plan_with_kvcache` makes it.

    All that Plan says of streams, threads and CUDA graphs holds here too. The order of calls that append to the same
    rows, and of changes to cache_seqlens between them, is that of their stream.
    """

    __slots__ = ()

    def __call__(
        self,
        *,
        q: Array | None = None,
        k: Array | None = None,
        v: Array | None = None,
        k_cache: Array | None = None,
        v_cache: Array | None = None,
        out: Array | None = None,
        lse: Array | None = None,
    ) -> Any:
        """Issues the call; arrays given here take the place of the planned ones, for this call only.

        Args:
            q: an array of the shape, strides, dtype and device of the planned q, at an address that is a multiple of
                16 bytes on a GPU and of the dtype's size on the host.
            k: the same for k, the new rows, of a plan that has some.
            v: the same for v.
            k_cache: the same for k_cache: another layer's, say.
            v_cache: the same for v_cache.
            out: the same for out.
            lse: the same for lse, at a multiple of 4 bytes, for a plan that has one.

        Returns, Raises:
            as for a Plan.
        """
        given = {"q": q, "k": k, "v": v, "k_cache": k_cache, "v_cache": v_cache, "out": out, "lse": lse}
        return self._call_with(given)


def plan(
    q: Array,
    k: Array,
    v: Array | None,
    *,
    cu_seqlens_q: Array | None = None,
    cu_seqlens_k: Array | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    seqused_q: Array | None = None,
    seqused_k: Array | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Array | None = None,
    sinks: Array | None = None,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    page_table: Array | None = None,
    out: Array | None = None,
    lse: Array | None = None,
    return_lse: bool = False,
    d_v: int | None = None,
) -> Plan:
    """Prepares a call of flash_attn_func, or with cu_seqlens of flash_attn_varlen_func, to be issued many times.

    It checks everything and allocates what is missing, but computes nothing; each call of the plan then does:

        step = plan(q, k, v, causal=True)
        step()            # computes step.out from what q, k and v hold now
        step(q=other_q)   # the same from another array like q

    The result has the bits that the function of the same arguments gives. Contents may change between calls, those of
    cu_seqlens, seqused, page_table, alibi_slopes and sinks too; addresses, shapes and options stay. The environment
    variables PYFLASH3_CHECK and PYFLASH3_NUM_THREADS are read here, once.

    Arrays of other frameworks are taken through DLPack here: their producers' work so far is ordered before CuPy's
    current stream now, but later work on other streams is for the caller to order.

    Args:
        q: (batch, seqlen_q, nheads, head_dim), or (total_q, nheads, head_dim) with cu_seqlens. It and all arguments
            not named here are as in flash_attn_func and flash_attn_varlen_func.
        k: (batch, seqlen_k, nheads_k, head_dim), or (total_k, nheads_k, head_dim).
        v: (batch, seqlen_k, nheads_k, head_dim_v), or (total_k, nheads_k, head_dim_v); or None with d_v.
        out: q's shape with head_dim_v, in q's dtype: where calls write to; None: a new array of the plan's own.
        lse: (batch, nheads, seqlen_q), or (nheads, total_q), contiguous float32: where calls write the log-sum-exp.
        return_lse: without lse, calls write the log-sum-exp to a new array of the plan's own.

    Returns:
        A Plan: call it to issue the work; its `out` and `lse` are what it writes to.

    Raises:
        ValueError, TypeError, NotImplementedError, RuntimeError, ImportError: as the functions, and for lse.
    """
    options = Options(
        softmax_scale, causal, window_size, softcap, alibi_slopes, sinks, num_splits, pack_gqa, sm_margin, d_v
    )
    lengths = (cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, max_seqlen_q, max_seqlen_k)
    cache = None if page_table is None else Cache(page_table)
    packed = page_table is not None or any(x is not None for x in lengths)
    kind, arrays = prepare(q, k, v, options, out, lengths if packed else None, cache)
    return Plan(kind, arrays, out, lse, return_lse)


def plan_with_kvcache(
    q: Array,
    k_cache: Array,
    v_cache: Array | None,
    k: Array | None = None,
    v: Array | None = None,
    *,
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
    d_v: int | None = None,
    max_seqlen_k: int | None = None,
    out: Array | None = None,
    lse: Array | None = None,
    return_lse: bool = False,
) -> KVCachePlan:
    """Prepares a call of flash_attn_with_kvcache, for all layers and steps that have arrays of the same shapes.

        step = plan_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=cache_seqlens, page_table=page_table)
        for layer in layers:
            step(q=layer.q, k=layer.k, v=layer.v, k_cache=layer.k_cache, v_cache=layer.v_cache, out=layer.out)

    What is saved is the host's work: checks, layout and allocation. How the keys are shared out to a GPU needs no
    preparation that a plan could keep: each thread block finds its own part from the lengths, which every call reads
    where they lie, as it does with page_table and all other arrays. So all that `plan` says of contents, environment
    variables and other frameworks' arrays holds here, and a captured graph stays right while the cache grows.

    Args:
        q: (batch, seqlen_q, nheads, head_dim), or (total_q, nheads, head_dim) with cu_seqlens_q. It and all arguments
            not named here are as in flash_attn_with_kvcache, also v_cache=None with d_v.
        cache_seqlens: (batch,) int32, read at each call; an int is a constant of the plan.
        out: where calls write to, in q's shape with head_dim_v; None: a new array of the plan's own.
        lse: (batch, nheads, seqlen_q), or (nheads, total_q), contiguous float32: where calls write the log-sum-exp.
        return_lse: without lse, calls write the log-sum-exp to a new array of the plan's own.

    Returns:
        A KVCachePlan: call it to issue the work. Making it computes nothing and writes nothing.

    Raises:
        ValueError, TypeError, NotImplementedError, RuntimeError, ImportError: as flash_attn_with_kvcache, and for lse.
    """
    if isinstance(cache_seqlens, (int, np.integer)):
        cache_seqlens = same_for_all(cache_seqlens, q, cu_seqlens_q, wait=True)
    options = Options(
        softmax_scale, causal, window_size, softcap, alibi_slopes, sinks, num_splits, pack_gqa, sm_margin, d_v
    )
    cache = Cache(
        page_table, cache_batch_idx, cache_leftpad, k, v, cu_seqlens_k_new, rotary_cos, rotary_sin, rotary_seqlens,
        rotary_interleaved, kvcache=True,
    )  # fmt: skip
    lengths = (cu_seqlens_q, None, None, cache_seqlens, max_seqlen_q, max_seqlen_k)
    kind, arrays = prepare(q, k_cache, v_cache, options, out, lengths, cache)
    return KVCachePlan(kind, arrays, out, lse, return_lse)
