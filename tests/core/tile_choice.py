"""The C functions of libflash3_core about tile shapes (cuda/core/test_surface_tiles.cpp) with Python types."""

from __future__ import annotations

import functools
from ctypes import POINTER, c_int32, c_int64, c_uint32
from typing import Any, NamedTuple

from tests.core.surface import surface_function

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "unit_run": (c_uint32, [c_uint32, c_uint32, c_uint32, c_uint32, c_int32, c_uint32, POINTER(c_uint32)]),
    "packed_units": (None, [c_int32, c_int32, c_int32, c_int64, POINTER(c_uint32)]),
    "keys_in_use": (c_int64, [c_int64, c_int64, c_int64, c_int32]),
    "tile_class": (c_int32, [c_int32, c_int32]),
    "tile_config": (c_int32, [c_int32, POINTER(c_int32)]),
    "takes_pairs": (c_int32, [c_int32, c_int64, c_int64, c_int64]),
    "estimated_clocks": (c_int64, [c_int32, c_int64, c_int64, c_int32, c_int32]),
    "cheapest_config": (
        c_int32,
        [c_int32, c_int64, c_int64, c_int32, c_int32, c_int32, POINTER(c_int64), c_int64, c_int64, *[c_int32] * 3],
    ),
}


@functools.cache
def _function(name: str) -> Any:
    return surface_function(name, *_SIGNATURES[name])


class UnitRun(NamedTuple):
    """Tiles [first, first + tiles) of a unit."""

    unit: int
    first: int
    tiles: int


def unit_runs(tiles: int, of_unit: int, block: int, blocks: int, in_step: bool = True) -> list[UnitRun]:
    """What a thread block computes, in order, where all tiles are shared out beforehand."""
    runs: list[UnitRun] = []
    values = (c_uint32 * 3)()
    done = 0
    while done < _function("unit_run")(tiles, of_unit, block, blocks, in_step, done, values):
        runs.append(UnitRun(*values))
        assert runs[-1].tiles > 0, "no end"
        done += runs[-1].tiles
    return runs


class PackedUnits(NamedTuple):
    units: int
    heads: int  # of each
    of_sequence: int


def packed_units(batch: int, nheads: int, group: int, blocks: int) -> PackedUnits:
    """What shares keys in a packed call, as thread blocks take it."""
    values = (c_uint32 * 3)()
    _function("packed_units")(batch, nheads, group, blocks, values)
    return PackedUnits(*values)


def keys_in_use(left: int, right: int, seqlen_k: int, block_m: int) -> int:
    """Keys that a tile of block_m rows reads at most."""
    keys: int = _function("keys_in_use")(left, right, seqlen_k, block_m)
    return keys


class TileConfig(NamedTuple):
    head_dim: int
    head_dim_v: int
    block_m: int
    block_n: int
    stages: int
    tile_clocks: int
    block_clocks: int
    most_rows: int
    is_short: int
    pairs: int
    most_keys: int
    most_hidden: int
    takes_modified_scores_directly: int
    has_capped_kernel: int

    def takes(self, seqlen_q: int, seqlen_k: int) -> bool:
        """Whether it is made for sequences of these lengths; the longest ones, if they vary."""
        if self.most_keys > 0 and not 0 < seqlen_k <= self.most_keys:
            return False
        return self.most_rows == 0 or seqlen_q <= self.most_rows


def tile_configs() -> list[TileConfig]:
    """Every tile shape that kernels are instantiated for."""
    found: list[TileConfig] = []
    values = (c_int32 * len(TileConfig._fields))()
    while _function("tile_config")(len(found), values):
        found.append(TileConfig(*values))
    return found


def takes_pairs(index: int, left: int, right: int, rows: int) -> bool:
    return bool(_function("takes_pairs")(index, left, right, rows))  # a dense call, in pairs of tiles of that config


def tile_class(head_dim: int, head_dim_v: int) -> int | None:
    """Index of the first config of the class; None where no class holds the head dims."""
    index: int = _function("tile_class")(head_dim, head_dim_v)
    return None if index < 0 else index


def estimated_clocks(index: int, left: int, right: int, seqlen_q: int, seqlen_k: int) -> int:
    clocks: int = _function("estimated_clocks")(index, left, right, seqlen_q, seqlen_k)
    return clocks


def cheapest_config(
    member: int,
    left: int,
    right: int,
    seqlen_q: int,
    seqlen_k: int,
    *,
    vary: bool = False,
    longest: tuple[int, int] | None = None,
    sequences: int = 1,
    columns: int = 100_000,
    group: int = 1,
    packed: bool = False,
    modifies: bool = False,
) -> int:
    """Of the class of the config `member`.

    vary: the lengths are means, and `longest` the longest of q and of k. columns: query heads of all sequences, by
    default enough to fill any GPU, `group` to a KV head. packed: q is. modifies: with softcap or ALiBi.
    """
    most = (c_int64 * 2)(*(longest or (seqlen_q, seqlen_k)))
    index: int = _function("cheapest_config")(
        member, left, right, seqlen_q, seqlen_k, vary, most, sequences, columns, group, packed, modifies
    )
    return index
