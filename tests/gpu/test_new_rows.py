"""A decoding step with one new row and one query for every sequence: the kernel does the work of the append itself
(core::appends_itself). The thread block that has a tile's last keys writes its row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.gpu.kvcache_problem import call, check, check_same_bits, on_device
from tests.gpu.machine import get, same_bits, wait
from tests.host.kvcache_cases import CacheCase

pytestmark = pytest.mark.usefixtures("cuda")  # the host engine has one way to append

PAGE_SIZES = (None, 1, 16, 64, 256)
# Rows before the call: none, and so many that the new one is the last or the first of a block, or in its second half.
FILLED = (0, 700, 63, 64, 127, 128, 31, 32, 1, 333)
# Query heads, KV heads; warps alone compute up to eight rows.
HEADS = ((8, 2), (8, 1), (3, 3), (7, 1), (32, 1), (24, 2), (48, 1))


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize(
    ("head_dim", "head_dim_v"),
    [(128, 128), (64, 64), (96, 96), (192, 192), (256, 256), (40, 40), (72, 104), (192, 128), (64, 256), (256, 64)],
)
@pytest.mark.parametrize("by_warps", [True, False])
def test_every_head_dim(by_warps: bool, head_dim: int, head_dim_v: int, page_size: int | None) -> None:
    heads = [(h, h_k) for h, h_k in HEADS if (h // h_k <= 8) == by_warps]
    nheads, nheads_k = heads[(head_dim + head_dim_v // 8) % len(heads)]
    check(
        CacheCase(
            1, 701, page_size, ("bfloat16", "float16")[head_dim_v // 8 % 2], batch=len(FILLED), nheads=nheads,
            nheads_k=nheads_k, head_dim=head_dim, head_dim_v=head_dim_v, filled=FILLED, new="equal",
            rotary_dim=head_dim // 16 * 16, interleaved=head_dim_v % 64 == 0, sinks=head_dim_v % 64 != 0,
        )
    )  # fmt: skip


@pytest.mark.parametrize("rotary_seqlens", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [0, 16, 48, 64, 128])
@pytest.mark.parametrize("page_size", [None, 1, 64])
def test_every_rotation(page_size: int | None, rotary_dim: int, interleaved: bool, rotary_seqlens: bool) -> None:
    check(
        CacheCase(
            1, 701, page_size, "bfloat16", batch=len(FILLED), nheads=8, nheads_k=2, head_dim=128, filled=FILLED,
            new="equal", rotary_dim=rotary_dim, interleaved=interleaved, rotary_seqlens=rotary_seqlens,
            causal=rotary_dim % 32 == 0, batch_idx=rotary_seqlens,
        )
    )  # fmt: skip


@pytest.mark.parametrize("page_size", [None, 16, 64])
@pytest.mark.parametrize(("nheads", "nheads_k"), HEADS)
@pytest.mark.parametrize(("batch", "keys"), [(1, 130), (1, 9000), (3, 6000), (40, 1500), (140, 300)])
def test_tiles_that_are_cut(batch: int, keys: int, nheads: int, nheads_k: int, page_size: int | None) -> None:
    """Alike, and elsewhere: one piece has the new row, whichever it is."""
    filled = tuple(keys - 1 - (61 * n if keys < 1000 else n) % keys for n in range(batch))
    check(
        CacheCase(
            1, keys, page_size, "float16", batch=batch, nheads=nheads, nheads_k=nheads_k, head_dim=128, filled=filled,
            new="equal", rotary_dim=128, interleaved=False,
        )
    )  # fmt: skip


def decoding(page_size: int | None) -> dict[str, Any]:
    """NumPy arguments of five sequences in 960 rows each."""
    return CacheCase(
        1, 960, page_size, "bfloat16", batch=5, nheads=8, nheads_k=2, head_dim=128, filled=(900, 17, 64, 500, 1),
        new="equal",
    ).arguments()  # fmt: skip


def written(arguments: dict[str, Any]) -> tuple[dict[str, Any], tuple[Any, Any]]:
    """Device arguments behind a call, and its results."""
    device = on_device(arguments)
    result = call(device)
    wait()
    return device, result


@pytest.mark.parametrize("page_size", [None, 1, 64])
def test_a_full_sequence_gets_no_row(page_size: int | None) -> None:
    """It attends to what it has, as without new rows."""
    arguments = decoding(page_size)
    for name in ("k_cache", "v_cache"):
        arguments[name] = np.nan_to_num(arguments[name].astype(np.float32)).astype(arguments[name].dtype)
    own: Any = 3
    if page_size is not None:  # every entry names a page, also those behind the rows of before
        table = arguments["page_table"]
        table[:] = np.arange(table.size).reshape(table.shape)
        own = table[3]
    arguments["cache_seqlens"][3] = 960
    device, (out, _) = written(arguments)
    want, _ = call(on_device({name: x for name, x in arguments.items() if name not in ("k", "v")}))
    wait()
    for name in ("k_cache", "v_cache"):
        assert same_bits(arguments[name][own], get(device[name])[own])
        assert not same_bits(arguments[name], get(device[name]))
    found, right = (get(x)[3].astype(np.float32) for x in (out, want))
    assert np.allclose(found, right, rtol=2**-7, atol=1e-3)


@pytest.mark.parametrize("page_size", [1, 64])
def test_a_page_that_does_not_exist_gets_no_row(page_size: int) -> None:
    """A wrong page id leads nowhere: nothing but the rows of the other sequences is written."""
    arguments = decoding(page_size)
    arguments["page_table"][0, 900 // page_size] = 1 << 28
    device, _ = written(arguments)
    for name in ("k_cache", "v_cache"):
        changed = (arguments[name].view(np.uint16) != get(device[name]).view(np.uint16)).any(-1).any(-1)
        rows = {tuple(int(i) for i in place) for place in np.argwhere(changed)}
        table, filled = arguments["page_table"], arguments["cache_seqlens"]
        assert rows == {(int(table[b, n // page_size]), int(n % page_size)) for b, n in enumerate(filled) if b != 0}


@pytest.mark.parametrize("page_size", [None, 1, 64])
def test_wrong_lengths_are_clamped(page_size: int | None) -> None:
    """As if they were 0 or all rows, and positions the last one of the tables."""
    case = CacheCase(
        1, 960, page_size, "bfloat16", batch=4, nheads=8, nheads_k=2, head_dim=128, filled=(0, 959, 64, 500),
        new="equal", rotary_dim=64, rotary_seqlens=True,
    )  # fmt: skip
    right = case.arguments()
    rows = len(right["rotary_cos"])
    right["rotary_seqlens"] = np.array([0, 5, rows - 1, 7], np.int32)
    wrong = {**right, "rotary_seqlens": np.array([-3, 5, 1 << 30, 7], np.int32)}
    wrong["cache_seqlens"] = right["cache_seqlens"].copy()
    wrong["cache_seqlens"][0] = -(1 << 30)
    want, results = written(right)
    found, results_too = written(wrong)
    assert all(same_bits(x, y) for x, y in zip(results, results_too, strict=True))
    for name in ("k_cache", "v_cache"):
        assert same_bits(want[name], found[name])


def test_a_batch_index_that_names_nothing_gets_no_row() -> None:
    arguments = CacheCase(
        1, 960, None, "bfloat16", batch=4, nheads=8, nheads_k=2, head_dim=128, new="equal", batch_idx=True,
        filled=(900, 17, 64, 500),
    ).arguments()  # fmt: skip
    arguments["cache_batch_idx"][2] = 1 << 28
    device, _ = written(arguments)
    changed = (arguments["k_cache"].view(np.uint16) != get(device["k_cache"]).view(np.uint16)).any(-1).any(-1)
    places = zip(arguments["cache_batch_idx"], arguments["cache_seqlens"], strict=True)
    right = {(int(entry), int(n)) for b, (entry, n) in enumerate(places) if b != 2}
    assert {tuple(int(i) for i in place) for place in np.argwhere(changed)} == right


@pytest.mark.parametrize("page_size", [None, 1, 64])
def test_every_run_gives_the_same_bits(page_size: int | None) -> None:
    case = CacheCase(
        1, 9000, page_size, "float16", batch=2, nheads=8, nheads_k=2, head_dim=128, filled=(8999, 8000), new="equal",
        rotary_dim=128, interleaved=False,
    )  # fmt: skip
    check_same_bits(case)
