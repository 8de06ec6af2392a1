"""Errors of pyflash3 and its peers against the formula in float64, on the same inputs."""

from __future__ import annotations

import itertools
from typing import Any

import cupy
import numpy as np

from tests.gpu.formula import Scores, attention

from .contenders import OURS, Peers, free_memory, prepare
from .shapes import Shape

MOST_RATIO = 1.05  # of our root mean square error to FlashAttention-3's
SHAPES = [
    Shape((n,) * (4096 // n), 4, 4, d, causal)
    for d, causal, n in itertools.product((64, 96, 128, 192, 256), (False, True), (512, 4096))
]


def measure(dtype: str, peers: Peers) -> tuple[list[dict[str, Any]], bool]:
    """A row per shape with every contender's errors, and whether ours are small enough everywhere."""
    rows = []
    good = True
    for shape in SHAPES:
        problem = prepare(shape, dtype, peers)
        q, k, v = problem.arrays
        lens = np.array(shape.lengths)
        how = Scores(shape.head_dim**-0.5, (-1, 0 if shape.causal else -1), 0.0, None, None)
        want = attention(q, k, v, lens, lens, how, q.dtype)
        errors = {}
        for name, out in [*problem.outs.items(), ("formula rounded to the dtype", want.lowp)]:
            difference = out.astype(np.float64) - want.out
            rmse, largest = cupy.sqrt((difference * difference).mean()), cupy.abs(difference).max()
            errors[name] = {"rmse": float(rmse), "max": float(largest)}
        peer = errors.get("FlashAttention-3")
        ratio = None if peer is None else errors[OURS]["rmse"] / peer["rmse"]
        good = good and (ratio is None or ratio <= MOST_RATIO)
        rows.append({"name": str(shape), "errors": errors, "rmse_over_flash_attention_3": ratio})
        free_memory(peers)
    return rows, good
