"""NumPy arrays: memory and settings for the host engine."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

Layout = tuple[tuple[int, ...], Any, int]  # shape, dtype and bytes of an array to allocate

WORKSPACE_ALIGNMENT = 256  # what flash3.h asks for


def pointer(x: npt.NDArray[Any]) -> int:
    """Address of the first element."""
    address: int = x.__array_interface__["data"][0]
    return address


def pointers(arrays: list[Any]) -> list[int | None]:
    """Addresses of arrays, None for None."""
    return [None if x is None else pointer(x) for x in arrays]


def results(out: Layout | None, lse: Layout | None, scratch_size: int) -> tuple[Any, Any, Any, int]:
    """Uninitialised arrays out and lse, None where None is asked for, and owner and address of scratch."""
    out_array, lse_array = (None if x is None else np.empty(x[0], x[1]) for x in (out, lse))
    owner, address = scratch(scratch_size)
    return out_array, lse_array, owner, address


def stream() -> None:
    """What run_mha_v3 gets for a stream."""


def scratch(size: int) -> tuple[npt.NDArray[np.uint8], int]:
    """Owner and aligned address of size bytes."""
    owner = np.empty(size + WORKSPACE_ALIGNMENT, np.uint8)
    return owner, -(-pointer(owner) // WORKSPACE_ALIGNMENT) * WORKSPACE_ALIGNMENT


def num_threads() -> int:
    """PYFLASH3_NUM_THREADS, or 0: one thread per core."""
    text = os.environ.get("PYFLASH3_NUM_THREADS", "0")
    if not text.isdecimal():
        raise ValueError(f"PYFLASH3_NUM_THREADS is {text!r}; it must be a number of threads, or 0 for all cores")
    return int(text)
