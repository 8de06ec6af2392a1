"""flash_attn_with_kvcache and FlashAttention-3's serving build as calls without arguments on the same cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cupy
import numpy as np

import pyflash3
from pyflash3.tools.bench.records import OURS

from . import latent
from .cache_shapes import CacheShape
from .contenders import Problem, cupy_normal, first
from .peers import Peers
from .timing import Calls

WITHOUT_APPEND = "pyflash3, no new rows"
WITHOUT_GRAPH = "pyflash3, launched directly"
# What the peer, which has no dense caches, sees of one: pages of these sizes in order, or one page per sequence.
_VIEWS = (None, 256)
_POOLED_BYTES = 256 << 20  # more than out, lse and scratch of a captured call


def prepare(shape: CacheShape, dtype: str, peers: Peers) -> Problem:
    """Random normal inputs, and each contender called once."""
    batch, capacity, d = len(shape.lengths), shape.capacity, shape.head_dim
    caches = 1 if shape.latent_dim_v else 2
    shapes = [(batch, shape.seqlen_q, shape.nheads, d), *[(batch, capacity, shape.nheads_k, d)] * caches]
    torch = peers.torch
    tensors: list[Any] = []
    if torch is None:
        arrays = [cupy_normal(s, dtype) for s in shapes]
    else:
        tensors = [torch.randn(*s, device="cuda", dtype=getattr(torch, dtype)) for s in shapes]
        arrays = [cupy.from_dlpack(x) for x in tensors]
    table = _table(shape, shape.page_size)
    calls = _ours(shape, arrays, table)
    outs = {name: first(call()) for name, call in calls.items()}
    problem = Problem(arrays, calls, outs, {})
    alone = shape.append or shape.captured or shape.latent_dim_v is not None
    if alone or peers.serving is None or torch is None:
        return problem
    views = [(f"pages of {shape.page_size}", shape.page_size)] if shape.page_size else [
        ("one page per sequence" if size is None else f"in pages of {size}", size or capacity) for size in _VIEWS
    ]  # fmt: skip
    for view, size in views:
        name = f"FlashAttention-3 serving, {view}"
        own_table = table if shape.page_size else np.arange(batch * capacity // size, dtype=np.int32).reshape(batch, -1)
        call = _serving(shape, tensors, own_table, size, peers)
        try:
            result = call()[0]
            torch.cuda.synchronize()
        except RuntimeError as error:  # how torch says that a peer has no kernel for a call
            problem.unavailable[name] = str(error)[:300]
            continue
        problem.calls[name] = call
        problem.outs[name] = cupy.from_dlpack(result).reshape(outs[OURS].shape)
    return problem


def formula_difference(shape: CacheShape, problem: Problem) -> dict[str, float]:
    """Of a latent cache, for which there is no peer: how far our result is from the formula."""
    q, cache = problem.arrays
    table = _table(shape, shape.page_size)
    found = latent.difference(cupy, shape, q, _paged(cache, shape.page_size), table, problem.outs[OURS])
    return {"the formula in float32, relative to its largest value": found}


def _table(shape: CacheShape, size: int | None) -> Any:
    """Pages in random order, NumPy; None for a dense cache."""
    if size is None:
        return None
    columns = shape.capacity // size
    pages = np.random.default_rng(size).permutation(len(shape.lengths) * columns)
    return pages.reshape(-1, columns).astype(np.int32)


def _paged(x: Any, size: int | None) -> Any:
    return x if size is None else x.reshape(-1, size, *x.shape[2:])


def _ours(shape: CacheShape, arrays: list[Any], table: Any) -> Calls:
    q, k = arrays[0], _paged(arrays[1], shape.page_size)
    v = None if shape.latent_dim_v else _paged(arrays[2], shape.page_size)
    options: dict[str, Any] = {
        "cache_seqlens": cupy.asarray(np.array(shape.lengths, np.int32)), "causal": shape.causal, "return_lse": True,
        "page_table": None if table is None else cupy.asarray(table), "d_v": shape.latent_dim_v,
        "max_seqlen_k": max(shape.lengths) if shape.told else None,
    }  # fmt: skip

    def plain() -> Any:
        return pyflash3.flash_attn_with_kvcache(q, k, v, **options)

    if shape.packed:
        return {OURS: _packed(shape, q, k, v, options)}

    if not shape.append:
        return _beside_a_graph(plain) if shape.captured else {OURS: plain}
    new_k, new_v = (cupy.ascontiguousarray(x[:, :1]) for x in arrays[1:])
    angle = np.arange(shape.capacity)[:, None] / 10_000 ** np.linspace(0, 1, shape.head_dim // 2, endpoint=False)
    cos, sin = (cupy.asarray(x.astype(q.dtype)) for x in (np.cos(angle), np.sin(angle)))
    appending = options | {"cache_seqlens": options["cache_seqlens"] - 1, "rotary_interleaved": False}

    def append() -> Any:
        return pyflash3.flash_attn_with_kvcache(q, k, v, new_k, new_v, cos, sin, **appending)

    return _beside_a_graph(append) if shape.captured else {OURS: append, WITHOUT_APPEND: plain}


def _packed(shape: CacheShape, q: Any, k: Any, v: Any, options: dict[str, Any]) -> Callable[[], Any]:
    """The same through the function for packed sequences, which is told the longest ones, as the peer is."""
    starts = cupy.arange(len(shape.lengths) + 1, dtype=np.int32) * shape.seqlen_q
    packed_q = q.reshape(-1, *q.shape[2:])

    def call() -> Any:
        out, lse = pyflash3.flash_attn_varlen_func(
            packed_q, k, v, starts, None, shape.seqlen_q, max(shape.lengths), seqused_k=options["cache_seqlens"],
            page_table=options["page_table"], causal=shape.causal, return_lse=True,
        )  # fmt: skip
        return out.reshape(q.shape), lse

    return call


def _beside_a_graph(call: Callable[[], Any]) -> Calls:
    """The replay of a graph of the call, and the call itself."""
    cupy.cuda.Device().synchronize()  # the inputs come from another stream
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        call()  # loads kernels
        cupy.empty(_POOLED_BYTES, np.int8)  # for this stream's pool: nothing can be allocated during the capture
        stream.synchronize()
        stream.begin_capture(mode=cupy.cuda.runtime.streamCaptureModeThreadLocal)
        try:
            result = call()
        finally:
            graph = stream.end_capture()

    def replay() -> Any:
        graph.launch()
        return result

    return {OURS: replay, WITHOUT_GRAPH: call}


def _serving(shape: CacheShape, tensors: list[Any], table: Any, size: int, peers: Peers) -> Any:
    torch = peers.torch
    q, k, v = tensors[0].reshape(-1, shape.nheads, shape.head_dim), *(_paged(x, size) for x in tensors[1:])
    cu_q = torch.arange(len(shape.lengths) + 1, device="cuda", dtype=torch.int32) * shape.seqlen_q
    used, pages = (torch.from_numpy(np.array(x, np.int32)).cuda() for x in (shape.lengths, table))
    scale, longest = 1.0 / math.sqrt(shape.head_dim), max(shape.lengths)
    # q, k, v, k_new, v_new, q_v, out, cu_seqlens of q, k and k_new, seqused of q and k, longest q and k, page table,
    # batch index, leftpad, rotary cos, sin and lengths, descale of q, k and v, scale, causal, window, softcap,
    # interleaved, scheduler metadata, splits, pack_gqa, sm_margin, sinks, and three of context parallelism.
    return lambda: peers.serving(
        q, k, v, None, None, None, None, cu_q, None, None, None, used, shape.seqlen_q, longest, pages,
        None, None, None, None, None, None, None, None, scale, shape.causal, -1, -1, 0.0, True, None, 0, None, 0, None,
        1, 0, None,
    )  # fmt: skip
