"""Latent caches (MLA): scores that jump, rows that fill no warp, and sequences that need no merging."""

from __future__ import annotations

import numpy as np
import pytest

from tests.gpu.kvcache_problem import call, check, on_device, packed, want
from tests.gpu.machine import HOST, put, wait
from tests.gpu.problem import judge
from tests.gpu.repeats import other_work, same_every_time
from tests.gpu.test_jumps import heights
from tests.gpu.test_mla import CAPACITY, mla
from tests.host.kvcache_cases import CacheCase


def test_as_many_sequences_as_the_multiprocessors_share_evenly() -> None:
    """Every thread block gets whole tiles then, and there is nothing to merge; lengths differ by less than a block."""
    batch = 4 if HOST else 132
    filled = tuple(CAPACITY - i % 9 for i in range(batch))
    for seqlen_q, page_size in ((1, None), (1, 64), (2, 64)):
        check(mla(seqlen_q, page_size, 128, batch=batch, filled=filled, causal=True))


@pytest.mark.parametrize("nats", [12.0, 40.0, 300.0])
@pytest.mark.parametrize("pattern", ["first_key", "some_keys", "growing"])
@pytest.mark.parametrize(("nheads", "seqlen_q"), [(16, 1), (128, 2)])
def test_scores_that_jump(nheads: int, seqlen_q: int, pattern: str, nats: float) -> None:
    """As in test_jumps; the column that draws them is none of the values."""
    arguments = mla(seqlen_q, None, nheads, causal=True, filled=(), full=True).arguments()
    arguments["q"][..., -1] = 1
    for b, length in enumerate(arguments["cache_seqlens"].tolist()):
        rows = heights(pattern, length, nats)[:, None] * 576**0.5
        arguments["k_cache"][b, :length, :, -1] = rows.astype(arguments["k_cache"].dtype)
    right = want(arguments)
    for num_splits in (0, 1, 3):
        result = call(on_device(arguments), num_splits=num_splits)
        wait()
        judge(right.problem, *packed(*result), right.result)


@pytest.mark.parametrize(("nheads", "seqlen_q"), [(8, 1), (8, 3), (24, 1), (72, 1)])
def test_rows_that_fill_no_warp_give_the_same_bits_whatever_ran_before(nheads: int, seqlen_q: int) -> None:
    """The rest of a warp's rows must be nobody's: many keys, since only later blocks leave their references alone."""
    case = CacheCase(
        seqlen_q, 150 if HOST else 3000, 64, "bfloat16", batch=3, nheads=nheads, nheads_k=1, head_dim=576,
        head_dim_v=512, latent=True, full=True, causal=True,
    )  # fmt: skip
    device = on_device(case.arguments())
    large = on_device(mla(4, None, 128, filled=(), full=True).arguments())
    large["q"] = large["q"] * put(np.asarray(100, large["q"].dtype))
    noise = other_work()

    def before(i: int) -> None:
        if i % 3 == 0:
            noise()
        if i % 3 == 1:
            call(large)  # leaves large scores' queries in shared memory

    same_every_time(lambda: call(device), 2 if HOST else 40, before)
