"""Turns a caller's numbers into plain Python ones, and checks the contents of the length arrays when asked to."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import numpy.typing as npt


def window(causal: bool, window_size: tuple[int, int]) -> tuple[int, int]:
    """The two window sides of a call; causal keeps the left side and sets the right one to 0."""
    try:
        left, right = window_size
        sides = operator.index(left), operator.index(right)
    except (TypeError, ValueError):
        raise TypeError(f"window_size is {window_size!r}; it must be two integers (left, right)") from None
    if sides[0] < -1 or sides[1] < -1:
        raise ValueError(f"window_size is {sides}; each side must be -1 (unlimited) or at least 0")
    return (sides[0], 0) if causal else sides


def integer(name: str, value: Any) -> int:
    """value as an int, for Python and NumPy integers."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; it must be an integer") from None


def rounded_up(number: int, bits: int, most: int) -> int:
    """The next number of so many bits and zeros, but no more than `most`; one that is not from 1 to `most` as it is."""
    step = 1 << max(number.bit_length() - bits, 0)
    return min(-(-number // step) * step, most) if 0 < number <= most else number


def boolean(name: str, value: Any) -> bool:
    """value as a bool, for Python and NumPy booleans."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is {value!r}; it must be True or False")
    return bool(value)


def real(name: str, value: Any) -> float:
    """value as a float, for Python and NumPy numbers."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r}; it must be a number") from None


def check_cu_seqlens(name: str, cu_seqlens: npt.NDArray[np.int32], total: int) -> None:
    """ValueError unless cu_seqlens, on the host, starts at 0, never decreases and ends at total."""
    if cu_seqlens[0] != 0:
        raise ValueError(f"{name} starts at {cu_seqlens[0]}; it must start at 0")
    steps = np.diff(cu_seqlens.astype(np.int64))
    if steps.size and steps.min() < 0:
        i = int(np.argmin(steps))
        raise ValueError(f"{name} falls from {cu_seqlens[i]} to {cu_seqlens[i + 1]} at {i + 1}; it must not decrease")
    if cu_seqlens[-1] != total:
        raise ValueError(f"{name} ends at {cu_seqlens[-1]}; it must end at {total}, the rows of the packed array")


def check_seqused(name: str, seqused: npt.NDArray[np.int32], cu_seqlens: npt.NDArray[np.int32]) -> None:
    """ValueError unless every entry of seqused, on the host, is from 0 to the length of its sequence."""
    capacity = np.diff(cu_seqlens.astype(np.int64))
    wrong = np.flatnonzero((seqused < 0) | (seqused > capacity))
    if wrong.size:
        i = int(wrong[0])
        raise ValueError(f"{name}[{i}] is {seqused[i]}; it must be from 0 to {capacity[i]}, the rows of sequence {i}")
