"""Packed calls with few keys, as the caller says: K and V of a KV head stay where they are for all its query heads.

Lengths around those of a tile and of a key block, sequences without rows and without keys, heads that thread blocks
share out among themselves, and callers that are wrong about the longest sequence: results do not depend on it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyflash3 import flash_attn_func, flash_attn_varlen_func
from tests.gpu.machine import HOST, fill, get, int32, normal, same_bits, wait
from tests.gpu.problem import Lengths, Problem, check, make
from tests.gpu.test_few_keys import HEADS, OPTIONS

EDGES: Lengths = ((128, 128), (1, 128), (64, 64), (65, 64), (0, 9), (63, 65), (9, 0), (128, 1), (100, 77), (7, 7))
LONGEST: dict[str, Any] = {"max_seqlen_q": 128, "max_seqlen_k": 128}


def _random(count: int, most: int, seed: int) -> Lengths:
    rows = np.random.default_rng(seed).integers(0, most + 1, (count, 2))
    return tuple((int(q), int(k)) for q, k in rows)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("head_dim", [64, 96, 120, 128])
def test_right(head_dim: int, heads: tuple[int, int], options: dict[str, Any]) -> None:
    common: dict[str, Any] = {"nheads": heads[0], "nheads_k": heads[1], "head_dim": head_dim, "packed": True}
    dtype = "float16" if heads[0] % 2 else "bfloat16"
    check(Problem(dtype, EDGES * 3, seed=head_dim, **common, **options), **LONGEST)


@pytest.mark.parametrize("count", [1, 17, 150, 400])
@pytest.mark.parametrize("heads", [(1, 1), (12, 3), (32, 1)], ids=str)
def test_units_are_shared_out(heads: tuple[int, int], count: int) -> None:
    """Fewer KV heads than multiprocessors and more, so that their query heads are shared out, too."""
    if HOST and count > 17:
        pytest.skip("nothing is shared out on the host engine")
    common: dict[str, Any] = {"nheads": heads[0], "nheads_k": heads[1], "head_dim": 128, "packed": True}
    check(Problem("bfloat16", _random(count, 128, count), causal=True, seed=count, **common), **LONGEST)


def test_rows_in_use() -> None:
    """seqused_q and seqused_k shorter than the places of the sequences."""
    lengths = EDGES * 4
    used = tuple((q * 2 // 3, k // 2) for q, k in lengths)
    common: dict[str, Any] = {"nheads": 4, "nheads_k": 2, "head_dim": 128, "packed": True}
    check(Problem("bfloat16", lengths, used=used, causal=True, **common), **LONGEST)


@pytest.mark.parametrize("most", [130, 300, 700])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("heads", [(8, 2), (5, 5)], ids=str)
def test_whatever_the_caller_takes_for_the_longest(heads: tuple[int, int], options: dict[str, Any], most: int) -> None:
    lengths = _random(5 if HOST else 90, most, most)
    common: dict[str, Any] = {"nheads": heads[0], "nheads_k": heads[1], "head_dim": 128, "packed": True}
    inputs = make(Problem("bfloat16", lengths, seed=most, **common, **options))
    right = inputs.call(max_seqlen_q=most, max_seqlen_k=most)
    for claimed in (1, 64, 128):
        out, lse = inputs.call(max_seqlen_q=claimed, max_seqlen_k=claimed)
        wait()
        found, wanted = (get(x).astype(np.float32) for x in (out, right[0]))
        # A few roundings to bfloat16, of numbers below 4; one of those above.
        assert (np.abs(found - wanted) <= np.maximum(0.02, 2**-7 * np.abs(wanted))).all()
        seen = np.isfinite(get(right[1]))
        assert (np.isfinite(get(lse)) == seen).all()
        np.testing.assert_allclose(get(lse)[seen], get(right[1])[seen], rtol=1e-5, atol=1e-4)


def test_poison_stays_where_it_is() -> None:
    """NaN in one sequence, beside others in the same thread block and in the same boxes of the copy engine."""
    count = 10 if HOST else 300
    lengths = [int(n) for n in np.random.default_rng(5).integers(1, 129, count)]
    cu = np.concatenate([[0], np.cumsum(lengths)])
    q, k, v = (normal((int(cu[-1]), heads, 128), "bfloat16", heads) for heads in (4, 2, 2))
    options = LONGEST | {"causal": True}
    first = flash_attn_varlen_func(q, k, v, int32(cu), int32(cu), **options)
    begin, end = int(cu[4]), int(cu[5])
    fill(k[begin:end], np.nan)
    fill(v[begin:end], np.inf)
    for _ in range(3):
        again = flash_attn_varlen_func(q, k, v, int32(cu), int32(cu), **options)
        wait()
        assert same_bits(first[:begin], again[:begin])
        assert same_bits(first[end:], again[end:])
        assert bool(np.isnan(get(again[begin:end]).astype(np.float32)).all())


LONG_ONES: tuple[Lengths, ...] = (
    ((64, 700), (0, 1)),  # one tile: two of three warpgroups have none
    ((64, 100), (64, 150)),
    ((64, 100), (64, 100), (10, 300), (20, 20)) * 30,
    ((200, 1000), (5, 600), (0, 500), (130, 129)) * 20,
)


@pytest.mark.parametrize("lengths", LONG_ONES, ids=lambda lengths: f"{len(lengths)} from {lengths[0]} on")
@pytest.mark.parametrize("heads", [(1, 1), (4, 1), (3, 3)], ids=str)
@pytest.mark.parametrize("head_dim", [64, 96, 128])
def test_more_keys_than_fit(head_dim: int, heads: tuple[int, int], lengths: Lengths) -> None:
    common: dict[str, Any] = {"nheads": heads[0], "nheads_k": heads[1], "head_dim": head_dim, "packed": True}
    check(Problem("bfloat16", lengths, causal=len(lengths) > 1, seed=head_dim, **common), **LONGEST)


@pytest.mark.parametrize("window", [(0, 0), (4, 0), (8, 1)], ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_keys_that_a_window_hides(packed: bool, window: tuple[int, int]) -> None:
    """NaN and infinity in front of all windows, in a key block that is multiplied all the same."""
    q, k, v = (normal((64 if i == 0 else 128, 2, 128), "bfloat16", i) for i in range(3))
    options: dict[str, Any] = {"window_size": window}
    results = []
    for poison in (False, True):
        if poison:
            fill(k[: 64 - window[0]], np.nan)
            fill(v[: 64 - window[0]], np.inf)
        if packed:
            cu = [int32([0, x.shape[0]]) for x in (q, k)]
            results.append(flash_attn_varlen_func(q, k, v, cu[0], cu[1], 64, 128, **options))
        else:
            results.append(flash_attn_func(q[None], k[None], v[None], **options))
    wait()
    clean, poisoned = (get(out).astype(np.float32) for out in results)
    assert np.abs(clean - poisoned).max() < 0.02  # poisoned columns are computed again, in another order
