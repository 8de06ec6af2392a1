"""Tiles that are shared out to thread blocks beforehand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.core.tile_choice import unit_share


@given(st.integers(1, 600), st.integers(1, 40), st.integers(1, 300), st.booleans())
def test_every_tile_belongs_to_one_block_and_none_has_two_more_than_another(
    units: int, of_unit: int, blocks: int, in_step: bool
) -> None:
    tiles = units * of_unit
    found: list[int] = []
    counts = []
    for block in range(blocks):
        whole, beside = unit_share(tiles, of_unit, block, blocks, in_step)
        own = [unit * of_unit + t for unit in whole for t in range(of_unit)] + list(beside)
        counts.append(len(own))
        found += own
    assert sorted(found) == list(range(tiles))
    assert max(counts) - min(counts) <= 1


@given(st.integers(1, 600), st.integers(1, 40), st.integers(1, 300))
def test_blocks_have_whole_units_as_long_as_there_is_one_for_each(units: int, of_unit: int, blocks: int) -> None:
    whole, beside = unit_share(units * of_unit, of_unit, 0, blocks)
    assert len(whole) == units // blocks
    assert len(beside) <= of_unit
    assert unit_share(units * of_unit, of_unit, 0, blocks, in_step=False)[0] == range(0, 0, blocks)


@given(st.integers(1, 2**31 - 1), st.integers(1, 300))
def test_the_last_one_ends_at_the_last_tile(tiles: int, blocks: int) -> None:
    assert unit_share(tiles, tiles, blocks - 1, blocks)[1].stop == tiles
