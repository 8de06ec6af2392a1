"""Microseconds that the host takes to issue a tiny call, beside what nobody can do without."""

from __future__ import annotations

import ctypes
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import cupy
import numpy as np

from pyflash3._lib import library
from pyflash3.tools.backend import DTYPES
from pyflash3.tools.bench.records import OURS

from . import caches
from .cache_shapes import CacheShape
from .contenders import Peers, prepare
from .shapes import Shape
from .timing import Calls
from .tiny_calls import CACHED, HEAD_DIM, HEADS, PAGE_SIZE, ROWS, tiny_calls

CALLS = 2000


def _contenders(dtype: str, peers: Peers) -> Calls:
    # A CDLL of its own, so that this function keeps the plainest signature.
    version = ctypes.CDLL(library().path).flash3_abi_version
    version.argtypes, version.restype = [], ctypes.c_uint32
    calls: Calls = {
        "an empty call through ctypes": version,
        "an empty kernel through ctypes": _empty_launch(),
        "cupy.empty": lambda: cupy.empty((1, ROWS, HEADS, HEAD_DIM), np.float16),
    }
    calls |= {f"{OURS} {name}": call for name, call in tiny_calls(cupy, DTYPES[dtype]).items()}
    heads = (HEADS, HEADS, HEAD_DIM)
    problems = {
        "dense": prepare(Shape((ROWS,), *heads, causal=True), dtype, peers),
        "varlen": prepare(Shape((ROWS,), *heads, causal=True, packed=True), dtype, peers),
        "kvcache": caches.prepare(CacheShape((CACHED,), 1, *heads, page_size=PAGE_SIZE), dtype, peers),
    }
    for kind, problem in problems.items():
        calls |= {f"{name} {kind}": call for name, call in problem.calls.items() if not name.startswith(OURS)}
    return calls


def _empty_launch() -> Callable[[], object]:
    """What any call that launches a kernel takes, and by how much this machine's clock is not another one's."""
    module = cupy.RawModule(code='extern "C" __global__ void nothing() {}')
    function = module.get_function("nothing").kernel.ptr
    launch = ctypes.CDLL("libcuda.so.1").cuLaunchKernel
    launch.argtypes = [ctypes.c_void_p, *[ctypes.c_uint] * 7, *[ctypes.c_void_p] * 3]
    arguments = (function, 1, 1, 1, 1, 1, 1, 0, None, None, None)

    def call(_keeps_alive: Any = module) -> None:
        launch(*arguments)

    return call


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
