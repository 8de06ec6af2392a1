"""Plain decoding, whose tiles are all cut alike where their lengths are about equal: split_schedule.h."""

from __future__ import annotations

import ctypes
from collections import defaultdict
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflash3._abi import Params
from tests.core.problems import params
from tests.core.split_surface import (
    Piece,
    first_even_block,
    is_plain_decoding,
    plain_pieces,
    split_pieces,
    suits_clusters,
)
from tests.core.surface import int32_array
from tests.core.test_split_schedule import BLOCK_M, BLOCK_N, Tiles, check, layouts, tiles_of


def decoding(lengths_k: list[int], heads: tuple[int, int], seqlen_q: int = 1, window_right: int = -1) -> Params:
    """A call of plain decoding, whose lengths live as long as it."""
    used = int32_array(lengths_k)
    p = params(
        batch=len(lengths_k), nheads=heads[0], nheads_k=heads[1], seqlen_q=seqlen_q, seqlen_k=10_000, num_splits=0,
        window_right=window_right, seqused_k=ctypes.addressof(used),
    )  # fmt: skip
    p.arrays = used
    return p


class Call(NamedTuple):
    """One of plain decoding, and what its lines are shared out to."""

    p: Params
    of: list[tuple[int, int]]  # lengths
    heads: tuple[int, int]
    lines: int
    parts_of_line: int

    @property
    def num_parts(self) -> int:
        return self.parts_of_line * self.lines

    @property
    def tiles(self) -> Tiles:
        return tiles_of(self.of, self.heads, (-1, self.p.window_right))


@st.composite
def calls(draw: st.DrawFn, parts_of_line: st.SearchStrategy[int]) -> Call:
    """Those of lengths that are about equal, with a few queries each."""
    more = draw(st.lists(st.integers(0, 20), min_size=1, max_size=40))
    least = draw(st.sampled_from([0, 1, 64, 500, 2000, 9900]))
    nheads, nheads_k, lines = draw(layouts)
    lengths_k = [least + n for n in more]
    heads = nheads, nheads_k
    seqlen_q = draw(st.integers(1, BLOCK_M // (nheads // nheads_k)))
    p = decoding(lengths_k, heads, seqlen_q, draw(st.sampled_from([-1, 0, 5, 200])))
    return Call(p, [(seqlen_q, n) for n in lengths_k], heads, lines, draw(parts_of_line))


def checked_pieces(call: Call, blocks_per_sm: int) -> tuple[int, list[Piece]]:
    """plain_pieces(), in which every key block is there once and partial results have places of their own."""
    cuts, pieces = plain_pieces(call.p, BLOCK_N, call.lines, call.num_parts, blocks_per_sm)
    check(pieces, call.of, call.heads[0] // call.heads[1], call.tiles)
    numbers = [x.number for x in pieces if not x.whole]
    assert len(set(numbers)) == len(numbers), "partial results have places of their own"
    assert all(0 <= n < 2 * call.num_parts for n in numbers)
    assert len({x.part for x in pieces if x.entry.rows}) == sum(x.entry.rows > 0 for x in pieces), "one entry a part"
    return cuts, pieces


@given(calls(st.integers(1, 40)))
def test_tiles_that_are_cut_alike(call: Call) -> None:
    """Where the lengths are about equal; every key block once, as elsewhere, and no part much longer than the mean."""
    assert is_plain_decoding(call.p)
    cuts, pieces = checked_pieces(call, 1)
    total, balanced = split_pieces(call.p, BLOCK_N, call.lines, call.num_parts)
    if cuts == 0:
        assert pieces == balanced
        return
    assert len(pieces) == cuts * len(call.tiles)
    assert all(x.n_step == cuts for x in pieces), "side by side"
    costs: dict[int, int] = defaultdict(int)
    for x in pieces:
        costs[x.part] += 1 + len(x.blocks)
    mean = total / call.parts_of_line
    assert max(costs.values()) <= mean + min(2.5, mean / 16)


@given(calls(st.integers(1, 40)))
def test_the_first_block_of_tiles_cut_alike_takes_no_lengths(call: Call) -> None:
    """It is what is fetched ahead: inside the call whatever the lengths are, and right where tiles are cut alike."""
    p = decoding([0] * len(call.of), call.heads, call.of[0][0])
    ahead = {part: first_even_block(p, BLOCK_N, call.lines, call.num_parts, part) for part in range(call.num_parts)}
    assert all(b < len(call.of) and head < call.heads[1] for b, head, _ in filter(None, ahead.values()))
    cuts, pieces = plain_pieces(call.p, BLOCK_N, call.lines, call.num_parts)
    if cuts > 0:
        first = {x.part: (x.batch, x.kv_head, x.n_begin) for x in reversed(pieces)}
        assert {part: block for part, block in ahead.items() if block is not None} == first


@pytest.mark.parametrize(
    ("batch", "keys", "nheads_k", "cuts"),
    [
        (256, 512, 1, 1),  # whole tiles
        (256, 512, 8, 1),
        (128, 2048, 1, 2),
        (64, 8192, 1, 4),
        (64, 8192, 8, 0),  # parts of two tiles would be 8 blocks longer than the mean
        (8, 32_768, 8, 0),
        (300, 512, 1, 0),
    ],
)
def test_cuts_of_equal_lengths(batch: int, keys: int, nheads_k: int, cuts: int) -> None:
    """On 132 multiprocessors."""
    p = params(batch=batch, nheads=32, nheads_k=nheads_k, seqlen_q=1, seqlen_k=keys, num_splits=0)
    assert plain_pieces(p, BLOCK_N, nheads_k, 264)[0] == cuts


@given(calls(st.integers(2, 60)))
def test_one_thread_block_a_multiprocessor(call: Call) -> None:
    """Whatever is chosen, every key block is computed once, and partial results have places of their own."""
    cuts, pieces = checked_pieces(call, 2)
    if (cuts, pieces) == plain_pieces(call.p, BLOCK_N, call.lines, call.num_parts):
        return
    assert len({x.part for x in pieces}) <= call.num_parts // 2
    assert cuts in (0, 1)
    if cuts == 1:
        assert all(x.whole for x in pieces)


@pytest.mark.parametrize(
    ("batch", "keys", "heads", "cuts", "parts"),
    [
        (128, 2048, (32, 1), 1, 128),  # a tile for nearly each multiprocessor
        (128, 8192, (32, 1), 2, 256),  # too long for one thread block
        (128, 4096, (8, 1), 2, 256),  # the same: with few rows there is little to merge
        (16, 2048, (32, 8), 1, 128),
        (120, 2048, (32, 1), 0, 264),  # twelve multiprocessors would have nothing to do
        (1, 131_072, (32, 1), 0, 132),  # one tile, for half as many pieces to merge
        (1, 1_000_000, (32, 1), 264, 264),
        (1, 131_072, (32, 8), 33, 264),
        (1, 8192, (32, 8), 0, 128),
        (64, 8192, (32, 8), 0, 264),
    ],
)
def test_how_many_thread_blocks_have_work(batch: int, keys: int, heads: tuple[int, int], cuts: int, parts: int) -> None:
    """On 132 multiprocessors."""
    p = params(batch=batch, nheads=heads[0], nheads_k=heads[1], seqlen_q=1, seqlen_k=keys, num_splits=0)
    found, pieces = plain_pieces(p, BLOCK_N, heads[1], 264, blocks_per_sm=2)
    assert (found, len({x.part for x in pieces})) == (cuts, parts)


def test_unequal_lengths_have_all_thread_blocks() -> None:
    lengths = [1000 + 20 * i for i in range(128)]
    assert plain_pieces(decoding(lengths, (32, 1)), BLOCK_N, 1, 264, 2) == plain_pieces(
        decoding(lengths, (32, 1)), BLOCK_N, 1, 264
    )


def test_one_long_sequence_is_not_cut_like_the_others() -> None:
    p = decoding([9000] + 255 * [512], (32, 1))
    cuts, pieces = plain_pieces(p, BLOCK_N, 1, 264)
    assert cuts == 0
    assert max(len(x.blocks) for x in pieces) < 20


def check_clusters(call: Call, pieces: list[Piece], blocks: int) -> None:
    """The thread blocks of a cluster, side by side, have the pieces of a tile, and nothing else."""
    assert all(x.entry.rows == 0 and not x.whole for x in pieces), "nothing is left to the merging kernel"
    assert len({x.part for x in pieces}) == len(pieces)
    clusters = defaultdict(list)
    for x in pieces:
        part, line = divmod(x.part, call.lines)
        clusters[part // blocks, line].append(x)
    assert {(x.batch, x.kv_head, x.m_block) for x in pieces} == call.tiles.keys()
    assert len(clusters) == len(call.tiles)
    for own in clusters.values():
        assert [x.part // call.lines % blocks for x in own] == list(range(blocks))
        (tile,) = {(x.batch, x.kv_head, x.m_block) for x in own}
        assert sorted(n for x in own for n in x.blocks) == list(range(*call.tiles[tile])), "every block once"


@given(calls(st.integers(1, 60)))
def test_thread_blocks_that_merge_two_by_two(call: Call) -> None:
    """Where tiles are cut in two; otherwise all is as without them."""
    cuts, pieces = plain_pieces(call.p, BLOCK_N, call.lines, call.num_parts, cluster=2)
    without = checked_pieces(call, 1)
    if cuts != 2 or call.parts_of_line % 2:
        assert (cuts, pieces) == without
        return
    check_clusters(call, pieces, 2)


@pytest.mark.parametrize("blocks", [4, 8])
@given(calls(st.integers(1, 60)))
def test_clusters_with_a_tile_each(blocks: int, call: Call) -> None:
    """Whatever the lengths are."""
    cuts, pieces = plain_pieces(call.p, BLOCK_N, call.lines, call.num_parts, cluster=blocks)
    assert cuts == blocks
    check_clusters(call, pieces, blocks)


@pytest.mark.parametrize(
    ("batch", "keys", "heads", "suited"),
    [
        (1, 512, (32, 8), [4]),  # eight thread blocks would have a key block each
        (1, 1024, (32, 8), [8, 4]),
        (1, 4096, (32, 8), [8, 4]),
        (1, 12_000, (32, 8), [8]),
        (1, 13_000, (32, 8), []),  # all multiprocessors and merging take less time
        (2, 3000, (32, 8), [8, 4]),
        (3, 8000, (32, 8), [4]),
        (5, 512, (32, 8), []),  # more tiles than clusters of four
        (8, 4096, (32, 1), [8]),
        (8, 4096, (33, 1), []),  # tiles of more than 32 rows
        (3, 1024, (32, 1), []),  # so few tiles
        (16, 2048, (8, 1), [8, 4]),
    ],
)
def test_which_calls_suit_clusters(batch: int, keys: int, heads: tuple[int, int], suited: list[int]) -> None:
    """On 132 multiprocessors, with key blocks of 64."""
    p = params(
        batch=batch, nheads=heads[0], nheads_k=heads[1], seqlen_q=1, seqlen_k=keys, num_splits=0, head_dim=128,
        head_dim_v=128,
    )  # fmt: skip
    assert [n for n in (8, 4) if suits_clusters(p, 64, heads[1], n, 132)] == suited


@pytest.mark.parametrize(
    ("batch", "keys", "heads", "cuts"),
    [
        (64, 8192, (32, 1), 2),
        (8, 32_768, (32, 8), 2),
        (67, 8192, (32, 1), 0),  # there is no second thread block for every tile
        (4, 1024, (32, 8), 2),  # each tile could have four, but merging would take longer
        (4, 8192, (32, 8), 4),
        (1, 1024, (32, 8), 2),
        (1, 2048, (32, 8), 0),
        (40, 100_000, (32, 1), 2),  # two thread blocks each are all that the memory takes
        (32, 2048, (32, 1), 2),
        (32, 8192, (32, 1), 4),
        (1, 131_072, (32, 8), 16),
    ],
)
def test_which_tiles_are_cut_in_two(batch: int, keys: int, heads: tuple[int, int], cuts: int) -> None:
    """On 132 multiprocessors, one thread block on each, with key blocks of 64."""
    p = params(
        batch=batch, nheads=heads[0], nheads_k=heads[1], seqlen_q=1, seqlen_k=keys, num_splits=0, head_dim=128,
        head_dim_v=128,
    )  # fmt: skip
    assert plain_pieces(p, 64, heads[1], 132, cluster=2)[0] == cuts
