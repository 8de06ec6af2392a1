"""Decoding with packed queries, of which the caller says how many a sequence has, and may be wrong: split_cursor.h."""

from __future__ import annotations

import ctypes
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflash3._abi import Params
from tests.core.problems import ADDRESS, params
from tests.core.split_surface import Piece, is_plain_decoding, plain_pieces, two_steps
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
    of=st.lists(
        st.tuples(st.sampled_from([0, 1, 1, 1, 2, 3, 7, 40]), st.integers(0, CAPACITY)), min_size=1, max_size=8
    ),
    layout=layouts,
    more=st.integers(0, 2),
    causal=st.booleans(),
    parts_of_line=st.integers(1, 20),
    cluster=st.sampled_from([1, 2, 4]),
)
def test_every_query_meets_its_keys_once(
    of: list[tuple[int, int]],
    layout: tuple[int, int, int],
    more: int,
    causal: bool,
    parts_of_line: int,
    cluster: int,
) -> None:
    """Though some sequences have more than the caller says, and others less."""
    nheads, nheads_k, lines = layout
    least = -(-sum(n for n, _ in of) // len(of))  # fewer is what the library does not believe
    p = decoding(of, (nheads, nheads_k), max(1, least + more), causal)
    if p.total_q == 0 or (least + more) * nheads > BLOCK_M * nheads_k:
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
        ([2] * 20, 1, 4, False),  # that cannot be
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


def prompts_beside(singles: int, prompts: int, longest: int, **changes: int) -> Params:
    """A call of so many single queries and as many prompts of `longest`, as far as the host knows."""
    given = {
        "batch": singles + prompts, "nheads": 32, "nheads_k": 8, "head_dim": 128, "head_dim_v": 128, "seqlen_q": 0,
        "total_q": singles + prompts * longest, "max_seqlen_q": longest, "cu_seqlens_q": ADDRESS, "seqlen_k": 0,
        "page_table": ADDRESS, "page_size": 64, "max_pages": 100, "num_pages": 1000, "seqused_k": ADDRESS,
        "num_splits": 0, "window_right": 0,
    }  # fmt: skip
    return params(**(given | changes))


@pytest.mark.parametrize(
    ("singles", "prompts", "longest", "taken"),
    [
        (128, 1, 512, True),
        (32, 1, 480, True),
        (32, 1, 500, False),  # more than 16 queries on average, which are the forward kernel's
        (8, 1, 100, True),
        (7, 1, 100, False),  # few
        (1000, 4, 2048, True),
        (20, 21, 30, False),
        (64, 1, 16, False),  # all of them fit a tile
        (64, 1, 17, True),
    ],
)
def test_which_calls_are_computed_as_two(singles: int, prompts: int, longest: int, taken: bool) -> None:
    """And that these have workspaces of their own, with a place for lengths between them."""
    p = prompts_beside(singles, prompts, longest)
    size = two_steps(p)
    assert (size is not None) == taken
    if size is not None:
        assert 4 * (singles + prompts) <= size[2] - size[0] - size[1] < 4 * (singles + prompts) + 256


@pytest.mark.parametrize(
    ("singles", "prompts", "longest", "nheads_k", "room"),
    [(2048, 1, 3, 1, 131_072), (256, 1, 3, 1, 65_536), (1024, 1, 17, 8, 131_072), (256, 2, 64, 8, 65_536)],
)
def test_single_queries_do_not_multiply_the_workspace(
    singles: int, prompts: int, longest: int, nheads_k: int, room: int
) -> None:
    """Of pieces of the prompts, whose partial results have places for all queries: few of them where these are many."""
    size = two_steps(prompts_beside(singles, prompts, longest, nheads_k=nheads_k, max_pages=room // 64))
    assert size is not None
    assert size[2] < 64 << 20


@pytest.mark.parametrize(
    "change",
    [{"seqused_q": ADDRESS}, {"num_splits": 1}, {"window_left": 9}, {"max_seqlen_q": 0}, {"softcap": 1.0}],
    ids=str,
)
def test_what_is_computed_at_once(change: dict[str, int]) -> None:
    p = prompts_beside(128, 1, 512)
    assert two_steps(p) is not None
    for name, value in change.items():
        setattr(p, name, value)
    assert two_steps(p) is None
