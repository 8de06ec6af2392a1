"""Packed calls around the numbers of sequences whose lengths thread blocks add up themselves (TileTraits::kMostAddedUp:
64 where two tiles run side by side, else 256); with more of them a kernel ahead does it.

A sequence longer than those of the kernel for short sequences keeps the calls away from that one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyflash3 import flash_attn_varlen_func
from tests.gpu.machine import HOST, int32, normal, same_bits, wait
from tests.gpu.problem import Problem, check

COUNTS = (31, 32, 33, 63, 64, 65, 255, 256, 257, 1100)
LONGEST = 400


def _lengths(count: int) -> list[int]:
    lengths = np.random.default_rng(count).integers(0, 30, count)
    lengths[count // 2] = LONGEST
    return [int(n) for n in lengths]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("head_dim", [64, 96, 128, 192, 256])
def test_right(head_dim: int, count: int) -> None:
    if HOST and count > 65:
        pytest.skip("nothing is added up on the host engine")
    lengths = tuple((n, n + n // 3) for n in _lengths(count))
    options: dict[str, Any] = {"causal": count % 2 == 0, "window": (-1, -1) if count % 3 else (25, 3)}
    check(Problem("bfloat16", lengths, packed=True, nheads=2, nheads_k=1, head_dim=head_dim, seed=count, **options))


@pytest.mark.parametrize("most", [64, 256])
def test_one_more_changes_no_bit(most: int) -> None:
    """A last sequence without rows is one too many to be added up."""
    head_dim = 64 if most == 64 else 128
    lengths = _lengths(most)
    q, k, v = (normal((sum(lengths), heads, head_dim), "bfloat16", heads) for heads in (4, 2, 2))
    results = []
    for rows in (lengths, [*lengths, 0]):
        cu = int32(np.concatenate([[0], np.cumsum(rows)]))
        results.append(flash_attn_varlen_func(q, k, v, cu, cu, LONGEST, LONGEST, causal=True, return_lse=True))
    wait()
    for few, many in zip(*results, strict=True):
        assert same_bits(few, many)
