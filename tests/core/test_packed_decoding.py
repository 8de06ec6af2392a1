"""Decoding with packed queries, of which the caller says how many a sequence has, and may be wrong: split_cursor.h."""

from __future__ import annotations

import ctypes
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflash3._abi import Params
from tests.core.problems import ADDRESS, params
from tests.core.split_surface import Piece, is_plain_decoding, plain_pieces
from tests.core.surface import int32_array
from tests.core.test_split_schedule import BLOCK_M, BLOCK_N, layouts

CAPACITY = 2000


def decoding(of: list[tuple[int, int]], heads: tuple[int, int], hint: int, causal: bool) -> Params:
    """A call of (queries, keys) of each sequence, whose lengths live as long as it."""
    starts = [0]
    for queries, _ in of:
        starts.append(starts[-1] + queries)
    cu, used = int32_array(starts), int32_array([keys for _, keys in of])
    p = params(
        batch=len(of), nheads=heads[0], nheads_k=heads[1], seqlen_q=0, total_q=starts[-1], seqlen_k=CAPACITY,
        num_splits=0, window_right=0 if causal else -1, cu_seqlens_q=ctypes.addressof(cu),
        seqused_k=ctypes.addressof(used), max_seqlen_q=hint,
    )  # fmt: skip
    p.arrays = cu, used
    return p


def seen(piece: Piece, row: int, causal: bool) -> list[int]:
    """The keys of a piece that a row of its tile sees, by the mask of the sequence as the tile has it."""
    end = max(0, piece.keys - piece.queries + row + 1) if causal else piece.keys
    return [key for n in piece.blocks for key in range(n * BLOCK_N, min((n + 1) * BLOCK_N, end))]


@given(
    of=st.lists(st.tuples(st.sampled_from([0, 1, 1, 1, 2, 3, 7, 40]), st.integers(0, CAPACITY)), min_size=1, max_size=8),
    layout=layouts,
    hint=st.integers(1, 3),
    causal=st.booleans(),
    parts_of_line=st.integers(1, 20),
    cluster=st.sampled_from([1, 2, 4]),
)
def test_every_query_meets_its_keys_once(
    of: list[tuple[int, int]],
    layout: tuple[int, int, int],
    hint: int,
    causal: bool,
    parts_of_line: int,
    cluster: int,
) -> None:
    """Whatever the caller says of them."""
    nheads, nheads_k, lines = layout
    p = decoding(of, (nheads, nheads_k), hint, causal)
    if p.total_q == 0:
        return
    assert is_plain_decoding(p)
    _, pieces = plain_pieces(p, BLOCK_N, lines, parts_of_line * lines, cluster=cluster)
    keys: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for piece in pieces:
        assert piece.m_block == 0
        assert piece.queries * (nheads // nheads_k) <= BLOCK_M
        if piece.first_query > 0:
            assert piece.whole
            assert piece.queries == 1
            assert piece.entry.rows == 0
        for row in range(piece.queries):
            keys[piece.batch, piece.kv_head, piece.first_query + row] += seen(piece, row, causal)
    want = {
        (b, head, i): list(range(max(0, num_keys - (queries - i - 1) * causal)))
        for b, (queries, num_keys) in enumerate(of)
        for head in range(nheads_k)
        for i in range(queries)
    }
    assert {place: sorted(found) for place, found in keys.items()} == want


@pytest.mark.parametrize(
    ("queries", "hint", "group", "plain"),
    [
        ([1] * 8, 1, 4, True),
        ([1] * 8, 0, 4, True),  # as many queries as sequences: one each, most likely
        ([1] * 5 + [0] * 3, 0, 4, True),
        ([2] * 8, 0, 4, True),  # all of them fit a tile
        ([2] * 20, 0, 4, False),  # one sequence might have all of them
        ([2] * 20, 2, 4, True),
        ([2] * 20, 16, 4, True),
        ([2] * 20, 17, 4, False),
        ([1] * 8, 1, 65, False),  # more heads than a tile has rows
    ],
)
def test_which_packed_calls_are_plain_decoding(queries: list[int], hint: int, group: int, plain: bool) -> None:
    p = decoding([(n, 100) for n in queries], (group, 1), hint, True)
    assert is_plain_decoding(p) == plain


@pytest.mark.parametrize(
    "change",
    [
        {"window_right": 3},
        {"window_left": 50},
        {"seqused_q": ADDRESS},
        {"softcap": 5.0},
        {"num_splits": 2},
        {"cache_leftpad": ADDRESS},
        {"k_new": ADDRESS, "v_new": ADDRESS, "seqlen_k_new": 1},
        {"cu_seqlens_k": ADDRESS, "total_k": 700},
    ],
    ids=str,
)
def test_what_is_left_to_the_general_kernel(change: dict[str, int]) -> None:
    p = decoding([(1, 100)] * 3, (8, 2), 1, True)
    assert is_plain_decoding(p)
    for name, value in change.items():
        setattr(p, name, value)
    assert not is_plain_decoding(p)
