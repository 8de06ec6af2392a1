"""Where the tests of this folder run: CuPy on the GPU, or, to try the test code itself, NumPy and the host engine.

FLASH3_TEST_BACKEND=host chooses the latter, on fewer and smaller shapes. Everything here works on arrays of `xp`.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
from typing import Any

import ml_dtypes
import numpy as np
import pytest

# CuPy's CUB reductions take seconds each to compile; the plain ones are fast enough here.
os.environ.setdefault("CUPY_ACCELERATORS", "")

HOST = os.environ.get("FLASH3_TEST_BACKEND") == "host"

xp: Any = np
if not HOST:
    with contextlib.suppress(ImportError):  # the tests are skipped then, but can still be collected
        import cupy as xp  # type: ignore[no-redef]

DTYPES: dict[str, Any] = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
NAN_BITS = 0x7FFF  # NaN in float16 and in bfloat16

# Prime, so that the period of long arrays falls on another column in every row.
_POOL = 1_048_573 if HOST else 16_777_213
_HANG_SECONDS = 30.0


@functools.cache
def _pool(dtype: str) -> Any:
    normal = np.random.default_rng(2205_14135).standard_normal(_POOL, np.float32)
    return xp.asarray(normal.astype(DTYPES[dtype]))


def normal(shape: tuple[int, ...], dtype: str, seed: int) -> Any:
    """Standard normal numbers, cut from one pool that is drawn once: the same for the same seed."""
    pool = _pool(dtype)
    out = xp.empty(math.prod(shape), DTYPES[dtype])
    source = seed * 2_654_435_761 % _POOL
    at = 0
    while at < out.size:
        count = min(out.size - at, _POOL - source)
        out[at : at + count] = pool[source : source + count]
        at += count
        source = (source + count) % _POOL
    return out.reshape(shape)


def poisoned(shape: tuple[int, ...], dtype: str) -> Any:
    """An array of NaN, so that whatever a call leaves unwritten shows."""
    return xp.full(shape, NAN_BITS, np.uint16).view(DTYPES[dtype])


def poison_free_memory(shape: tuple[int, ...]) -> None:
    """Leaves NaN in the memory that CuPy will most likely hand out next for a float32 array of this shape."""
    xp.full(shape, np.nan, np.float32)


def bits(x: Any) -> Any:
    """The same memory as integers: two NaN of the same bits are equal there."""
    return x.view(bits_dtype(x.dtype))


def bits_dtype(dtype: Any) -> Any:
    """The unsigned integers of the same size."""
    return {2: np.uint16, 4: np.uint32}[dtype.itemsize]


def fill(x: Any, value: float) -> None:
    """Sets all of x, which may be a view, to a number of its dtype."""
    bits(x)[...] = np.asarray(value, x.dtype).view(bits_dtype(x.dtype)).item()


def same_bits(a: Any, b: Any) -> bool:
    """Whether two arrays of one shape and dtype are equal bit by bit."""
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    return bool((bits(a) == bits(b)).all())


def put(x: Any) -> Any:
    """A NumPy array, or a list of numbers, on the device."""
    return xp.asarray(x)


def get(x: Any) -> Any:
    """An array of the device as NumPy's."""
    return x if HOST else xp.asnumpy(x)


def int32(values: Any) -> Any:
    """Lengths for a call."""
    return put(np.asarray(values, np.int32))


def wait(stream: Any = None) -> None:
    """Waits for a stream (the current one), but not for ever: a kernel that hangs ends the run with a message.

    Nothing can stop a hanging kernel, so no later test could run either.
    """
    if HOST:
        return
    stream = stream or xp.cuda.get_current_stream()
    done = stream.record()
    limit = time.monotonic() + _HANG_SECONDS
    while not done.done:
        if time.monotonic() > limit:
            pytest.exit(f"the GPU has not finished within {_HANG_SECONDS:.0f} s: a kernel hangs", returncode=3)
        time.sleep(0)


@functools.cache
def _spin_kernel() -> Any:
    return xp.RawKernel(
        """extern "C" __global__ void spin(long long nanoseconds) {
             long long begin, now;
             asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
             do { asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)); } while (now - begin < nanoseconds);
           }""",
        "spin",
    )


def spin(milliseconds: float) -> None:
    """Keeps the current stream busy with one thread of the GPU."""
    _spin_kernel()((1,), (1,), (np.int64(milliseconds * 1e6),))
