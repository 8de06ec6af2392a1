"""pyflash3's calls of a tiny problem, whose work on a GPU is nothing beside the host's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import pyflash3

ROWS, HEADS, HEAD_DIM = 64, 4, 64
CACHED, PAGE_SIZE = 100, 16


def tiny_calls(xp: Any, dtype: np.dtype[Any]) -> dict[str, Callable[[], Any]]:
    """Calls without arguments, by what they are; xp is CuPy, or NumPy."""

    def normal(*shape: int) -> Any:
        return xp.asarray(np.random.default_rng(shape).standard_normal(shape, np.float32).astype(dtype))

    return _dense_and_varlen(xp, normal) | _with_kvcache(xp, normal)


def _dense_and_varlen(xp: Any, normal: Callable[..., Any]) -> dict[str, Callable[[], Any]]:
    q, k, v = (normal(1, ROWS, HEADS, HEAD_DIM) for _ in range(3))
    out, new = xp.empty_like(q), [xp.empty_like(q) for _ in range(4)]
    for x, planned in zip(new, (q, k, v), strict=False):
        x[...] = planned
    packed: dict[str, Any] = {
        "q": q[0], "k": k[0], "v": v[0], "cu_seqlens_q": xp.asarray(np.array([0, ROWS], np.int32)),
        "cu_seqlens_k": xp.asarray(np.array([0, ROWS], np.int32)), "max_seqlen_q": ROWS, "max_seqlen_k": ROWS,
        "causal": True,
    }  # fmt: skip
    plan = pyflash3.plan(q, k, v, causal=True, out=out)
    return {
        "dense, out=": lambda: pyflash3.flash_attn_func(q, k, v, causal=True, out=out),
        "dense": lambda: pyflash3.flash_attn_func(q, k, v, causal=True),
        "dense, return_lse": lambda: pyflash3.flash_attn_func(q, k, v, causal=True, return_lse=True),
        "varlen": lambda: pyflash3.flash_attn_varlen_func(**packed),
        "varlen, return_lse": lambda: pyflash3.flash_attn_varlen_func(**packed, return_lse=True),
        "plan": plan,
        "plan, other q, k, v and out": lambda: plan(q=new[0], k=new[1], v=new[2], out=new[3]),
        "plan, varlen": pyflash3.plan(**packed),
        "plan, varlen, return_lse": pyflash3.plan(**packed, return_lse=True),
    }


def _with_kvcache(xp: Any, normal: Callable[..., Any]) -> dict[str, Callable[[], Any]]:
    pages = -(-(CACHED + 1) // PAGE_SIZE)
    q, k, v = (normal(1, 1, HEADS, HEAD_DIM) for _ in range(3))
    k_cache, v_cache = (normal(1, pages * PAGE_SIZE, HEADS, HEAD_DIM) for _ in range(2))
    paged: dict[str, Any] = {
        "q": q, "k_cache": k_cache.reshape(pages, PAGE_SIZE, HEADS, HEAD_DIM),
        "v_cache": v_cache.reshape(pages, PAGE_SIZE, HEADS, HEAD_DIM), "k": k, "v": v,
        "cache_seqlens": xp.asarray(np.array([CACHED], np.int32)),
        "page_table": xp.asarray(np.arange(pages, dtype=np.int32)[None]),
    }  # fmt: skip
    dense = {"q": q, "k_cache": k_cache, "v_cache": v_cache, "cache_seqlens": paged["cache_seqlens"]}
    layer: dict[str, Any] = {name: paged[name].copy() for name in ("q", "k_cache", "v_cache", "k", "v")}
    layer["out"] = xp.empty_like(q)
    plan = pyflash3.plan_with_kvcache(**paged)
    return {
        "kvcache": lambda: pyflash3.flash_attn_with_kvcache(**dense),
        "kvcache, paged, new rows": lambda: pyflash3.flash_attn_with_kvcache(**paged),
        "plan, kvcache": pyflash3.plan_with_kvcache(**dense),
        "plan, kvcache, paged, new rows": plan,
        "plan, kvcache, another layer": lambda: plan(**layer),
    }
