"""Device time of several contenders on the same inputs, and how fast this machine is at its best.

Everything runs on the legacy default stream, which is CuPy's and torch's current one unless somebody changes it.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

import cupy
import numpy as np

FLUSH_BYTES = 256 << 20  # several times the L2 of any Hopper GPU
AHEAD_NANOSECONDS = 500_000  # the device waits so long before each call, so that the host's work is done by then

Calls = dict[str, Callable[[], object]]


@functools.cache
def _sleep_kernel() -> Any:
    return cupy.RawKernel(
        """extern "C" __global__ void sleep(long long nanoseconds) {
             long long begin, now;
             asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
             do { asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)); } while (now - begin < nanoseconds);
           }""",
        "sleep",
    )


def time_in_turn(calls: Calls, rounds: int, warmup: int = 4) -> dict[str, list[float]]:
    """Seconds of every round of each contender, taken in turn (A B C A B C ...), with a cold L2."""
    flush = cupy.empty(FLUSH_BYTES, np.int8)
    times: dict[str, list[float]] = {name: [] for name in calls}
    sleep = _sleep_kernel()
    for turn in range(warmup + rounds):
        for name, call in calls.items():
            start, end = cupy.cuda.Event(), cupy.cuda.Event()
            flush.fill(0)
            sleep((1,), (1,), (np.int64(AHEAD_NANOSECONDS),))
            start.record()
            call()
            end.record()
            end.synchronize()
            if turn >= warmup:
                times[name].append(cupy.cuda.get_elapsed_time(start, end) * 1e-3)
    return times


def ceilings(torch: Any, dtype: str) -> dict[str, float]:
    """TFLOP/s of an 8192^3 matrix product (through torch where there is one), TB/s of a device copy, reads + writes."""
    n = 8192
    if torch is None:
        a = cupy.random.standard_normal((n, n), dtype=np.float32).astype(np.float16)
        b = cupy.random.standard_normal((n, n), dtype=np.float32).astype(np.float16)
        c = cupy.empty((n, n), np.float16)
        product: Callable[[], object] = functools.partial(cupy.matmul, a, b, out=c)
    else:
        kind = getattr(torch, dtype)
        a, b = (torch.randn(n, n, device="cuda", dtype=kind) for _ in range(2))
        product = functools.partial(torch.matmul, a, b)
    source = cupy.zeros(2 << 30, np.int8)
    target = cupy.empty_like(source)
    size = source.nbytes

    def copy() -> None:
        target.data.copy_from_device_async(source.data, size)

    times = time_in_turn({"product": product, "copy": copy}, rounds=20)
    return {
        "matmul_tflops": 2.0 * n**3 / statistics.median(times["product"]) * 1e-12,
        "copy_tb_per_s": 2.0 * size / statistics.median(times["copy"]) * 1e-12,
    }
