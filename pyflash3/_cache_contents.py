"""Checks of what the arrays of a KV cache hold, for calls with PYFLASH3_CHECK=1. All arrays are on the host here."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from . import _values
from ._cache import CacheProblem, argument_name
from ._problem import AttnProblem

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


def check(problem: AttnProblem, cache: CacheProblem, arrays: dict[str, Int32]) -> None:
    """ValueError for lengths beyond the capacity and for indices that name nothing.

    arrays holds those of cu_seqlens_q, seqused_k, page_table, cache_batch_idx, cache_leftpad, cu_seqlens_k_new and
    rotary_seqlens that the call has.
    """
    new = _new_lengths(problem.batch, cache, arrays)
    filled = _check_filled(problem, cache, arrays, new)
    leftpad = _wide(arrays.get("cache_leftpad", np.zeros(problem.batch)))
    _check_range("cache_leftpad", leftpad, filled + new, "the keys of the sequence")
    entries = _wide(arrays.get("cache_batch_idx", np.arange(problem.batch)))
    _check_range("cache_batch_idx", entries, np.full(problem.batch, cache.batch_cache - 1), "the last entry")
    if "page_table" in arrays:
        _check_pages(cache, arrays["page_table"], entries, leftpad, filled + new)
    if cache.rotary_dim:
        _check_rotary(problem, cache, arrays, filled, new)


def _wide(x: npt.NDArray[np.generic]) -> Int64:
    return x.astype(np.int64)


def _check_range(name: str, values: Int64, most: Int64, meaning: str) -> None:
    wrong = np.flatnonzero((values < 0) | (values > most))
    if wrong.size:
        i = int(wrong[0])
        raise ValueError(f"{name}[{i}] is {values[i]}; it must be from 0 to {most[i]}, {meaning}")


def _new_lengths(batch: int, cache: CacheProblem, arrays: dict[str, Int32]) -> Int64:
    if "cu_seqlens_k_new" not in arrays:
        return np.full(batch, cache.seqlen_k_new)
    _values.check_cu_seqlens("cu_seqlens_k_new", arrays["cu_seqlens_k_new"], cache.total_k_new)
    return np.diff(_wide(arrays["cu_seqlens_k_new"]))


def _check_filled(problem: AttnProblem, cache: CacheProblem, arrays: dict[str, Int32], new: Int64) -> Int64:
    capacity = cache.max_pages * cache.page_size if "page_table" in arrays else problem.rows_k
    if "seqused_k" not in arrays:
        return np.full(problem.batch, capacity)
    filled = _wide(arrays["seqused_k"])
    meaning = f"the rows that a sequence has room for ({capacity}) less the new ones"
    _check_range(argument_name(problem.kvcache, "seqused_k"), filled, capacity - new, meaning)
    return filled


def _check_pages(cache: CacheProblem, table: Int32, entries: Int64, leftpad: Int64, end: Int64) -> None:
    """Only entries in use count: those behind the last key of a sequence may hold anything."""
    columns = np.arange(cache.max_pages)
    used = columns >= leftpad[:, None] // cache.page_size
    used &= columns < -(-end[:, None] // cache.page_size)
    wrong = np.argwhere(used & ((table[entries] < 0) | (table[entries] >= cache.num_pages)))
    if wrong.size:
        entry, column = int(entries[wrong[0][0]]), int(wrong[0][1])
        raise ValueError(
            f"page_table[{entry}, {column}] is {table[entry, column]}; it must be from 0 to {cache.num_pages - 1}, the "
            "last page"
        )


def _check_rotary(
    problem: AttnProblem, cache: CacheProblem, arrays: dict[str, Int32], filled: Int64, new: Int64
) -> None:
    rows_q = np.diff(_wide(arrays["cu_seqlens_q"])) if problem.packed else np.full(problem.batch, problem.rows_q)
    if problem.window_left < 0 and problem.window_right < 0:
        rows_q = np.minimum(rows_q, 1)  # all of them have one position
    rows = np.maximum(new, rows_q)
    base = _wide(arrays["rotary_seqlens"]) if "rotary_seqlens" in arrays else filled
    name = "rotary_seqlens" if "rotary_seqlens" in arrays else argument_name(problem.kvcache, "seqused_k")
    most = np.where(rows > 0, cache.seqlen_rotary - rows, np.iinfo(np.int32).max)
    _check_range(name, base, most, f"the {cache.seqlen_rotary} positions of rotary_cos less the rows that are turned")
