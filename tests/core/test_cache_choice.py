"""Which kernel computes a call with a cache: by the shapes of the call alone, and never one that does not take it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflash3._abi import Params
from tests.core.problems import ADDRESS, params
from tests.core.split_surface import pieces_of, takes_split_kernel
from tests.core.surface import cache_class, workspace_layout
from tests.core.tile_choice import tile_class, tile_configs


def paged(batch: int, seqlen_q: int, keys: int, **changes: float | None) -> Params:
    """A causal call on a cache in pages of 64 rows."""
    given_here: dict[str, float | None] = {
        "batch": batch, "seqlen_q": seqlen_q, "nheads": 32, "nheads_k": 8, "head_dim": 128,
        "head_dim_v": 128, "page_table": ADDRESS, "page_size": 64, "max_pages": -(-keys // 64), "num_pages": 1,
        "seqused_k": ADDRESS, "seqlen_k": 0, "window_right": 0,
    }  # fmt: skip
    return params(**(given_here | changes))


def chunk(**changes: float | None) -> Params:
    """512 queries a sequence on 16,384 keys before them."""
    return paged(4, 512, 16_896, **changes)


@pytest.mark.parametrize("head_dim", range(8, 257, 8))
@pytest.mark.parametrize("head_dim_v", [8, 72, 128, 256])
def test_the_classes_are_those_of_the_other_kernels(head_dim: int, head_dim_v: int) -> None:
    index = tile_class(head_dim, head_dim_v)
    assert index is not None
    assert cache_class(head_dim, head_dim_v) == tile_configs()[index].head_dim


def test_no_class_holds_more_than_256() -> None:
    assert cache_class(264, 8) is None


@pytest.mark.parametrize("num_splits", [0, 1])
@pytest.mark.parametrize("changes", [{}, {"head_dim": 64, "head_dim_v": 64}, {"head_dim": 256, "head_dim_v": 256}])
def test_many_queries_take_the_forward_kernel(num_splits: int, changes: dict[str, float | None]) -> None:
    assert not takes_split_kernel(chunk(num_splits=num_splits, **changes))


@pytest.mark.parametrize("num_splits", [2, 37])
def test_splits_that_are_asked_for_are_made(num_splits: int) -> None:
    assert takes_split_kernel(chunk(num_splits=num_splits))


@given(st.integers(1, 300), st.integers(1, 16), st.sampled_from([0, 1]), st.integers(1, 2**20))
def test_a_tile_of_packed_rows_is_split(batch: int, seqlen_q: int, num_splits: int, keys: int) -> None:
    """Decoding and speculative decoding: 64 rows at most."""
    assert takes_split_kernel(paged(batch, seqlen_q, keys, num_splits=num_splits))


def test_few_tiles_over_long_keys_are_cut() -> None:
    """One sequence of 512 queries under 8 heads: 32 tiles for 132 multiprocessors."""
    few = paged(1, 512, 100_000, nheads=8)
    assert not takes_split_kernel(few)
    assert pieces_of(few).pieces == 4
    assert pieces_of(paged(1, 512, 100_000)) == (False, 1, 1)


@pytest.mark.parametrize(("tiles", "pieces"), [(32, 4), (128, 1), (131, 1), (140, 3), (300, 1)])
def test_pieces_fill_the_last_round(tiles: int, pieces: int) -> None:
    """Keys long enough for any number of pieces; more than 4 a multiprocessor are not made."""
    p = paged(1, 128, 1_000_000, nheads=tiles, nheads_k=1)  # read once, whatever the rounds are
    assert pieces_of(p).pieces == pieces


def test_one_tile_over_long_keys_is_cut_for_all_multiprocessors() -> None:
    """Four queries under 32 heads that share their keys are 128 rows."""
    assert pieces_of(paged(1, 4, 131_072, nheads_k=1)) == (True, 128, 32)


@pytest.mark.parametrize("changes", [{"num_splits": 1}, {"softcap": 3.0}, {"alibi_slopes": ADDRESS}])
def test_what_is_not_cut(changes: dict[str, float | None]) -> None:
    assert pieces_of(paged(1, 512, 100_000, nheads=8, **changes)) == (False, 1, 1)


@pytest.mark.parametrize(
    ("rows", "nheads", "nheads_k", "pack"),
    [
        (64, 32, 8, 4),
        (17, 32, 4, 8),
        (128, 32, 8, 1),
        (100, 8, 8, 1),
        (33, 128, 2, 64),
        (64, 30, 10, 1),
        (120, 96, 1, 1),
    ],
)
def test_heads_share_tiles_where_one_leaves_rows_unused(rows: int, nheads: int, nheads_k: int, pack: int) -> None:
    p = paged(64, rows, 8192, nheads=nheads, nheads_k=nheads_k)
    assert not takes_split_kernel(p)
    assert pieces_of(p).pack == pack


def dense(batch: int, seqlen_q: int, keys: int, **changes: float | None) -> Params:
    """The same without pages, which is no cache to the library."""
    no_pages: dict[str, float | None] = {"page_table": None, "page_size": 0, "max_pages": 0, "num_pages": 0}
    return paged(batch, seqlen_q, keys, **(no_pages | {"seqlen_k": keys} | changes))


def test_dense_calls_are_cut_where_that_saves_half() -> None:
    assert pieces_of(dense(1, 512, 100_000, nheads=8)).pieces == 4
    assert pieces_of(dense(1, 200, 100_000, nheads=8)).used
    assert pieces_of(dense(1, 17, 4096)).used
    assert takes_split_kernel(dense(1, 17, 100_000, softcap=3.0))
    for whole in (
        dense(1, 512, 100_000), dense(1, 2048, 2048, nheads=8), dense(1, 4096, 4096, nheads=8), dense(1, 512, 1024),
        dense(1, 512, 100_000, nheads=8, num_splits=1),
        dense(4, 0, 100_000, cu_seqlens_q=ADDRESS, cu_seqlens_k=ADDRESS, total_q=600, total_k=400_000, nheads=8),
    ):  # fmt: skip
        assert not takes_split_kernel(whole)
        assert pieces_of(whole) == (False, 1, 1)


@pytest.mark.parametrize("keys", [256, 512, 2047])
def test_dense_calls_of_few_queries_share_tiles(keys: int) -> None:
    """Otherwise a tile of 128 rows has 4 of each head."""
    assert pieces_of(dense(256, 4, keys, nheads_k=1)) == (True, 1, 32)
    assert pieces_of(dense(64, 20, keys)) == (True, 1, 4)
    for whole in (dense(64, 20, 255), dense(64, 128, keys), dense(64, 20, keys, nheads=8)):
        assert pieces_of(whole) == (False, 1, 1)


@pytest.mark.parametrize(
    ("batch", "queries", "keys", "whole"),
    [(4, 16, 1024, True), (4, 4, 1024, True), (1, 16, 2048, False), (4, 2, 1024, False), (16, 16, 1024, False)],
)
def test_dense_calls_of_few_queries_and_few_tiles(batch: int, queries: int, keys: int, whole: bool) -> None:
    """Their heads are done in tiles of their own before pieces are merged; two queries are computed by warps."""
    p = dense(batch, queries, keys)
    assert takes_split_kernel(p) is not whole
    assert pieces_of(p) == (False, 1, 1)
    assert takes_split_kernel(paged(batch, queries, keys))


@pytest.mark.parametrize(
    ("batch", "queries", "keys", "nheads_k", "pieces"),
    [(64, 4, 2048, 1, 1), (16, 4, 4096, 1, 8), (8, 4, 2048, 1, 4), (8, 32, 4096, 8, 1), (64, 4, 8192, 1, 2)],
)
def test_pieces_are_worth_their_merging_as_measured(
    batch: int, queries: int, keys: int, nheads_k: int, pieces: int
) -> None:
    assert pieces_of(paged(batch, queries, keys, nheads_k=nheads_k)) == (True, pieces, 32 // nheads_k)


def test_no_queries_at_all() -> None:
    """An append alone."""
    assert takes_split_kernel(paged(4, 0, 1000))


@given(st.integers(0, 2**31 - 1), st.integers(0, 500_000))
def test_a_hint_of_keys_is_as_good_as_such_a_cache(longest_q: int, longest_k: int) -> None:
    """And one of queries does not matter where these are not packed."""
    hints: dict[str, float | None] = {"max_seqlen_q": longest_q, "max_seqlen_k": longest_k}
    for batch, seqlen_q, keys in [(4, 512, 16_896), (1, 17, 100_000), (64, 1, 8192)]:
        told = paged(batch, seqlen_q, keys, page_size=1, max_pages=keys, **hints)
        cache = min(longest_k, keys) if longest_k > 0 else keys
        like = paged(batch, seqlen_q, cache, page_size=1, max_pages=cache)
        assert takes_split_kernel(told) == takes_split_kernel(like)
        assert pieces_of(told) == pieces_of(like)


def test_packed_queries_count_by_their_mean() -> None:
    packed: dict[str, float | None] = {"cu_seqlens_q": ADDRESS}
    assert not takes_split_kernel(paged(4, 0, 16_896, total_q=2048, **packed))
    assert takes_split_kernel(paged(64, 0, 16_896, total_q=64, **packed))


def test_the_workspace_is_that_of_the_kernel() -> None:
    """Partial results take megabytes; of whole tiles there are none, and the forward kernel has its tile counter."""
    assert workspace_layout(chunk()).size == 256
    assert workspace_layout(paged(64, 64, 8192)).size == 256
    results = 512 * 8 * (128 + 1) * 4
    assert workspace_layout(paged(1, 512, 100_000, nheads=8)).size == 256 + 4 * results
    assert workspace_layout(paged(1, 5, 100_000)).size > 2**20
    rotated = workspace_layout(chunk(rotary_cos=ADDRESS, rotary_sin=ADDRESS, rotary_dim=128))
    assert rotated.size - rotated.rotated_q >= 4 * 512 * 32 * 128 * 2
