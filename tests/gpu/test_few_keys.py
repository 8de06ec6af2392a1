"""Dense calls with few keys: K and V of a KV head stay where they are while all tiles of its query heads are computed.

Few tiles and many, a thread block with whole KV heads of a sequence and with parts of one, rows that see no key, and
ends inside and at the end of a tile and of each half of the keys.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyflash3 import flash_attn_func
from tests.gpu.machine import HOST, fill, get, normal, same_bits, wait
from tests.gpu.problem import Problem, check

LENGTHS = ((128, 128), (1, 128), (65, 100), (300, 77), (64, 64), (63, 65), (130, 1), (200, 90))
HEADS = ((2, 2), (8, 2), (5, 1))
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"causal": True},
    {"window": (20, 5)},
    {"causal": True, "softcap": 15.0},
    {"softcap": 60.0},
    {"causal": True, "alibi": True},
    {"window": (3, 40), "sinks": True},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_right(heads: tuple[int, int], lengths: tuple[int, int], options: dict[str, Any]) -> None:
    dtype = "float16" if lengths[0] % 2 else "bfloat16"
    head_dim = 120 if lengths == (300, 77) else 128
    common: dict[str, Any] = {"nheads": heads[0], "nheads_k": heads[1], "head_dim": head_dim}
    check(Problem(dtype, (lengths,) * 3, seed=sum(lengths), **common, **options))


@pytest.mark.parametrize("batch", [1, 17, 150])
@pytest.mark.parametrize("heads", [(1, 1), (12, 3)], ids=str)
def test_tiles_are_shared_out(heads: tuple[int, int], batch: int) -> None:
    """Numbers of tiles below, above and far above that of multiprocessors, and no multiple of it."""
    common: dict[str, Any] = {"nheads": heads[0], "nheads_k": heads[1], "head_dim": 128}
    check(Problem("bfloat16", ((130, 70),) * (2 if HOST else batch), causal=True, seed=batch, **common))


def test_the_same_bits_again_and_whatever_others_hold() -> None:
    """Poison in one sequence stays there, though neighbours are in the same thread block."""
    batch, rows, heads = (2, 40, 2) if HOST else (40, 128, 16)
    q, k, v = (normal((batch, rows, heads, 128), "bfloat16", seed) for seed in range(3))
    first = flash_attn_func(q, k, v, causal=True)
    fill(k[1], np.nan)
    fill(v[1], np.inf)
    others = [b for b in range(batch) if b != 1]
    for _ in range(3):
        again = flash_attn_func(q, k, v, causal=True)
        wait()
        assert all(same_bits(first[b], again[b]) for b in others)
        assert bool(np.isnan(get(again[1]).astype(np.float32)).all())


def test_keys_behind_the_diagonal_are_not_there() -> None:
    """Infinite values that no row sees, in the same block as those that rows see."""
    batch, rows = 3, 96
    q, k, v = (normal((batch, rows, 4, 128), "float16", seed) for seed in range(3))
    first = flash_attn_func(q[:, :50], k[:, :50], v[:, :50], causal=True)
    fill(v[:, 50:], np.inf)
    fill(k[:, 50:], np.nan)
    again = flash_attn_func(q, k, v, causal=True)
    wait()
    difference = np.abs(get(again[:, :50]).astype(np.float32) - get(first).astype(np.float32))
    assert float(difference.max()) < 2e-3
