"""block_range.h against brute force over every pair of a tile."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.core.surface import MaskCase, piece_of

LEAST_PIECE = 4  # blocks

sides = st.one_of(st.just(-1), st.integers(0, 30), st.just(2**40))
lengths = st.integers(0, 48)


@given(sides, sides, st.integers(1, 48), lengths, st.integers(1, 16), st.integers(1, 16))
def test_ranges(left: int, right: int, seqlen_q: int, seqlen_k: int, block_m: int, block_n: int) -> None:
    case = MaskCase(left, right, seqlen_q, seqlen_k)
    for row_begin in range(0, seqlen_q, block_m):
        check_tile(case, row_begin, min(seqlen_q, row_begin + block_m), block_n)


def check_tile(case: MaskCase, row_begin: int, row_end: int, block_n: int) -> None:
    begin, end, full_begin, full_end = case.block_range(row_begin, row_end, block_n)
    assert 0 <= begin <= full_begin <= full_end <= end
    rows = range(row_begin, row_end)
    num_blocks = -(-case.seqlen_k // block_n)
    assert end <= num_blocks

    def keys(n: int) -> range:
        return range(n * block_n, (n + 1) * block_n)  # of a whole block: keys past the end are invisible

    used = [n for n in range(num_blocks) if any(case.sees(i, j) for i in rows for j in keys(n))]
    full = [n for n in range(num_blocks) if all(case.sees(i, j) for i in rows for j in keys(n))]
    assert set(used) <= set(range(begin, end)), "a visible key lies outside the range"
    assert set(range(full_begin, full_end)) == set(full), "full blocks are exactly those without an invisible pair"
    if used:
        assert (begin, end) == (used[0], used[-1] + 1), "the range is tight"
    else:
        assert begin == end


@given(sides, sides, st.integers(1, 48), lengths, st.integers(1, 4), st.integers(1, 8), st.integers(1, 16))
def test_rows_of_a_tile(
    left: int, right: int, seqlen_q: int, seqlen_k: int, parts: int, rows: int, block_n: int
) -> None:
    """Blocks that a warpgroup leaves out, or takes without a mask, on its own."""
    case = MaskCase(left, right, seqlen_q, seqlen_k)
    most = 3
    for row_begin in range(0, seqlen_q, parts * rows):
        row_end = min(seqlen_q, row_begin + parts * rows)
        begin, end, full_begin, full_end = case.block_range(row_begin, row_end, block_n)
        if begin == end:
            continue
        for part in range(parts):
            own = range(row_begin + part * rows, min(row_begin + (part + 1) * rows, row_end))
            if len(own) < rows:
                continue  # behind the last row there is nothing to be right about
            hidden, own_full_end = case.rows_of_tile(row_begin, row_end, block_n, part * rows, rows, most)
            # Where the keys end that a row sees, in SPEC's words.
            edges = [min(seqlen_k, i + seqlen_k - seqlen_q + right + 1) if right >= 0 else seqlen_k for i in own]
            behind = sum(n * block_n >= edges[-1] for n in range(begin, end))
            assert hidden == min(behind, most, end - begin - 1)
            assert own_full_end == max(full_end, edges[0] // block_n)
            assert full_end <= own_full_end <= end
            for n in range(max(begin, full_begin), min(own_full_end, end - hidden)):
                assert all(case.sees(i, j) for i in own for j in range(n * block_n, (n + 1) * block_n))


@given(st.integers(1, 60), st.integers(0, 60), st.integers(1, 20), st.integers(1, 20))
def test_causal_needs_no_key_behind_the_diagonal(seqlen_q: int, seqlen_k: int, block_m: int, block_n: int) -> None:
    case = MaskCase(-1, 0, seqlen_q, seqlen_k)
    for row_begin in range(0, seqlen_q, block_m):
        row_end = min(seqlen_q, row_begin + block_m)
        last_seen = row_end - 1 + seqlen_k - seqlen_q
        _, end, _, _ = case.block_range(row_begin, row_end, block_n)
        assert end == max(0, -(-min(seqlen_k, last_seen + 1) // block_n))


@given(st.integers(0, 99), st.integers(0, 600), st.tuples(st.integers(0, 600), st.integers(0, 600)), st.integers(1, 32))
def test_pieces_are_the_blocks_in_order(begin: int, count: int, full: tuple[int, int], most: int) -> None:
    end = begin + count
    full_begin, full_end = (begin + min(x, count) for x in sorted(full))
    pieces = [piece_of((begin, end, full_begin, full_end), i, most) for i in range(most)]
    used = [x for x in pieces if x != (0, 0, 0, 0)]
    assert pieces[: len(used)] == used, "those without a block come last"
    assert [n for x in used for n in range(x[0], x[1])] == list(range(begin, end))
    assert [n for x in used for n in range(x[2], x[3])] == list(range(full_begin, full_end))
    assert all(x[0] <= x[2] <= x[3] <= x[1] for x in used)
    lengths = [x[1] - x[0] for x in used]
    assert len(lengths) < 2 or min(lengths) >= LEAST_PIECE
    assert not lengths or max(lengths) - min(lengths) <= 1
    assert len(lengths) == most or count < LEAST_PIECE * (len(lengths) + 1)


def test_pieces_of_the_longest_tile() -> None:
    longest = 2**31 // 80
    pieces = [piece_of((0, longest, 0, longest), i, 32) for i in range(32)]
    assert [x[0] for x in pieces[1:]] == [x[1] for x in pieces[:-1]]
    assert pieces[-1][1] == longest


def test_largest_lengths() -> None:
    longest = 2**31 - 1
    begin, end, full_begin, full_end = MaskCase(-1, 0, longest, longest).block_range(longest - 64, longest, 128)
    assert (begin, end) == (0, 2**24)
    assert (full_begin, full_end) == (0, (longest - 63) // 128)
