"""FlashAttention's own error rule: no further from the truth than twice the plain formula in the input dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

ABSOLUTE = 1e-5


def max_error(x: Any, ref: Float64) -> float:
    """max|x - ref| over the places where ref is finite; 0 for no such place."""
    finite = np.isfinite(ref)
    return float(np.abs(np.asarray(x, np.float64)[finite] - ref[finite]).max(initial=0.0))


def bound(ref: Float64, lowp: Float64) -> float:
    """The largest error allowed: 2 * max|lowp - ref| + 1e-5."""
    return 2.0 * max_error(lowp, ref) + ABSOLUTE


def mismatch(x: Any, ref: Float64, allowed: float) -> str | None:
    """What is wrong with x (NumPy, any dtype) in one sentence; None when it is right.

    NaN and both infinities must be where ref has them; then the largest difference elsewhere must be within `allowed`.
    """
    x = np.asarray(x, np.float64)
    if x.shape != ref.shape:
        return f"shape {x.shape} instead of {ref.shape}"
    for name, where in (("NaN", np.isnan), ("+inf", np.isposinf), ("-inf", np.isneginf)):
        wrong = np.argwhere(where(x) != where(ref))
        if len(wrong):
            at = tuple(int(i) for i in wrong[0])
            return f"{name} in {len(wrong)} wrong places, the first at {at}: {x[at]} instead of {ref[at]}"
    error = np.abs(np.where(np.isfinite(ref), x - np.where(np.isfinite(ref), ref, 0.0), 0.0))
    if error.size == 0 or error.max() <= allowed:
        return None
    at = tuple(int(i) for i in np.unravel_index(int(error.argmax()), error.shape))
    return f"error {error[at]:.3e} at {at} (allowed {allowed:.3e}): {x[at]} instead of {ref[at]}"
