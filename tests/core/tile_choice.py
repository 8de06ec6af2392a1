"""The C functions of libflash3_core about tile shapes (cuda/core/test_surface_tiles.cpp) with Python types."""

from __future__ import annotations

import functools
from ctypes import POINTER, c_int32, c_int64, c_uint32
from typing import Any, NamedTuple

from tests.core.surface import surface_function

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "unit_share": (None, [c_uint32, c_uint32, c_uint32, c_uint32, c_int32, POINTER(c_uint32)]),
    "tile_class": (c_int32, [c_int32, c_int32]),
    "tile_config": (c_int32, [c_int32, POINTER(c_int32)]),
    "takes_pairs": (c_int32, [c_int32, c_int64, c_int64, c_int64]),
    "estimated_clocks": (c_int64, [c_int32, c_int64, c_int64, c_int32, c_int32]),
    "cheapest_config": (c_int32, [c_int32, c_int64, c_int64, c_int32, c_int32, c_int32, c_int64, c_int64, c_int32]),
}


@functools.cache
def _function(name: str) -> Any:
    return surface_function(name, *_SIGNATURES[name])


def unit_share(tiles: int, of_unit: int, block: int, blocks: int, in_step: bool = True) -> tuple[range, range]:
    """Of a thread block, where all tiles are shared out beforehand: its whole units, and its tiles beside them."""
    share = (c_uint32 * 3)()
    _function("unit_share")(tiles, of_unit, block, blocks, in_step, share)
    rounds, first, count = share
    return range(block, block + rounds * blocks, blocks), range(first, first + count - rounds * of_unit)


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

    def takes(self, seqlen_q: int, seqlen_k: int, in_device_memory: bool = False) -> bool:
        """Whether it computes sequences of these lengths; of the longest q, if they vary."""
        if self.most_keys > 0 and (in_device_memory or not 0 < seqlen_k <= self.most_keys):
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
    longest_q: int | None = None,
    columns: int = 100_000,
    packed: bool = False,
) -> int:
    """Of the class of the config `member`.

    vary: the lengths are means. columns: heads of all sequences, by default enough to fill any GPU. packed: q is.
    """
    longest = seqlen_q if longest_q is None else longest_q
    index: int = _function("cheapest_config")(member, left, right, seqlen_q, seqlen_k, vary, longest, columns, packed)
    return index
