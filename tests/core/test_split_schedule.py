"""split_schedule.h: every key block of every tile exactly once, in pieces that the merging kernel finds."""

from __future__ import annotations

import ctypes
import itertools
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflash3._abi import BACKEND_CUDA, Params
from tests.core.problems import ADDRESS, cached, packed, params
from tests.core.split_surface import (
    Piece,
    appends_itself,
    is_plain_decoding,
    most_tiles,
    split_pieces,
    split_places,
    takes_split_kernel,
)
from tests.core.surface import MaskCase, int32_array, workspace_layout

BLOCK_M, BLOCK_N = 64, 64
lengths = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 700)), min_size=1, max_size=6)
# Query heads, KV heads, lines.
layouts = st.sampled_from([(4, 4, 4), (8, 4, 2), (8, 2, 1), (6, 1, 1), (6, 6, 3)])
Tiles = dict[tuple[int, int, int], tuple[int, int]]  # (batch, kv_head, m_block): first key block and behind the last
windows = st.sampled_from([(-1, -1), (-1, 0), (100, 0), (70, 30), (0, -1)])


def call(of: list[tuple[int, int]], heads: tuple[int, int], window: tuple[int, int], num_splits: int) -> Params:
    """A packed call, whose arrays live as long as it."""
    starts_q, starts_k = [0], [0]
    for q, k in of:
        starts_q.append(starts_q[-1] + q)
        starts_k.append(starts_k[-1] + k)
    arrays = int32_array(starts_q), int32_array(starts_k)
    p = packed(batch=len(of), nheads=heads[0], nheads_k=heads[1], num_splits=num_splits)
    p.total_q, p.total_k = starts_q[-1], starts_k[-1]
    p.window_left, p.window_right = window
    p.cu_seqlens_q, p.cu_seqlens_k = map(ctypes.addressof, arrays)
    p.arrays = arrays
    return p


def tiles_of(
    of: list[tuple[int, int]], heads: tuple[int, int], window: tuple[int, int], block_m: int = BLOCK_M
) -> Tiles:
    """The key blocks of each tile, and only of those, by brute force over rows."""
    group = heads[0] // heads[1]
    tiles = {}
    for b, (q, k) in enumerate(of):
        for m in range(-(-q * group // block_m)):
            rows = range(m * block_m, min((m + 1) * block_m, q * group))
            begin, end, *_ = MaskCase(*window, q, k).block_range(rows[0] // group, rows[-1] // group + 1, BLOCK_N)
            tiles.update({(b, h, m): (begin, end) for h in range(heads[1])})
    return tiles


def check(pieces: list[Piece], of: list[tuple[int, int]], group: int, tiles: Tiles, block_m: int = BLOCK_M) -> None:
    by_tile: dict[tuple[int, int, int], list[Piece]] = defaultdict(list)
    for x in pieces:
        by_tile[x.batch, x.kv_head, x.m_block].append(x)
    assert by_tile.keys() == tiles.keys()
    merged = {}
    for x in pieces:
        if x.entry.rows:
            tile = x.batch, x.kv_head, x.m_block
            assert tile not in merged, "merged once"
            merged[tile] = x.entry
    for tile, (begin, end) in tiles.items():
        own = by_tile[tile]
        assert sorted(n for x in own for n in x.blocks) == list(range(begin, end)), "every block once"
        if all(x.n_step == 1 for x in own):
            assert own[0].n_begin == begin
            assert own[-1].n_end == end
            for x, y in itertools.pairwise(own):
                assert x.n_end == y.n_begin
        assert own[0].whole == (len(own) == 1)
        assert (tile in merged) == (len(own) > 1)
        if tile in merged:
            e = merged[tile]
            assert [x.number for x in own] == [e.first_piece] + [e.next_piece + i * e.step for i in range(e.pieces - 1)]
            rows = of[tile[0]][0] * group
            assert e.rows == min(block_m, rows - tile[2] * block_m)


@given(lengths, layouts, windows, st.integers(1, 40))
def test_balanced(
    of: list[tuple[int, int]], layout: tuple[int, int, int], window: tuple[int, int], parts_of_line: int
) -> None:
    heads, lines = layout[:2], layout[2]
    num_parts = parts_of_line * lines
    p = call(of, heads, window, 0)
    tiles = tiles_of(of, heads, window)
    total, pieces = split_pieces(p, BLOCK_N, lines, num_parts)
    check(pieces, of, heads[0] // heads[1], tiles)
    numbers = [x.number for x in pieces if not x.whole]
    assert len(set(numbers)) == len(numbers), "partial results have places of their own"
    assert total * lines == sum(1 + end - begin for begin, end in tiles.values())
    costs: dict[int, int] = defaultdict(int)
    for x in pieces:
        costs[x.part] += len(x.blocks)
        assert 0 <= x.number < 2 * num_parts
    assert not costs or max(costs.values()) <= -(-total // min(parts_of_line, -(-total // 2))), "no part is longer"
    entries = [x.part for x in pieces if x.entry.rows]
    assert len(entries) == len(set(entries)), "one entry a part"


@given(lengths, layouts, windows, st.integers(1, 40), st.sampled_from([1, 2, 3, 37]))
def test_fixed(
    of: list[tuple[int, int]],
    layout: tuple[int, int, int],
    window: tuple[int, int],
    parts_of_line: int,
    num_splits: int,
) -> None:
    heads, lines = layout[:2], layout[2]
    num_parts = parts_of_line * lines
    p = call(of, heads, window, num_splits)
    tiles = tiles_of(of, heads, window)
    total, pieces = split_pieces(p, BLOCK_N, lines, num_parts)
    check(pieces, of, heads[0] // heads[1], tiles)
    assert total * lines == num_splits * len(tiles)
    for tile, (begin, end) in tiles.items():
        sizes = [len(x.blocks) for x in pieces if (x.batch, x.kv_head, x.m_block) == tile]
        cuts = [(end - begin) * i // num_splits for i in range(num_splits + 1)]
        assert sizes == [y - x for x, y in itertools.pairwise(cuts)], "as many as asked for, whatever the parts"


def latent(of: list[tuple[int, int]], nheads: int, window: tuple[int, int], num_splits: int) -> Params:
    p = call(of, (nheads, 1), window, num_splits)
    p.head_dim, p.head_dim_v = 576, 512
    return p


@given(lengths, st.sampled_from([1, 16, 24, 64, 128]), windows, st.integers(1, 40), st.sampled_from([0, 1, 3]))
def test_latent_attention(
    of: list[tuple[int, int]], nheads: int, window: tuple[int, int], num_parts: int, num_splits: int
) -> None:
    """Tiles of 128 rows, for two thread blocks, where a sequence has more than 64 in the mean."""
    mean = -(-sum(q for q, _ in of) // len(of))
    block_m = 2 * BLOCK_M if mean * nheads > BLOCK_M else BLOCK_M
    p = latent(of, nheads, window, num_splits)
    tiles = tiles_of(of, (nheads, 1), window, block_m)
    _, pieces = split_pieces(p, BLOCK_N, 1, num_parts)
    check(pieces, of, nheads, tiles, block_m)
    assert takes_split_kernel(p)
    assert len(tiles) <= most_tiles(p)


@pytest.mark.parametrize(("nheads", "rows"), [(16, 16), (64, 64), (128, 128)])
def test_workspace_of_latent_attention(nheads: int, rows: int) -> None:
    """Partial results of two pieces for each part that the largest GPU has, by two thread blocks or one."""
    p = params(batch=128, seqlen_q=1, seqlen_k=4096, nheads=nheads, nheads_k=1, num_splits=0)
    p.head_dim, p.head_dim_v = 576, 512
    parts = 144 if rows <= BLOCK_M else 72
    layout = workspace_layout(p)
    assert layout.rotated_q - layout.out_partial == 2 * parts * rows * 512 * 4


def test_splits_do_not_depend_on_the_parts() -> None:
    p = call([(5, 700), (0, 3), (130, 20)], (4, 2), (-1, 0), 3)
    _, few = split_pieces(p, BLOCK_N, 2, 2)
    _, many = split_pieces(p, BLOCK_N, 2, 100)
    assert sorted(x._replace(part=0) for x in few) == sorted(x._replace(part=0) for x in many)


@pytest.mark.parametrize(
    ("p", "takes"),
    [
        (params(seqlen_q=1, seqlen_k=4096), True),
        (params(seqlen_q=1, seqlen_k=4096, num_splits=1), False),
        (params(seqlen_q=1, seqlen_k=100), False),
        (params(seqlen_q=512, seqlen_k=4096), False),
        (params(seqlen_q=512, seqlen_k=4096, num_splits=2), True),
    ],
)
def test_calls_of_the_split_kernel(p: Params, takes: bool) -> None:
    assert takes_split_kernel(p) == takes


@given(
    st.integers(1, 16),
    st.lists(st.integers(0, 900), min_size=1, max_size=6),
    st.integers(1, 40),
    st.sampled_from([0, 3]),
)
def test_one_tile_is_a_case_of_several(
    seqlen_q: int, lengths_k: list[int], parts_of_line: int, num_splits: int
) -> None:
    """What is known of dense calls with few queries changes nothing: they are cut like packed ones."""
    used = int32_array(lengths_k)
    dense = params(
        batch=len(lengths_k), nheads=4, nheads_k=2, seqlen_q=seqlen_q, seqlen_k=900, num_splits=num_splits,
        seqused_k=ctypes.addressof(used),
    )  # fmt: skip
    of = [(seqlen_q, n) for n in lengths_k]
    same = split_pieces(call(of, (4, 2), (-1, -1), num_splits), BLOCK_N, 2, 2 * parts_of_line)
    assert split_pieces(dense, BLOCK_N, 2, 2 * parts_of_line) == same


@pytest.mark.parametrize(
    ("changes", "plain"),
    [
        ({}, True),
        ({"seqlen_q": 16}, True),
        ({"seqlen_q": 17}, False),  # 68 rows a KV head
        ({"window_right": 0}, True),
        ({"window_right": 0, "seqlen_q": 2}, True),
        ({"window_left": 50}, False),
        ({"num_splits": 2}, False),
        ({"seqused_k": ADDRESS, "cache_batch_idx": ADDRESS}, True),
        ({"seqused_q": ADDRESS}, False),
        ({"cache_leftpad": ADDRESS}, False),
        ({"cu_seqlens_q": ADDRESS}, False),
        ({"cu_seqlens_k": ADDRESS}, False),
        ({"cu_seqlens_k_new": ADDRESS}, False),
        ({"softcap": 3.0}, False),
        ({"alibi_slopes": ADDRESS}, False),
        ({"softmax_scale": -1.0}, False),
        ({"sinks": ADDRESS}, True),
    ],
    ids=str,
)
def test_plain_decoding(changes: dict[str, float], plain: bool) -> None:
    assert is_plain_decoding(params(**({"seqlen_q": 1, "seqlen_k": 4096} | changes))) == plain


@pytest.mark.parametrize(
    ("changes", "itself"),
    [
        ({}, True),
        ({"rotary_cos": None, "rotary_sin": None}, True),
        ({"page_table": None, "seqlen_k": 300}, True),
        ({"window_right": 0}, True),
        ({"nheads_k": 1}, True),
        ({"nheads": 18}, True),  # more rows than warps compute alone
        ({"nheads": 160}, False),  # and than a tile has
        ({"k_new": None, "v_new": None}, False),
        ({"seqlen_k_new": 2}, False),
        ({"seqlen_q": 2}, False),
        ({"cu_seqlens_k_new": ADDRESS}, False),
        ({"cache_leftpad": ADDRESS}, False),
        ({"num_splits": 1}, False),
        ({"softcap": 30.0}, False),
        ({"head_dim": 576, "head_dim_v": 512, "nheads_k": 1}, False),
    ],
    ids=str,
)
def test_decoding_steps_that_append_themselves(changes: dict[str, float], itself: bool) -> None:
    step: dict[str, float] = {"backend": BACKEND_CUDA, "seqlen_q": 1, "seqlen_k_new": 1}
    assert appends_itself(cached(**(step | changes))) == itself


def test_workspace_of_splits() -> None:
    p = params(batch=2, seqlen_q=3, seqlen_k=4096, nheads=8, nheads_k=2, head_dim_v=64, num_splits=5)
    layout = workspace_layout(p)
    rows = 5 * 2 * 3 * 8
    assert layout.lse_partial == layout.entries, "the lengths say what is to be merged"
    assert layout.out_partial - layout.lse_partial >= 4 * rows
    assert layout.rotated_q - layout.out_partial >= 4 * rows * 64
    assert layout.size <= 4 * rows * 65 + 32 * 4 + 4 * 256


def test_workspace_of_a_balanced_schedule_does_not_grow_with_the_keys() -> None:
    sizes = {workspace_layout(params(seqlen_q=1, seqlen_k=n, num_splits=0)).size for n in (1024, 2**20)}
    assert len(sizes) == 1


@pytest.mark.parametrize(("group", "places"), [(2, 2**29), (4, 2**30), (16, 2**30)])
def test_the_line_of_overlapping_sequences_has_an_end(group: int, places: int) -> None:
    """Every other one of 4096 sequences claims all rows, 2^17 * group places."""
    batch, rows = 4096, 2**15
    p = packed(batch=batch, nheads=group, nheads_k=1, num_splits=256)
    arrays = int32_array([0, rows] * (batch // 2) + [0]), int32_array([0] * (batch + 1))
    p.cu_seqlens_q, p.cu_seqlens_k = map(ctypes.addressof, arrays)
    p.total_q, p.total_k = rows, 1
    assert split_places(p, BLOCK_N, 1) == places


@pytest.mark.parametrize("starts", [[0, 50, 0, 50, 0, 50], [50, 0, 50, 50, 0, 50], [-7, 10**9, 3, 50, 20, 60]])
def test_the_bound_of_tiles_holds_for_wrong_lengths(starts: list[int]) -> None:
    """Sequences that overlap have more tiles than rows; the places on a line still fit what they were sized for."""
    p = packed(batch=5, nheads=6, nheads_k=2, num_splits=1)
    arrays = int32_array(starts), int32_array([0, 1, 2, 3, 4, 5])
    p.cu_seqlens_q, p.cu_seqlens_k = map(ctypes.addressof, arrays)
    p.total_q, p.total_k = 50, 5
    tiles, _ = split_pieces(p, BLOCK_N, 1, 7)
    assert tiles <= most_tiles(p)
    assert most_tiles(p) == 5 * 2 * 3  # 50 rows of a group of 3
