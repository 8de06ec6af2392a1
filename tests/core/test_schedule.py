"""tile_scheduler.h: every tile exactly once, in the promised order, for right and for wrong length arrays."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.surface import (
    dense_tile,
    dense_tiles,
    find_sequence,
    section_widths,
    seq_span,
    tiles_of_pairs,
    varlen_tiles,
)

BLOCK_M = 128
small = st.integers(1, 9)


def sections_of_columns(num_columns: int, group: int, most: int) -> list[int]:
    """The section of each column."""
    widths = section_widths(num_columns, group, 1, most)
    return [section for section, width in enumerate(widths) for _ in range(width)]


def check_order(columns: Sequence[tuple[int, int]], section: Sequence[int]) -> None:
    """(m_block, column) in order: sections come one after the other, and inside one the m_blocks never grow, since
    under a causal mask the last ones are the longest.
    """
    for (m_block, column), (next_m_block, next_column) in itertools.pairwise(columns):
        assert section[next_column] >= section[column]
        if section[next_column] == section[column]:
            assert next_m_block <= m_block


@given(small, small, small, st.integers(1, 3), st.integers(1, 100))
def test_dense_every_tile_once(num_m_blocks: int, nheads_k: int, batch: int, group: int, most: int) -> None:
    nheads = nheads_k * group
    tiles = dense_tiles(num_m_blocks, nheads, batch, group, most)
    expected = itertools.product(range(num_m_blocks), range(nheads), range(batch))
    assert sorted(tiles) == sorted(expected)
    columns = [(m_block, b * nheads + h) for m_block, h, b in tiles]
    check_order(columns, sections_of_columns(nheads * batch, group, most))


@given(st.integers(1, 300))
def test_pairs_hold_every_tile_once_but_for_the_last_of_an_odd_number(num_m_blocks: int) -> None:
    tiles = [tile for pair in tiles_of_pairs(num_m_blocks) for tile in pair]
    assert tiles == [*range(num_m_blocks), *[num_m_blocks - 1] * (num_m_blocks % 2)]


def test_dense_nothing_to_do() -> None:
    assert dense_tiles(0, 8, 4, 1, 2) == []
    assert dense_tiles(4, 8, 0, 1, 2) == []


@given(st.integers(1, 2**20), st.integers(1, 2**20))
def test_dense_sections_past_32_bits(num_m_blocks: int, most: int) -> None:
    """num_m_blocks * columns may pass 2^31 where the number of tiles does not."""
    nheads = min(most, max(1, (2**31 - 1) // num_m_blocks))
    last = num_m_blocks * nheads - 1
    assert dense_tile(num_m_blocks, nheads, 1, 1, most, 0) == (num_m_blocks - 1, 0, 0)
    assert dense_tile(num_m_blocks, nheads, 1, 1, most, last)[0] == 0


lengths = st.lists(st.integers(0, 1000) | st.just(0), min_size=1, max_size=80)


def first_m_blocks(lens: Sequence[int]) -> list[int]:
    return [0, *itertools.accumulate(-(-length // BLOCK_M) for length in lens)]


@given(lengths, small, st.data())
def test_varlen_every_tile_once(lens: list[int], nheads: int, data: st.DataObject) -> None:
    most = [data.draw(st.integers(1, 12)) for _ in lens]
    tiles = varlen_tiles(first_m_blocks(lens), nheads, most)
    expected = [
        (m_block, head, b)
        for b, length in enumerate(lens)
        for head in range(nheads)
        for m_block in range(-(-length // BLOCK_M))
    ]
    assert sorted(tiles) == sorted(expected)
    for b, section_most in enumerate(most):
        columns = [(m_block, head) for m_block, head, entry in tiles if entry == b]
        check_order(columns, sections_of_columns(nheads, 1, section_most))


def test_varlen_r4() -> None:
    """The ragged causal batch that hung a relative of this library."""
    tiles = varlen_tiles(first_m_blocks([1743, 3302 - 1743]), 4, [4, 4])
    assert len(set(tiles)) == len(tiles) == 4 * (14 + 13)


@pytest.mark.parametrize("lens", [[0], [0, 0, 0], [0] * 100])
def test_varlen_no_rows(lens: list[int]) -> None:
    assert varlen_tiles(first_m_blocks(lens), 8, [8] * len(lens)) == []


@given(st.lists(st.integers(0, 3) | st.integers(0, 2000), min_size=1, max_size=3000), st.data())
def test_find_sequence_is_bisect(counts: list[int], data: st.DataObject) -> None:
    first = [0, *itertools.accumulate(counts)]
    if first[-1] == 0:
        return
    places = {0, first[-1] - 1, *(data.draw(st.integers(0, first[-1] - 1)) for _ in range(20))}
    for x in places:
        assert find_sequence(first, x) == bisect.bisect_right(first, x) - 1


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 34, 1023, 1024, 1025, 1056, 1057])
def test_find_sequence_around_powers_of_32(n: int) -> None:
    first = list(range(n + 1))
    assert [find_sequence(first, x) for x in range(n)] == list(range(n))


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=200), st.integers(-(2**31), 2**31 - 1))
def test_find_sequence_ends_on_any_array(first: list[int], x: int) -> None:
    """Not only sorted arrays: it returns, and with a number of a sequence."""
    assert 0 <= find_sequence([*first, 0], x) < len(first)


@given(st.lists(st.integers(-500, 1500), min_size=2, max_size=30), st.integers(0, 1000), small)
def test_wrong_cu_seqlens(cu_seqlens: list[int], rows: int, nheads: int) -> None:
    """Any cu_seqlens: the schedule ends, and all of its tiles begin at a row of the tensor."""
    batch = len(cu_seqlens) - 1
    spans = [seq_span(cu_seqlens, None, rows, b) for b in range(batch)]
    tiles = varlen_tiles(first_m_blocks([length for _, length in spans]), nheads, [1] * batch)
    assert len(set(tiles)) == len(tiles)
    for m_block, head, b in tiles:
        start, length = spans[b]
        assert 0 <= head < nheads
        assert 0 <= m_block * BLOCK_M < length
        assert start + length <= rows


@given(st.integers(1, 10_000), st.integers(1, 128), st.integers(0, 2**45), st.integers(1, 2**30))
def test_sections(groups: int, group: int, kv_bytes: int, budget: int) -> None:
    """Whole groups, within the budget unless one group exceeds it, as few sections as that takes, of about one size."""
    widths = section_widths(groups * group, group, kv_bytes, budget)
    assert sum(widths) == groups * group
    assert all(width % group == 0 for width in widths)
    fit = max(1, min(groups, budget // max(kv_bytes, 1)))
    assert max(widths) <= fit * group
    assert len(widths) == -(-groups // fit)
    assert max(widths) - min(widths) in (0, group)
