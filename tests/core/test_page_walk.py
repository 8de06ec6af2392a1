"""page_walk.h against division."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.surface import page_walk

BLOCKS = [80, 96, 128]  # of core::kCacheConfigs
ROWS = 2**31 - 1  # at most, of a sequence with its left padding
block_sizes = st.sampled_from(BLOCKS)
page_sizes = st.integers(1, 300) | st.integers(1, ROWS)


def check(block_n: int, page_size: int, first_row: int, first_key: int) -> None:
    blocks = min(first_key // block_n + 1, 50)
    keys = [first_key - block_n * i for i in range(blocks)]
    rows = [first_row + key for key in keys]
    # A key behind 2^31 wraps around, and is none.
    expected = [(key, row // page_size, row % page_size) for key, row in zip(keys, rows, strict=True) if row <= ROWS]
    assert [
        place
        for place, row in zip(page_walk(block_n, page_size, first_row, first_key, blocks), rows, strict=True)
        if row <= ROWS
    ] == expected


@given(block_sizes, page_sizes, st.integers(0, 1000), st.integers(0, 20_000))
def test_places(block_n: int, page_size: int, first_row: int, first_key: int) -> None:
    check(block_n, page_size, first_row, first_key)


@given(block_sizes, page_sizes, st.integers(0, 1000), st.integers(0, 127))
def test_places_of_the_longest_sequences(block_n: int, page_size: int, first_row: int, behind: int) -> None:
    """Their last block may end behind row 2^31, where divisors promise nothing."""
    last_key = ROWS - 1 - first_row
    check(block_n, page_size, first_row, last_key // block_n * block_n + behind % block_n)


@pytest.mark.parametrize("block_n", BLOCKS)
def test_in_front_of_the_first_block_there_is_no_key(block_n: int) -> None:
    _, (key, _, row) = page_walk(block_n, 7, 3, 5, 2)
    assert key < 0
    assert 0 <= row < 7
