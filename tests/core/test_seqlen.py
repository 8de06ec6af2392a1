"""seqlen.h: right lengths give the right rows, and no content of a length array leads outside the tensor."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tests.core.surface import seq_span

lengths = st.lists(st.integers(0, 300), min_size=1, max_size=20)
int32s = st.integers(-(2**31), 2**31 - 1)


@given(lengths)
def test_packed(lens: list[int]) -> None:
    cu_seqlens = [0, *itertools.accumulate(lens)]
    for b, length in enumerate(lens):
        assert seq_span(cu_seqlens, None, cu_seqlens[-1], b) == (cu_seqlens[b], length)


@given(lengths, st.data())
def test_packed_with_seqused(lens: list[int], data: st.DataObject) -> None:
    cu_seqlens = [0, *itertools.accumulate(lens)]
    used = [data.draw(st.integers(0, length)) for length in lens]
    for b in range(len(lens)):
        assert seq_span(cu_seqlens, used, cu_seqlens[-1], b) == (cu_seqlens[b], used[b])


@given(st.integers(0, 2**31 - 1), st.integers(0, 5))
def test_dense(rows: int, b: int) -> None:
    assert seq_span(None, None, rows, b) == (0, rows)
    assert seq_span(None, [rows // 2] * 6, rows, b) == (0, rows // 2)


@given(
    st.lists(int32s, min_size=2, max_size=12),
    st.none() | st.lists(int32s, min_size=11, max_size=11),
    st.integers(0, 2**31 - 1) | st.integers(0, 100),
)
def test_wrong_contents_stay_inside(cu_seqlens: list[int], seqused: list[int] | None, rows: int) -> None:
    for b in range(len(cu_seqlens) - 1):
        start, length = seq_span(cu_seqlens, seqused, rows, b)
        assert start >= 0
        assert length >= 0
        assert start + length <= rows
