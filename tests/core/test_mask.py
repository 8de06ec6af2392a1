"""mask.h against the definition, pair by pair, and at the ends of the number range."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.surface import MaskCase

MAX_ROWS = 2**31 - 1

lengths = st.integers(0, 40)
sides = st.one_of(st.just(-1), st.integers(0, 50), st.integers(2**31 - 2, 2**63 - 1))


@given(sides, sides, lengths, lengths)
def test_keys_of_every_row(left: int, right: int, seqlen_q: int, seqlen_k: int) -> None:
    case = MaskCase(left, right, seqlen_q, seqlen_k)
    for i, (begin, end) in enumerate(case.keys()):
        seen = [j for j in range(seqlen_k) if case.sees(i, j)]
        assert list(range(begin, end)) == seen
        assert 0 <= begin <= seqlen_k
        assert 0 <= end <= seqlen_k


@given(sides, sides, lengths, lengths, st.integers(0, 60), st.integers(0, 60))
def test_visible(left: int, right: int, seqlen_q: int, seqlen_k: int, i: int, j: int) -> None:
    case = MaskCase(left, right, seqlen_q, seqlen_k)
    assert case.visible(i, j) == case.sees(i, j)


big_lengths = st.integers(MAX_ROWS - 3, MAX_ROWS) | st.integers(1, 5) | st.integers(2**30 - 2, 2**30 + 2)
big_sides = st.one_of(
    st.integers(-1, 3),
    st.integers(2**31 - 4, 2**31 + 4),
    st.integers(2**32 - 4, 2**32 + 4),
    st.integers(2**63 - 4, 2**63 - 1),
)


@given(big_sides, big_sides, big_lengths, big_lengths, st.data())
def test_no_overflow(left: int, right: int, seqlen_q: int, seqlen_k: int, data: st.DataObject) -> None:
    """Sums of rows, lengths and windows pass 2^31 and, for windows, 2^63."""
    case = MaskCase(left, right, seqlen_q, seqlen_k)
    i = data.draw(st.sampled_from(sorted({0, seqlen_q // 2, seqlen_q - 1})))
    near = {0, seqlen_k // 2, seqlen_k - 1, i + seqlen_k - seqlen_q - left, i + seqlen_k - seqlen_q + right}
    for j in {x + step for x in near for step in (-1, 0, 1)}:
        if -(2**62) < j < 2**62:
            assert case.visible(i, j) == case.sees(i, j)


@pytest.mark.parametrize("side", [2**32, 2**62, 2**63 - 1])
@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(MAX_ROWS, 1), (1, MAX_ROWS), (MAX_ROWS, MAX_ROWS)])
def test_widest_windows_hide_nothing(side: int, seqlen_q: int, seqlen_k: int) -> None:
    case = MaskCase(side, side, seqlen_q, seqlen_k)
    for i in (0, seqlen_q - 1):
        assert case.visible(i, 0)
        assert case.visible(i, seqlen_k - 1)
        assert not case.visible(i, seqlen_k)


@given(big_sides, big_sides, big_lengths, big_lengths, st.data())
def test_around_a_block(left: int, right: int, seqlen_q: int, seqlen_k: int, data: st.DataObject) -> None:
    """The 32-bit form that the kernels use: the same keys of a block, for rows near its first one."""
    case = MaskCase(left, right, seqlen_q, seqlen_k)
    first_row = data.draw(st.sampled_from(sorted({0, seqlen_q // 2, max(0, seqlen_q - 200)})))
    near = [0, seqlen_k // 2, seqlen_k - 1, first_row + seqlen_k - seqlen_q - left, first_row + seqlen_k - seqlen_q]
    first_key = data.draw(st.sampled_from([min(max(0, x), seqlen_k - 1) // 128 * 128 for x in near]))
    for row in (0, 1, 63, 191):
        if first_row + row >= seqlen_q:
            continue
        begin, end = case.block_mask_keys(first_row, first_key, row)
        for key in (0, 1, 64, 127, begin - 1, begin, end - 1, end):
            if 0 <= key < 256:
                assert (begin <= key < end) == case.sees(first_row + row, first_key + key)


@given(
    sides | big_sides,
    sides | big_sides,
    lengths | st.integers(1, 3000) | big_lengths,
    lengths | st.integers(1, 3000) | big_lengths,
    st.sampled_from([(128, 80), (128, 128), (192, 96), (192, 128), (256, 64)]),
    st.data(),
)
def test_around_the_blocks_of_a_tile(
    left: int, right: int, seqlen_q: int, seqlen_k: int, shape: tuple[int, int], data: st.DataObject
) -> None:
    """The form in which tiles carry their masks: of every block that the tile, or a piece of it, visits."""
    case = MaskCase(left, right, seqlen_q, seqlen_k)
    if seqlen_q == 0:
        return
    most, block_n = shape
    last = (seqlen_q - 1) // most
    first_row = data.draw(st.sampled_from([0, last // 2 * most, last * most]))
    rows = min(most, seqlen_q - first_row)
    begin, end, *_ = case.block_range(first_row, first_row + rows, block_n)
    if begin == end:
        return
    piece_begin = data.draw(st.sampled_from([begin, begin + (end - begin) // 3]))
    piece_end = data.draw(st.sampled_from([end, max(piece_begin + 1, end - (end - begin) // 4)]))
    near = {piece_begin, piece_begin + 1, (piece_begin + piece_end) // 2, piece_end - 2, piece_end - 1}
    for block in (n for n in near if piece_begin <= n < piece_end):
        for row in {0, 1, 17, 63, 64, 127, 191, rows - 1} & set(range(rows)):
            seen = case.tile_mask_keys(first_row, (piece_begin, piece_end), block_n, block, row)
            for key in {0, 1, block_n // 2, block_n - 1, *(x + step for x in seen for step in (-1, 0))}:
                if 0 <= key < block_n:
                    visible = case.sees(first_row + row, block * block_n + key)
                    assert (seen[0] <= key < seen[1]) == visible, (block, row, key)
