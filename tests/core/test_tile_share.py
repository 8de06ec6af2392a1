"""Tiles that are shared out to thread blocks beforehand, and the order of others under a window."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.core.surface import MaskCase
from tests.core.tile_choice import keys_in_use, packed_units, unit_runs


@given(st.integers(1, 600), st.integers(1, 40), st.integers(1, 300), st.booleans())
def test_every_tile_belongs_to_one_block_and_none_has_two_more_than_another(
    units: int, of_unit: int, blocks: int, in_step: bool
) -> None:
    tiles = units * of_unit
    found: list[int] = []
    counts = []
    for block in range(blocks):
        runs = unit_runs(tiles, of_unit, block, blocks, in_step)
        assert all(run.first + run.tiles <= of_unit for run in runs)
        own = [run.unit * of_unit + run.first + t for run in runs for t in range(run.tiles)]
        counts.append(len(own))
        found += own
    assert sorted(found) == list(range(tiles))
    assert max(counts) - min(counts) <= 1


@given(st.integers(1, 600), st.integers(1, 40), st.integers(1, 300))
def test_blocks_have_whole_units_as_long_as_there_is_one_for_each(units: int, of_unit: int, blocks: int) -> None:
    whole = units // blocks
    runs = unit_runs(units * of_unit, of_unit, 0, blocks)
    assert runs[:whole] == [(block, 0, of_unit) for block in range(0, whole * blocks, blocks)]
    assert sum(run.tiles for run in runs[whole:]) <= of_unit
    in_order = unit_runs(units * of_unit, of_unit, 0, blocks, in_step=False)
    assert [run.unit for run in in_order] == list(range(len(in_order)))


@given(st.integers(1, 2**31 - 1), st.integers(1, 300))
def test_the_last_one_ends_at_the_last_tile(tiles: int, blocks: int) -> None:
    last = [run for block in range(blocks) for run in unit_runs(tiles, tiles, block, blocks)][-1]
    assert last.first + last.tiles == tiles


@given(st.integers(1, 500), st.integers(1, 16), st.integers(1, 24), st.integers(1, 200))
def test_packed_units_are_of_one_kv_head_and_share_the_work_out(
    batch: int, nheads_k: int, group: int, blocks: int
) -> None:
    units = packed_units(batch, nheads_k * group, group, blocks)
    assert group % units.heads == 0, "all of a unit's heads have the same keys"
    assert units.of_sequence * units.heads == nheads_k * group
    assert units.units == batch * units.of_sequence

    def most_heads_of_a_block(heads: int) -> int:
        return -(-(batch * nheads_k * (group // heads)) // blocks) * heads

    divisors = [heads for heads in range(1, group + 1) if group % heads == 0]
    least = min(map(most_heads_of_a_block, divisors))
    assert most_heads_of_a_block(units.heads) == least
    assert all(most_heads_of_a_block(heads) > least for heads in divisors if heads > units.heads)


@given(
    st.integers(-1, 600), st.integers(-1, 600), st.integers(1, 2000), st.integers(1, 1500), st.sampled_from([64, 128])
)
def test_no_tile_reads_more_keys_than_are_in_use(
    left: int, right: int, seqlen_q: int, seqlen_k: int, block_m: int
) -> None:
    bound = keys_in_use(left, right, seqlen_k, block_m)
    mask = MaskCase(left, right, seqlen_q, seqlen_k)
    for first in range(0, seqlen_q, block_m):
        begin, end, *_ = mask.block_range(first, min(first + block_m, seqlen_q), 1)
        assert end - begin <= bound <= seqlen_k


def test_keys_in_use_under_wide_windows() -> None:
    assert keys_in_use(1024, 0, 16_384, 128) == 1024 + 128
    assert keys_in_use(2**31 - 2, 2**31 - 2, 2**31 - 1, 128) == 2**31 - 1
    assert keys_in_use(-1, 0, 5000, 128) == keys_in_use(7, -1, 5000, 128) == 5000
