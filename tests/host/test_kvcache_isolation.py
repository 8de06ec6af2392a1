"""What one sequence of a KV cache holds, right or wrong, and other threads do, never shows in another."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from tests.host.kvcache_cases import CacheCase, copied, equal


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_visible_nan_shows_in_its_sequence_alone(poison: float) -> None:
    case = CacheCase(4, 60, 8, "float16", new="equal", causal=True)
    clean, clean_lse = case.run(case.arguments())
    dirty = case.arguments()
    dirty["v"][1, 2] = poison
    out, lse = case.run(dirty)
    for b in (0, 2):
        equal(out[b], clean[b])
        equal(lse[b], clean_lse[b])
    equal(out[1, :2], clean[1, :2])
    assert not np.isfinite(out[1, 2:].astype(np.float32)).any()


WRONG: list[dict[str, Any]] = [
    {"page_table": 99}, {"page_table": -1}, {"page_table": -(2**31)}, {"cache_batch_idx": 50}, {"cache_batch_idx": -3},
    {"cache_seqlens": 10**9}, {"cache_seqlens": -5}, {"cache_leftpad": 10**9}, {"cache_leftpad": -7},
    {"cu_seqlens_k_new": 10**9}, {"rotary_seqlens": 2**31 - 1}, {"rotary_seqlens": -(2**31)},
]  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "page_size"), [(x, size) for size in (None, 8) for x in WRONG if size or "page_table" not in x], ids=str
)
def test_wrong_contents_hit_their_sequence_alone(wrong: dict[str, Any], page_size: int | None) -> None:
    """Caches in a frame: nothing is written outside of them, nor into the pages of the other sequences."""
    case = CacheCase(
        4, 40, page_size, "float32", new="ragged", batch_idx=True, leftpad=True, rotary_dim=32, rotary_seqlens=True,
        causal=True, seed=9,
    )  # fmt: skip
    ((name, value),) = wrong.items()
    clean, dirty = case.arguments(), case.arguments()
    assert (np.diff(clean["cu_seqlens_k_new"]) > 0).all(), "every sequence has something to write in the wrong place"
    if name == "page_table":
        dirty[name][dirty["cache_batch_idx"][1]] = value
    else:
        dirty[name][-1 if name == "cu_seqlens_k_new" else 1] = value
    frames = {}
    for cache in ("k_cache", "v_cache"):
        frames[cache] = np.full((dirty[cache].shape[0] + 4, *dirty[cache].shape[1:]), 5.0, np.float32)
        frames[cache][2:-2] = dirty[cache]
        dirty[cache] = frames[cache][2:-2]
    before = copied(dirty)
    want, _ = case.run(clean)
    got, _ = case.run(dirty)
    last = name == "cu_seqlens_k_new"  # whose last entry belongs to sequence 2
    for b in range(3):
        if b != (2 if last else 1):
            equal(got[b], want[b])
    for cache, frame in frames.items():
        assert (frame[:2] == 5.0).all()
        assert (frame[-2:] == 5.0).all()
        if name in ("page_table", "cache_batch_idx"):
            own = clean["cache_batch_idx"][[0, 2]]
            rows = own if page_size is None else np.unique(clean["page_table"][own])
            rows = rows[rows < len(dirty[cache])]
            others = np.setdiff1d(np.arange(len(dirty[cache])), rows)
            equal(dirty[cache][rows], clean[cache][rows])
            equal(dirty[cache][others], before[cache][others])


def test_callers_at_the_same_time() -> None:
    cases = [CacheCase(5, 90, 4, "float32", new="ragged", causal=True, seed=seed) for seed in range(8)]
    wrong: list[int] = []

    def work(case: CacheCase) -> None:
        want = case.run(case.arguments())[0]
        for _ in range(20):
            if not np.array_equal(case.run(case.arguments())[0], want):
                wrong.append(case.seed)

    threads = [threading.Thread(target=work, args=(case,)) for case in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
