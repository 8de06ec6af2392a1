"""workspace.h: how much scratch a call needs, and that its parts do not overlap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflash3._abi import BACKEND_HOST, Params
from tests.core.problems import packed, params
from tests.core.surface import workspace_layout


@given(st.integers(1, 2**31 - 1))
def test_packed(batch: int) -> None:
    layout = workspace_layout(packed(batch=batch, num_splits=1))
    tile_counter, first_m_block, total = layout.tile_counter, layout.first_m_block, layout.size
    assert tile_counter == 0
    assert first_m_block >= tile_counter + 4
    assert total >= first_m_block + 4 * (batch + 1)
    assert tile_counter % 256 == first_m_block % 256 == total % 256 == 0
    assert total < 4 + 4 * (batch + 1) + 2 * 256, "no more than the padding of two parts"


@given(st.integers(1, 2**31 - 1))
def test_dense_needs_the_tile_counter_alone(batch: int) -> None:
    assert workspace_layout(params(batch=batch)) == (0, *[256] * 6)


def test_packed_k_alone_needs_no_table() -> None:
    assert workspace_layout(packed(cu_seqlens_q=None, num_splits=1)) == (0, *[256] * 6)


@pytest.mark.parametrize("p", [params(batch=0), packed(batch=0), params(backend=BACKEND_HOST)])
def test_nothing(p: Params) -> None:
    assert workspace_layout(p) == (0,) * 7


def test_does_not_grow_with_the_lengths() -> None:
    """R1: a relative's LSE scratch was 128 times too large."""
    assert workspace_layout(params(seqlen_q=2**20, seqlen_k=2**20)).size == 256
