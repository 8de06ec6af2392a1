"""Decoding in which the thread blocks of a cluster have the pieces of a tile, and merge them by themselves
(core::SplitSchedule::merged_by_clusters): few tiles of few keys, and so many tiles that there are two blocks for each.
"""

from __future__ import annotations

import numpy as np
import pytest

import pyflash3
from tests.gpu.kvcache_problem import call, check, check_same_bits, on_device
from tests.gpu.machine import get, wait
from tests.host.kvcache_cases import CacheCase

pytestmark = pytest.mark.usefixtures("cuda")  # the host engine has no thread blocks

# Query heads, KV heads, queries: up to 8 rows a tile, up to 32, and up to 64.
ROWS = ((4, 1, 1), (8, 2, 1), (8, 1, 1), (32, 1, 1), (12, 1, 2), (33, 1, 1), (64, 1, 1), (10, 1, 6))
DIMS = ((128, 128), (64, 64), (96, 96), (192, 192), (256, 256), (40, 40), (72, 104), (192, 128), (64, 256), (256, 64))


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_every_head_dim(dims: tuple[int, int], rows: tuple[int, int, int]) -> None:
    """Lengths that give one block more keys than another one, or none: four blocks to up to eight rows, or two."""
    filled = (300, 1, 0, 64, 65, 129, 257, 30)
    nheads, nheads_k, seqlen_q = rows
    index = DIMS.index(dims) + ROWS.index(rows)
    check(
        CacheCase(
            seqlen_q, 300, (None, 64, 16, 256)[index % 4], ("bfloat16", "float16")[index // 2 % 2], batch=len(filled),
            nheads=nheads, nheads_k=nheads_k, head_dim=dims[0], head_dim_v=dims[1], filled=filled,
            sinks=index % 3 == 0, causal=index % 5 == 0,
        )
    )  # fmt: skip


@pytest.mark.parametrize("page_size", [None, 1, 64])
@pytest.mark.parametrize("keys", [64, 700, 3000, 7000])
@pytest.mark.parametrize("batch", [1, 2, 3, 4])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 192, 256])
def test_few_sequences(head_dim: int, batch: int, keys: int, page_size: int | None) -> None:
    """In clusters of eight, four or two, or none."""
    filled = (keys, keys // 3, 0, keys - 65)[-batch:] if keys > 64 else (64, 1, 0, 63)[:batch]
    check(
        CacheCase(
            1, keys, page_size, ("bfloat16", "float16")[batch % 2], batch=batch, nheads=32, nheads_k=8,
            head_dim=head_dim, filled=filled, sinks=keys == 700,
        )
    )  # fmt: skip


@pytest.mark.parametrize("page_size", [None, 1, 64])
@pytest.mark.parametrize("keys", [700, 3000])
@pytest.mark.parametrize(("nheads", "nheads_k", "seqlen_q"), [(32, 1, 1), (9, 1, 1), (8, 2, 4), (16, 4, 8), (10, 5, 5)])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_few_sequences_of_many_rows(
    head_dim: int, nheads: int, nheads_k: int, seqlen_q: int, keys: int, page_size: int | None
) -> None:
    """Which a warpgroup computes."""
    check(
        CacheCase(
            seqlen_q, keys, page_size, "bfloat16", batch=4, nheads=nheads, nheads_k=nheads_k, head_dim=head_dim,
            filled=(keys, 70, seqlen_q, keys // 2), causal=(keys == 700) != (seqlen_q == 4), sinks=page_size == 64,
        )
    )  # fmt: skip


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("page_size", [None, 1, 64])
@pytest.mark.parametrize(("nheads", "nheads_k", "seqlen_q"), [(8, 1, 1), (16, 8, 1), (32, 1, 1), (8, 1, 4)])
def test_two_blocks_for_every_tile(
    nheads: int, nheads_k: int, seqlen_q: int, page_size: int | None, causal: bool
) -> None:
    """Of any length: here they have to be about equal."""
    batch = 64 // nheads_k
    filled = tuple(2500 - n % 5 for n in range(batch))
    check(
        CacheCase(
            seqlen_q, 2500, page_size, "bfloat16", batch=batch, nheads=nheads, nheads_k=nheads_k, head_dim=128,
            filled=filled, causal=causal,
        )
    )  # fmt: skip


@pytest.mark.parametrize("page_size", [None, 1, 64])
@pytest.mark.parametrize(("nheads", "nheads_k"), [(8, 2), (32, 1)])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_new_rows(head_dim: int, nheads: int, nheads_k: int, page_size: int | None) -> None:
    """Which the block writes that reads them as keys."""
    filled = (0, 1, 62, 63, 64, 127, 128, 200)
    check(
        CacheCase(
            1, 260, page_size, "float16", batch=len(filled), nheads=nheads, nheads_k=nheads_k, head_dim=head_dim,
            filled=filled, new="equal", rotary_dim=32, sinks=True,
        )
    )  # fmt: skip


@pytest.mark.parametrize(("nheads", "nheads_k"), [(8, 2), (32, 1)])
@pytest.mark.parametrize(("filled", "bad"), [((500, 400, 33), (0, 7)), ((129, 64, 500), (2, 70))])
def test_nan_stays_in_its_sequence_and_head(
    nheads: int, nheads_k: int, filled: tuple[int, ...], bad: tuple[int, int]
) -> None:
    """Whichever of the blocks has the key."""
    case = CacheCase(1, 500, None, "bfloat16", batch=3, nheads=nheads, nheads_k=nheads_k, head_dim=128, filled=filled)
    arguments = case.arguments()
    clean = [get(x).astype(np.float32) for x in call(on_device(arguments))]
    arguments["v_cache"][bad[0], bad[1], 0, 5] = np.nan
    found = [get(x).astype(np.float32) for x in call(on_device(arguments))]
    wait()
    hit = np.zeros(clean[0].shape, bool)
    hit[bad[0], :, : nheads // nheads_k, 5] = True
    assert np.isnan(found[0][hit]).all()
    assert (found[0][~hit] == clean[0][~hit]).all()
    assert (found[1] == clean[1]).all(), "a bad value is no matter to the log-sum-exp"


def test_splits_of_the_callers_say_the_same() -> None:
    case = CacheCase(1, 900, None, "bfloat16", batch=4, nheads=32, nheads_k=8, head_dim=128, filled=(900, 899, 5, 64))
    arguments = on_device(case.arguments())
    clusters, lone = (pyflash3.flash_attn_with_kvcache(**arguments, return_lse=True, num_splits=n) for n in (0, 1))
    wait()
    for x, y, most in zip(clusters, lone, (4e-3, 1e-5), strict=True):
        assert np.abs(get(x).astype(np.float32) - get(y).astype(np.float32)).max() < most


@pytest.mark.parametrize(("nheads_k", "batch"), [(1, 64), (1, 9), (8, 8), (8, 3), (8, 1)])
def test_every_run_gives_the_same_bits(nheads_k: int, batch: int) -> None:
    check_same_bits(
        CacheCase(1, 1100, None, "float16", batch=batch, nheads=32, nheads_k=nheads_k, head_dim=128,
                  filled=(1100,) * batch)
    )  # fmt: skip
