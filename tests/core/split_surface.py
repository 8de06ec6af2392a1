"""The C functions of libflash3_core about the split-KV kernel with Python types."""

from __future__ import annotations

import functools
from ctypes import POINTER, byref, c_int32, c_int64, c_uint64
from typing import Any, NamedTuple

from pyflash3._abi import Params
from tests.core.surface import surface_function

_VALUES = 17  # numbers of a piece


def takes_split_kernel(params: Params) -> bool:
    return bool(surface_function("takes_split_kernel", c_int32, [POINTER(Params)])(byref(params)))


class Pieces(NamedTuple):
    """How the forward kernel for caches cuts a call up."""

    used: bool  # tiles are not just the rows of a head with all their keys
    pieces: int  # of the keys of a tile, at most
    pack: int  # query heads whose rows make tiles together


def pieces_of(params: Params) -> Pieces:
    out = (c_int32 * 3)()
    surface_function("pieces", None, [POINTER(Params), POINTER(c_int32)])(byref(params), out)
    return Pieces(bool(out[0]), out[1], out[2])


def is_plain_decoding(params: Params) -> bool:
    return bool(surface_function("is_plain_decoding", c_int32, [POINTER(Params)])(byref(params)))


def two_steps(params: Params) -> tuple[int, int, int] | None:
    """Of a call that is computed as two the bytes of workspace: of either, and of all. None: it is not."""
    size = (c_uint64 * 3)()
    taken = surface_function("two_steps", c_int32, [POINTER(Params), POINTER(c_uint64)])(byref(params), size)
    return (size[0], size[1], size[2]) if taken else None


def appends_itself(params: Params) -> bool:
    return bool(surface_function("appends_itself", c_int32, [POINTER(Params)])(byref(params)))


def most_tiles(params: Params) -> int:
    """At most, whatever cu_seqlens_q holds."""
    count: int = surface_function("most_tiles", c_int64, [POINTER(Params)])(byref(params))
    return count


class Entry(NamedTuple):
    """What is to be merged; rows 0: nothing."""

    rows: int
    pieces: int
    first_piece: int
    next_piece: int
    step: int


class Piece(NamedTuple):
    """Of a tile, by one part of the call."""

    part: int
    batch: int
    kv_head: int
    m_block: int
    n_begin: int
    n_end: int
    n_step: int
    whole: bool
    number: int
    first_query: int  # of the tile's rows, in the sequence
    queries: int  # of the sequence as the tile has it
    keys: int
    entry: Entry

    @property
    def blocks(self) -> range:
        """Of keys."""
        return range(self.n_begin, self.n_end, self.n_step)


def split_places(params: Params, block_n: int, num_lines: int) -> int:
    """The cost of a line."""
    places: int = surface_function("split_places", c_int32, [POINTER(Params), c_int32, c_int32])(
        byref(params), block_n, num_lines
    )
    return places


@functools.cache
def _split_pieces() -> Any:
    argtypes = [POINTER(Params), c_int32, c_int32, c_int32, c_int64, POINTER(c_int64)]
    return surface_function("split_pieces", c_int64, argtypes)


@functools.cache
def _plain_pieces() -> Any:
    argtypes = [POINTER(Params), *[c_int32] * 5, c_int64, POINTER(c_int64), POINTER(c_int32)]
    return surface_function("plain_pieces", c_int64, argtypes)


def split_pieces(params: Params, block_n: int, num_lines: int, num_parts: int) -> tuple[int, list[Piece]]:
    """The cost of a line and all pieces of all lines."""
    count = _split_pieces()(byref(params), block_n, num_lines, num_parts, 0, (c_int64 * 0)())
    values = (c_int64 * (_VALUES * count))()
    _split_pieces()(byref(params), block_n, num_lines, num_parts, count, values)
    return split_places(params, block_n, num_lines), _pieces(values)


def plain_pieces(
    params: Params, block_n: int, num_lines: int, num_parts: int, blocks_per_sm: int = 1, *, cluster: int = 1
) -> tuple[int, list[Piece]]:
    """Of plain decoding: into how many pieces each tile is cut, 0 where they are not cut alike, and all pieces."""
    cuts = c_int32()
    of = functools.partial(_plain_pieces(), byref(params), block_n, num_lines, num_parts, blocks_per_sm, cluster)
    count = of(0, (c_int64 * 0)(), byref(cuts))
    values = (c_int64 * (_VALUES * count))()
    of(count, values, byref(cuts))
    return cuts.value, _pieces(values)


def suits_clusters(params: Params, block_n: int, num_lines: int, blocks: int, multiprocessors: int) -> bool:
    of = surface_function("suits_clusters", c_int32, [POINTER(Params), *[c_int32] * 4])
    return bool(of(byref(params), block_n, num_lines, blocks, multiprocessors))


def first_even_block(
    params: Params, block_n: int, num_lines: int, num_parts: int, part: int
) -> tuple[int, int, int] | None:
    """Batch, KV head and number of the first key block of a part if tiles are cut alike; None if it has none."""
    argtypes = [POINTER(Params), *[c_int32] * 4, POINTER(c_int32)]
    block = (c_int32 * 3)()
    of = surface_function("first_even_block", c_int32, argtypes)
    return (block[0], block[1], block[2]) if of(byref(params), block_n, num_lines, num_parts, part, block) else None


def _pieces(values: Any) -> list[Piece]:
    pieces = []
    for i in range(0, len(values), _VALUES):
        part, b, head, m, n_begin, n_end, n_step, whole, number, first, queries, keys, *entry = values[i : i + _VALUES]
        blocks = n_begin, n_end, n_step
        pieces.append(Piece(part, b, head, m, *blocks, bool(whole), number, first, queries, keys, Entry(*entry)))
    return pieces
