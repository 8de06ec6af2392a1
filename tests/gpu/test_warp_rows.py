"""Plain decoding with tiles of up to eight rows, which warps compute alone (core::computed_by_warps): each of the four
has a quarter of the keys of every block, and they add up in the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.gpu.kvcache_problem import call, check, check_same_bits, on_device, packed, want
from tests.gpu.machine import get, same_bits, wait
from tests.gpu.problem import judge
from tests.host.kvcache_cases import CacheCase

pytestmark = pytest.mark.usefixtures("cuda")  # the host engine has no warps

# Query heads, KV heads, queries.
ROWS = ((1, 1, 1), (8, 2, 1), (8, 1, 1), (4, 2, 3), (7, 1, 1), (4, 2, 4))


@pytest.mark.parametrize("page_size", [None, 1, 64, 256])
@pytest.mark.parametrize(
    ("head_dim", "head_dim_v"),
    [(128, 128), (64, 64), (96, 96), (192, 192), (256, 256), (40, 40), (72, 104), (192, 128), (64, 256), (256, 64)],
)
def test_every_head_dim(head_dim: int, head_dim_v: int, page_size: int | None) -> None:
    """Sequences that end in any quarter of a block, have one key, or none."""
    filled = (700, 1, 0, 16, 17, 64, 65, 129, 333, 48)
    nheads, nheads_k, seqlen_q = ROWS[(head_dim + head_dim_v // 8) % len(ROWS)]
    check(
        CacheCase(
            seqlen_q, 700, page_size, ("bfloat16", "float16")[head_dim_v // 8 % 2], batch=len(filled), nheads=nheads,
            nheads_k=nheads_k, head_dim=head_dim, head_dim_v=head_dim_v, filled=filled, sinks=head_dim_v % 64 != 0,
        )
    )  # fmt: skip


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("page_size", [None, 16, 64])
@pytest.mark.parametrize(("nheads", "nheads_k", "seqlen_q"), ROWS)
@pytest.mark.parametrize(("batch", "keys"), [(1, 130), (1, 9000), (3, 6000), (40, 1500), (140, 300)])
def test_tiles_that_are_cut_alike(
    batch: int, keys: int, nheads: int, nheads_k: int, seqlen_q: int, page_size: int | None, sinks: bool
) -> None:
    """Whose first blocks are guessed right, and partial results that are merged."""
    filled = tuple(keys - n % 3 for n in range(batch))
    check(
        CacheCase(
            seqlen_q, keys, page_size, "bfloat16", batch=batch, nheads=nheads, nheads_k=nheads_k, head_dim=128,
            filled=filled, sinks=sinks,
        )
    )  # fmt: skip


@pytest.mark.parametrize("page_size", [None, 1, 64])
@pytest.mark.parametrize("batch_idx", [False, True])
def test_lengths_that_differ_much(batch_idx: bool, page_size: int | None) -> None:
    """Whose first blocks are guessed wrong, also behind the end of a sequence; and new rows."""
    filled = (0, 3, 5000, 60, 1, 64, 2900, 0, 10, 4990)
    check(
        CacheCase(
            1, 5100, page_size, "float16", batch=len(filled), nheads=8, nheads_k=2, head_dim=128, filled=filled,
            batch_idx=batch_idx, new="equal", rotary_dim=64, causal=True,
        )
    )  # fmt: skip


def decoding(**options: Any) -> dict[str, Any]:
    """NumPy arguments of five sequences."""
    case = CacheCase(1, 900, None, "bfloat16", batch=5, nheads=8, nheads_k=2, head_dim=128, **options)
    return case.arguments()


@pytest.mark.parametrize("keys", [(0, 1), (15, 17), (300, 840), (899, 900)])
def test_scores_that_jump(keys: tuple[int, int]) -> None:
    """Far above everything before, of one warp's keys and of several ones'."""
    arguments = decoding(filled=(900,) * 5)
    for b in range(5):
        for head in range(2):
            row = arguments["q"][b, 0, 4 * head + b % 4].astype(np.float32)
            arguments["k_cache"][b, slice(*keys), head] = (3 * row).astype(arguments["q"].dtype)
    right = want(arguments)
    result = call(on_device(arguments))
    wait()
    judge(right.problem, *packed(*result), right.result)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_query_hits_its_row_alone(value: float) -> None:
    """And not the others of its tile, which are in the same products."""
    arguments = decoding(filled=(900, 1, 64, 500, 17))
    clean = call(on_device(arguments))
    arguments["q"][3, 0, 5, 77] = value
    out, lse = call(on_device(arguments))
    wait()
    assert np.isnan(get(out[3, 0, 5]).astype(np.float32)).all()
    keep = np.ones((5, 8), bool)
    keep[3, 5] = False
    assert same_bits(get(out)[:, 0][keep], get(clean[0])[:, 0][keep])
    assert same_bits(get(lse)[..., 0][keep], get(clean[1])[..., 0][keep])


@pytest.mark.parametrize("page_size", [None, 1, 64])
def test_every_run_gives_the_same_bits(page_size: int | None) -> None:
    case = CacheCase(1, 9000, page_size, "float16", batch=2, nheads=8, nheads_k=2, head_dim=128, filled=(9000, 8999))
    check_same_bits(case)
