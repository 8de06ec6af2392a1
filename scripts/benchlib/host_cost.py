"""Microseconds that the host takes to issue a tiny call, beside what nobody can do without."""

from __future__ import annotations

import ctypes
import itertools
import statistics
import time
from typing import Any

import cupy
import numpy as np

import pyflash3
from pyflash3._lib import library

from .contenders import Peers, prepare
from .shapes import Shape
from .timing import Calls

CALLS = 2000
TINY = Shape((64,), 4, 4, 64, causal=True)
TINY_VARLEN = Shape((64,), 4, 4, 64, causal=True, packed=True)


def _contenders(dtype: str, peers: Peers) -> Calls:
    # A CDLL of its own, so that this function keeps the plainest signature.
    version = ctypes.CDLL(library().path).flash3_abi_version
    version.argtypes, version.restype = [], ctypes.c_uint32
    dense, varlen = prepare(TINY, dtype, peers), prepare(TINY_VARLEN, dtype, peers)
    q = dense.outs["pyflash3"].copy()
    out = cupy.empty_like(q)
    new = [q.copy() for _ in range(4)]
    plan = pyflash3.plan(q, q, q, causal=True, out=out)
    cu_seqlens = cupy.array([0, 64], np.int32)
    plan_varlen = pyflash3.plan(
        q[0], q[0], q[0], cu_seqlens_q=cu_seqlens, cu_seqlens_k=cu_seqlens, max_seqlen_q=64, max_seqlen_k=64,
        causal=True, out=out[0],
    )  # fmt: skip
    calls: Calls = {
        "an empty call through ctypes": version,
        "cupy.empty": lambda: cupy.empty((1, 64, 4, 64), np.float16),
        "pyflash3 dense, out=": lambda: pyflash3.flash_attn_func(q, q, q, causal=True, out=out),
        "pyflash3 dense": lambda: pyflash3.flash_attn_func(q, q, q, causal=True),
        "pyflash3 dense, return_lse": dense.calls["pyflash3"],
        "pyflash3 varlen, return_lse": varlen.calls["pyflash3"],
        "pyflash3 plan": plan,
        "pyflash3 plan, other q, k, v and out": lambda: plan(q=new[0], k=new[1], v=new[2], out=new[3]),
        "pyflash3 plan, varlen": plan_varlen,
    }
    for name in ("FlashAttention-3", "cuDNN"):
        if name in dense.calls:
            calls[f"{name} dense"] = dense.calls[name]
        if name in varlen.calls:
            calls[f"{name} varlen"] = varlen.calls[name]
    return calls


def measure(dtype: str, peers: Peers) -> dict[str, Any]:
    """Median microseconds per call, over CALLS back-to-back calls of each contender."""
    result = {}
    for name, call in _contenders(dtype, peers).items():
        for _ in range(100):
            call()
        cupy.cuda.get_current_stream().synchronize()
        stamps = [time.perf_counter_ns()]
        for _ in range(CALLS):
            call()
            stamps.append(time.perf_counter_ns())
        cupy.cuda.get_current_stream().synchronize()
        steps = [1e-3 * (b - a) for a, b in itertools.pairwise(stamps)]
        result[name] = {"median_us": round(statistics.median(steps), 2), "mean_us": round(statistics.fmean(steps), 2)}
    return result
