"""Tiles that are shared out to thread blocks beforehand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.core.tile_choice import tile_share


@given(st.integers(1, 5000), st.integers(1, 300))
def test_every_tile_belongs_to_one_block_and_none_has_two_more_than_another(tiles: int, blocks: int) -> None:
    shares = [tile_share(tiles, block, blocks) for block in range(blocks)]
    assert [t for share in shares for t in share] == list(range(tiles))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(st.integers(1, 2**31 - 1), st.integers(1, 300))
def test_the_last_one_ends_at_the_last_tile(tiles: int, blocks: int) -> None:
    assert tile_share(tiles, 0, blocks).start == 0
    assert tile_share(tiles, blocks - 1, blocks).stop == tiles
