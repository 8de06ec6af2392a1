"""The C functions of libflash3_core (cuda/core/test_surface.cpp) with Python types."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any, NamedTuple

from pyflash3._abi import CombineParams, Params
from tests.build_dir import load_library

_int32_p = POINTER(c_int32)

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "mask_keys": (None, [c_int64, c_int64, c_int32, c_int32, _int32_p]),
    "mask_visible": (c_int32, [c_int64, c_int64, c_int32, c_int32, c_int64, c_int64]),
    "tile_mask_keys": (None, [c_int64, c_int64, *[c_int32] * 8, _int32_p]),
    "block_mask_keys": (None, [c_int64, c_int64, c_int32, c_int32, c_int64, c_int64, c_int32, _int32_p]),
    "block_range": (None, [c_int64, c_int64, *[c_int32] * 5, _int32_p]),
    "rows_of_tile": (None, [c_int64, c_int64, *[c_int32] * 8, _int32_p]),
    "piece_of": (None, [c_int32, c_int32, _int32_p]),
    "seq_span": (None, [c_void_p, c_void_p, c_int64, c_int32, POINTER(c_int64), _int32_p]),
    "key_span": (None, [POINTER(Params), c_int32, POINTER(c_int64)]),
    "row_place": (None, [POINTER(Params), c_int32, c_int64, c_int64, POINTER(c_int64)]),
    "page_walk": (None, [c_int32, c_int32, c_int32, c_uint32, c_int32, _int32_p]),
    "rotary_positions": (None, [POINTER(Params), c_int32, c_int64, POINTER(c_int64)]),
    "sections": (None, [c_int32, c_int32, c_int64, c_int64, _int32_p]),
    "quotient": (c_uint32, [c_uint32, c_int64]),
    "dense_tile": (None, [c_int32] * 6 + [_int32_p]),
    "pairs_of": (c_int32, [c_int32]),
    "tile_of_pair": (c_int32, [c_int32] * 3),
    "find_sequence": (c_int32, [c_void_p, c_int32, c_int32]),
    "varlen_num_tiles": (c_int64, [c_void_p, c_int32, c_int32]),
    "varlen_tile": (None, [c_void_p, c_int32, c_int32, c_void_p, c_int32, _int32_p]),
    "cache_class": (c_int32, [c_int32, c_int32]),
    "workspace_layout": (None, [POINTER(Params), POINTER(c_uint64)]),
    "validate": (c_int32, [POINTER(Params), c_char_p, c_int32]),
    "validate_combine": (c_int32, [POINTER(CombineParams), c_char_p, c_int32]),
    "check_architecture": (c_int32, [c_int32, c_int32, c_char_p, c_char_p, c_int32]),
}


@functools.cache
def _function(name: str) -> Any:
    return surface_function(name, *_SIGNATURES[name])


def surface_function(name: str, restype: Any, argtypes: list[Any]) -> Any:
    """flash3_test_<name> of the library."""
    function = getattr(load_library("libflash3_core.so"), f"flash3_test_{name}")
    function.restype, function.argtypes = restype, argtypes
    return function


def int32_array(values: Sequence[int]) -> ctypes.Array[c_int32]:
    return (c_int32 * max(1, len(values)))(*values)


def _int32s(count: int, name: str, *args: object) -> list[int]:
    """The last `count` results, which the function writes behind its other arguments."""
    out = (c_int32 * count)()
    _function(name)(*args, out)
    return list(out)


@dataclass(frozen=True)
class MaskCase:
    """A window (-1: unlimited) and the lengths of one sequence."""

    left: int
    right: int
    seqlen_q: int
    seqlen_k: int

    def sees(self, i: int, j: int) -> bool:
        """The definition, in SPEC's words."""
        diagonal = i + self.seqlen_k - self.seqlen_q
        return (
            0 <= j < self.seqlen_k
            and (self.left < 0 or j >= diagonal - self.left)
            and (self.right < 0 or j <= diagonal + self.right)
        )

    def _args(self) -> tuple[int, int, int, int]:
        return self.left, self.right, self.seqlen_q, self.seqlen_k

    def keys(self) -> list[tuple[int, int]]:
        """[key_begin, key_end) of every row."""
        flat = _int32s(2 * self.seqlen_q, "mask_keys", *self._args())
        return list(zip(flat[::2], flat[1::2], strict=True))

    def visible(self, i: int, j: int) -> bool:
        return bool(_function("mask_visible")(*self._args(), i, j))

    def block_mask_keys(self, first_row: int, first_key: int, row: int) -> tuple[int, int]:
        """Visible keys of row first_row + row, counted from first_key; may lie outside the sequence."""
        begin, end = _int32s(2, "block_mask_keys", *self._args(), first_row, first_key, row)
        return begin, end

    def tile_mask_keys(
        self, first_row: int, blocks: tuple[int, int], block_n: int, block: int, row: int
    ) -> tuple[int, int]:
        """Visible keys of row first_row + row of a tile that visits these blocks, counted from those of one of them."""
        args = (first_row, *blocks, block_n, block, row)
        begin, end = _int32s(2, "tile_mask_keys", *self._args(), *args)
        return begin, end

    def block_range(self, row_begin: int, row_end: int, block_n: int) -> tuple[int, int, int, int]:
        """begin, end, full_begin, full_end"""
        begin, end, full_begin, full_end = _int32s(4, "block_range", *self._args(), row_begin, row_end, block_n)
        return begin, end, full_begin, full_end

    def rows_of_tile(
        self, row_begin: int, row_end: int, block_n: int, row: int, rows: int, most: int
    ) -> tuple[int, int]:
        """Of the rows [row, row + rows) of that tile: how many of its last blocks none of them sees, and full_end."""
        args = (row_begin, row_end, block_n, row, rows, most)
        hidden, full_end = _int32s(2, "rows_of_tile", *self._args(), *args)
        return hidden, full_end


def piece_of(blocks: tuple[int, int, int, int], piece: int, most: int) -> tuple[int, int, int, int]:
    """Of the blocks (begin, end, full_begin, full_end) of a tile, those of one of its pieces."""
    out = int32_array(blocks)
    _function("piece_of")(piece, most, out)
    begin, end, full_begin, full_end = out
    return begin, end, full_begin, full_end


def page_walk(block_n: int, page_size: int, first_row: int, first_key: int, blocks: int) -> list[tuple[int, int, int]]:
    """Key, number of the page and row in it, of a key of each of so many blocks, from the last one on."""
    out = int32_array([0] * (3 * blocks))
    _function("page_walk")(block_n, page_size, first_row, first_key, blocks, out)
    return [(out[3 * i], out[3 * i + 1], out[3 * i + 2]) for i in range(blocks)]


def seq_span(cu_seqlens: Sequence[int] | None, seqused: Sequence[int] | None, rows: int, b: int) -> tuple[int, int]:
    """Start and length of sequence b."""
    start, length = c_int64(), c_int32()
    cu = None if cu_seqlens is None else int32_array(cu_seqlens)
    used = None if seqused is None else int32_array(seqused)
    _function("seq_span")(cu, used, rows, b, byref(start), byref(length))
    return start.value, length.value


class KeySpan(NamedTuple):
    entry: int
    named: int
    first_row: int
    len: int
    appended: int


class RowPlace(NamedTuple):
    entry: int
    row: int
    named: int
    run: int


def key_span(params: Params, b: int) -> KeySpan:
    """Where the keys of sequence b lie."""
    span = (c_int64 * 5)()
    _function("key_span")(byref(params), b, span)
    return KeySpan(*span)


def row_place(params: Params, b: int, row: int, rows: int) -> RowPlace:
    """The place of one of its rows, and how many of `rows` rows follow each other there."""
    place = (c_int64 * 4)()
    _function("row_place")(byref(params), b, row, rows, place)
    return RowPlace(*place)


def rotary_positions(params: Params, b: int, i: int) -> tuple[int, int]:
    """Positions of new row i and of query row i of sequence b."""
    positions = (c_int64 * 2)()
    _function("rotary_positions")(byref(params), b, i, positions)
    return positions[0], positions[1]


def section_widths(num_columns: int, group: int, kv_bytes_per_kv_head: int, budget: int) -> list[int]:
    """The columns of each section, in order."""
    narrow, num_wide, group = _int32s(3, "sections", num_columns, group, kv_bytes_per_kv_head, budget)
    rest = num_columns - num_wide * (narrow + group)
    return [narrow + group] * num_wide + [narrow] * (rest // narrow)


Tile = tuple[int, int, int]


def dense_tiles(num_m_blocks: int, nheads: int, batch: int, group: int, most: int) -> list[Tile]:
    """(m_block, head, batch) of every tile number, in order; at most `most` groups in a section."""
    count = num_m_blocks * nheads * batch
    return [dense_tile(num_m_blocks, nheads, batch, group, most, t) for t in range(count)]


def dense_tile(num_m_blocks: int, nheads: int, batch: int, group: int, most: int, t: int) -> Tile:
    m_block, head, entry = _int32s(3, "dense_tile", num_m_blocks, nheads, batch, group, most, t)
    return m_block, head, entry


def tiles_of_pairs(num_m_blocks: int) -> list[tuple[int, int]]:
    """The m_blocks that both thread blocks compute, of every pair of a column."""
    tile, count = _function("tile_of_pair"), _function("pairs_of")(num_m_blocks)
    return [(tile(i, 0, num_m_blocks), tile(i, 1, num_m_blocks)) for i in range(count)]


def find_sequence(first: Sequence[int], x: int) -> int:
    return int(_function("find_sequence")(int32_array(first), len(first) - 1, x))


def varlen_tiles(first_m_block: Sequence[int], nheads: int, most: Sequence[int]) -> list[Tile]:
    """(m_block, head, batch) of every tile number, in order; at most most[b] heads in a section of sequence b."""
    first, batch = int32_array(first_m_block), len(first_m_block) - 1
    count = _function("varlen_num_tiles")(first, nheads, batch)
    most_array = int32_array(most)
    tiles = [_int32s(3, "varlen_tile", first, nheads, batch, most_array, t) for t in range(count)]
    return [(m_block, head, entry) for m_block, head, entry in tiles]


def quotient(n: int, divisor: int) -> int:
    result: int = _function("quotient")(n, divisor)
    return result


def cache_class(head_dim: int, head_dim_v: int) -> int | None:
    """Head dim of the kernels for caches that hold the head dims; None where there are none."""
    return _function("cache_class")(head_dim, head_dim_v) or None


class WorkspaceLayout(NamedTuple):
    """Offsets of the parts, and the size of all of them."""

    tile_counter: int
    first_m_block: int
    entries: int
    lse_partial: int
    out_partial: int
    rotated_q: int
    size: int


def workspace_layout(params: Params) -> WorkspaceLayout:
    layout = (c_uint64 * len(WorkspaceLayout._fields))()
    _function("workspace_layout")(byref(params), layout)
    return WorkspaceLayout(*layout)


def _status(name: str, *args: object) -> tuple[int, str]:
    """Status and message."""
    message = ctypes.create_string_buffer(1024)
    status = _function(name)(*args, message, len(message))
    return status, message.value.decode()


def validate(params: Params) -> tuple[int, str]:
    """Status and message."""
    return _status("validate", byref(params))


def validate_combine(params: CombineParams) -> tuple[int, str]:
    """Status and message."""
    return _status("validate_combine", byref(params))


def check_architecture(device: int, capability: int, built: str) -> tuple[int, str]:
    """Status and message."""
    return _status("check_architecture", device, capability, built.encode())
