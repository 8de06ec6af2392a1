"""Pairs of tiles: calls without a mask, where two thread blocks load keys and values for each other.

Enough tiles that the usual shape is taken and that each thread block has several, of numbers even and odd, with ends
that do not fill a tile or a key block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyflash3 import flash_attn_func
from tests.gpu.machine import HOST, fill, get, normal, same_bits, wait
from tests.gpu.problem import Problem, check

HEAD_DIMS = ((128, 0), (120, 0), (192, 0), (256, 0), (200, 0), (192, 128), (136, 72))
# (seqlen_q, seqlen_k): two tiles, four, the last one nearly empty, 17 with the last one computed twice, no keys.
LENGTHS = ((256, 300), (500, 77), (385, 640), (2100, 200), (256, 0))
COPIES = 1 if HOST else 5
HEADS = 2 if HOST else 32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("head_dims", HEAD_DIMS, ids=str)
def test_right(head_dims: tuple[int, int], lengths: tuple[int, int], dtype: str) -> None:
    if HOST and lengths[0] * lengths[1] > 50_000:
        lengths = (lengths[0] // 8, lengths[1])
    head_dim, head_dim_v = head_dims
    common: dict[str, Any] = {"nheads": HEADS, "nheads_k": HEADS // 2, "head_dim": head_dim, "head_dim_v": head_dim_v}
    check(Problem(dtype, (lengths,) * COPIES, sinks=lengths[1] == 77, seed=lengths[0], **common))


@pytest.mark.parametrize("head_dim", [128, 256])
def test_the_same_bits_again_and_whatever_others_hold(head_dim: int) -> None:
    """Poison in one sequence stays there, though its neighbour's thread blocks load for each other at the same time."""
    batch, rows, heads = (2, 40, 2) if HOST else (6, 512, 24)
    q, k, v = (normal((batch, rows, heads, head_dim), "bfloat16", seed) for seed in range(3))
    first = flash_attn_func(q, k, v)
    fill(k[1], np.nan)
    fill(v[1], np.inf)
    others = [b for b in range(batch) if b != 1]
    for _ in range(3):
        again = flash_attn_func(q, k, v)
        wait()
        assert all(same_bits(first[b], again[b]) for b in others)
        assert bool(np.isnan(get(again[1]).astype(np.float32)).all())
