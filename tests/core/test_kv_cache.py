"""kv_cache.h and rotary.h against brute force, and whatever the arrays hold, nothing lies outside the tensors."""

from __future__ import annotations

from ctypes import addressof
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.problems import ADDRESS, cached
from tests.core.surface import int32_array, key_span, rotary_positions, row_place

int32s = st.integers(-(2**31), 2**31 - 1)


class Cache(NamedTuple):
    """A cache in plain words: pages of each sequence (or None), and what is in use."""

    capacity: int
    page_size: int
    table: list[list[int]] | None
    num_pages: int
    entries: list[int]
    filled: list[int]
    new: list[int]
    leftpad: list[int]


@st.composite
def caches(draw: Any) -> Cache:
    batch = draw(st.integers(1, 5))
    batch_cache = draw(st.integers(1, 7))
    page_size, columns, num_pages = draw(st.integers(1, 9)), draw(st.integers(1, 6)), draw(st.integers(1, 30))
    paged = draw(st.booleans())
    capacity = page_size * columns if paged else draw(st.integers(0, 50))
    ids = st.lists(st.integers(0, num_pages - 1), min_size=columns, max_size=columns)
    table = draw(st.lists(ids, min_size=batch_cache, max_size=batch_cache)) if paged else None
    entries = [draw(st.integers(0, batch_cache - 1)) for _ in range(batch)]
    filled = [draw(st.integers(0, capacity)) for _ in range(batch)]
    new = [draw(st.integers(0, capacity - n)) for n in filled]
    leftpad = [draw(st.integers(0, n + m)) for n, m in zip(filled, new, strict=True)]
    return Cache(capacity, page_size, table, num_pages, entries, filled, new, leftpad)


class Arrays:
    """Parameters of a cache with its arrays, which live as long as this."""

    def __init__(self, c: Cache) -> None:
        starts = [0]
        for n in c.new:
            starts.append(starts[-1] + n)
        self.arrays: dict[str, Any] = {
            "cache_batch_idx": int32_array(c.entries),
            "seqused_k": int32_array(c.filled),
            "cache_leftpad": int32_array(c.leftpad),
            "cu_seqlens_k_new": int32_array(starts),
            "page_table": None if c.table is None else int32_array([i for row in c.table for i in row]),
        }
        addresses = {name: None if x is None else addressof(x) for name, x in self.arrays.items()}
        columns = 0 if c.table is None else len(c.table[0])
        self.params = cached(
            **addresses, batch=len(c.entries), seqlen_k=c.capacity, page_size=c.page_size, num_pages=c.num_pages,
            max_pages=columns, page_table_batch_stride=columns, total_k_new=starts[-1],
            batch_cache=7 if c.table is None else len(c.table),
        )  # fmt: skip


@given(caches())
def test_keys_and_new_rows_lie_where_they_should(c: Cache) -> None:
    arrays = Arrays(c)
    for b, entry in enumerate(c.entries):
        span = key_span(arrays.params, b)
        end = c.filled[b] + c.new[b]
        assert (span.entry, span.named, span.first_row) == (entry, 1, c.leftpad[b])
        assert (span.len, span.appended) == (end - c.leftpad[b], c.new[b])
        assert span.first_row + span.len - span.appended == c.filled[b], "the first appended row"
        for row in range(min(c.leftpad[b], c.filled[b]), end):
            place = row_place(arrays.params, b, row, end - row)
            if c.table is None:
                assert place == (entry, row, 1, end - row)
            else:
                page = c.table[entry][row // c.page_size]
                assert place[:3] == (page, row % c.page_size, 1)
                together = [r for r in range(row, end) if r // c.page_size == row // c.page_size]
                assert place.run == len(together)


@given(caches(), st.data())
def test_wrong_contents_stay_inside(c: Cache, data: st.DataObject) -> None:
    arrays = Arrays(c)
    for x in arrays.arrays.values():
        for i in range(0 if x is None else len(x)):
            x[i] = data.draw(int32s | st.integers(-2, 60))
    entries = 7 if c.table is None else len(c.table)
    for b, wanted in enumerate(arrays.arrays["cache_batch_idx"]):
        span = key_span(arrays.params, b)
        assert 0 <= span.entry < entries
        assert span.named == (0 <= wanted < entries)
        assert span.len >= 0
        assert span.appended >= 0
        assert span.first_row >= 0
        first = span.first_row + span.len - span.appended
        assert first >= 0
        assert span.first_row + span.len <= c.capacity
        for row in range(min(first, span.first_row), span.first_row + span.len):
            place = row_place(arrays.params, b, row, 10**6)
            if c.table is None:
                assert place == (span.entry, row, span.named, 10**6)
                continue
            table = arrays.arrays["page_table"]
            page = table[span.entry * len(c.table[0]) + row // c.page_size]
            assert 0 <= place.entry < c.num_pages
            assert place.named == (span.named and place.entry == page)
            assert 0 <= place.row < place.row + place.run <= c.page_size


def test_the_largest_cache() -> None:
    table, filled = int32_array([2**15 - 1]), int32_array([2**31 - 1])
    p = cached(
        batch=1, page_table=addressof(table), page_size=2**16 - 1, num_pages=2**15, max_pages=1, k_new=None, v_new=None,
        seqused_k=addressof(filled),
    )  # fmt: skip
    assert key_span(p, 0) == (0, 1, 0, 2**16 - 1, 0)
    assert row_place(p, 0, 2**16 - 2, 1) == (2**15 - 1, 2**16 - 2, 1, 1)


@given(int32s, st.none() | int32s, st.integers(0, 1000), st.integers(1, 2000), st.booleans())
def test_rotary_positions(filled: int, own: int | None, i: int, rows: int, limited: bool) -> None:
    filled_array, own_array = int32_array([filled]), int32_array([0 if own is None else own])
    p = cached(
        batch=1, seqused_k=addressof(filled_array), rotary_seqlens=None if own is None else addressof(own_array),
        seqlen_rotary=rows, window_right=0 if limited else -1,
    )  # fmt: skip
    base = filled if own is None else own

    def inside(position: int) -> int:
        return min(max(position, 0), rows - 1)

    assert rotary_positions(p, 0, i) == (inside(base + i), inside(base + i if limited else base))


@pytest.mark.parametrize("left", [3, 2**31 - 1, 2**63 - 1])
def test_a_left_window_alone_moves_the_queries_too(left: int) -> None:
    """Also one that hides nothing."""
    base = int32_array([5])
    p = cached(batch=1, seqused_k=addressof(base), seqlen_rotary=100, window_left=left)
    assert rotary_positions(p, 0, 4) == (9, 9)
    assert p.page_table == ADDRESS, "which nothing has read"
