"""What calls on a cache must do whichever kernel computes them; `arguments` are NumPy's, of three sequences."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyflash3 import flash_attn_with_kvcache
from tests.gpu.kvcache_problem import Arguments, call, on_device, packed, want
from tests.gpu.machine import get, put, same_bits, wait
from tests.gpu.problem import judge
from tests.gpu.test_kvcache_graphs import captured


def place(arguments: dict[str, Any], b: int, key: int) -> tuple[int, int]:
    """(entry or page, row) of a key."""
    if "page_table" not in arguments:
        return b, key
    size = arguments["k_cache"].shape[1]
    return int(arguments["page_table"][b, key // size]), key % size


def check_result(arguments: Arguments) -> None:
    right = want(arguments)
    out, lse = call(on_device(arguments))
    wait()
    judge(right.problem, *packed(out, lse), right.result)


def check_a_bad_key(arguments: Arguments, name: str, key: int) -> None:
    """A causal call whose keys are all there: of sequence 1 the rows that see the key, in the array `name`, and no
    others.
    """
    clean = call(on_device(arguments))
    right = want(arguments)
    rows, keys = arguments["q"].shape[1], int(arguments["cache_seqlens"][1])
    sees = np.arange(rows) >= key - (keys - rows)
    arguments[name][place(arguments, 1, key)] = np.nan
    out, lse = call(on_device(arguments))
    wait()
    for b in (0, 2):
        assert same_bits(out[b], clean[0][b])
        assert same_bits(lse[b], clean[1][b])
    assert np.isnan(get(out[1]).astype(np.float32)[sees]).all()
    out[1] = put(np.where(sees[:, None, None], get(clean[0][1]), get(out[1])))
    lse[1] = put(np.where(sees, get(clean[1][1]), get(lse[1])))
    judge(right.problem, *packed(out, lse), right.result)


def check_wrong_places(arguments: Arguments) -> None:
    """Pages, or batch indices, that are not there: no fault, no hang, and no other sequence is hit."""
    name = "page_table" if "page_table" in arguments else "cache_batch_idx"
    clean = call(on_device(arguments))
    for wrong in (10**6, -1, 2**31 - 1, -(2**31)):
        dirty = arguments | {name: arguments[name].copy()}
        dirty[name][1] = wrong
        out, lse = call(on_device(dirty))
        wait()
        for b in (0, 2):
            assert same_bits(out[b], clean[0][b]), wrong
            assert same_bits(lse[b], clean[1][b]), wrong


def check_packed_with_an_empty_one(arguments: Arguments) -> None:
    """The same queries packed, as those of two sequences."""
    rows = arguments["q"].shape[1]
    arguments["cu_seqlens_q"] = np.array([0, 0, 2 * rows, 3 * rows], np.int32)
    arguments["q"] = arguments["q"].reshape(-1, *arguments["q"].shape[2:])
    check_result(arguments)


def check_replays(arguments: Arguments, cuda: Any, all_lengths: list[list[int]]) -> None:
    """One captured graph, with other lengths and pages from replay to replay."""
    device = on_device(arguments)
    stream = cuda.cuda.Stream(non_blocking=True)
    with stream:
        graph, (out, lse) = captured(cuda, stream, lambda: flash_attn_with_kvcache(**device, return_lse=True))
        for lengths in all_lengths:
            arguments["cache_seqlens"][:] = lengths
            device["cache_seqlens"][...] = put(arguments["cache_seqlens"])
            if "page_table" in arguments:
                arguments["page_table"][:] = arguments["page_table"][::-1]
                device["page_table"][...] = put(arguments["page_table"])
            graph.launch(stream)
            wait(stream)
            right = want(arguments)
            judge(right.problem, *packed(out, lse), right.result)
