"""flash_attn_with_kvcache and page_table after FlashAttention-3's cache tests, under its error rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pyflash3 import flash_attn_varlen_func, flash_attn_with_kvcache
from tests.gpu.kvcache_problem import call, check, on_device, packed, want
from tests.gpu.kvcache_protocol import MASKS, ROTARY, Case, selection, title
from tests.gpu.machine import HOST, bits, get, int32, normal, poisoned, put, same_bits, wait
from tests.gpu.problem import judge
from tests.host.kvcache_cases import CacheCase

Note = Callable[[str, object], None]


@pytest.mark.parametrize("case", selection(), ids=title)
def test_protocol(case: Case, record_property: Note) -> None:
    for name, value in check(case.cache, num_splits=case.num_splits).items():
        record_property(name, value)


@pytest.mark.parametrize("seqlen_q", [2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("page_size", [None, 16, 64])
@pytest.mark.parametrize(("nheads", "nheads_k", "dim"), [(32, 8, 128), (6, 6, 64), (16, 1, 256)])
def test_speculative_decoding(nheads: int, nheads_k: int, dim: int, page_size: int | None, seqlen_q: int) -> None:
    case = CacheCase(
        seqlen_q, 700, page_size, "bfloat16", nheads=nheads, nheads_k=nheads_k, head_dim=dim, new="equal", causal=True,
        rotary_dim=dim, interleaved=False, full=True, seed=seqlen_q,
    )  # fmt: skip
    check(case)


@pytest.mark.parametrize("right", [0, 1, 6])
@pytest.mark.parametrize("page_size", [None, 1, 64])
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_a_few_queries_and_a_diagonal(dim: int, page_size: int | None, right: int) -> None:
    """Some sequences have fewer keys than queries."""
    filled = (700, 1, 3, 0, 64, 65, 5, 129)
    check(
        CacheCase(
            5, 700, page_size, "float16", batch=len(filled), nheads=8, nheads_k=2, head_dim=dim, window=(-1, right),
            filled=filled,
        )
    )  # fmt: skip


@pytest.mark.usefixtures("cuda")  # the host engine has no warps
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 31, 32, 33, 64])
@pytest.mark.parametrize("page_size", [None, 1, 64])
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_rows_of_a_tile(dim: int, page_size: int | None, rows: int) -> None:
    """Up to 32 of them a warp computes eight each, otherwise sixteen."""
    filled = (700, 1, 0, 64, 333)
    check(CacheCase(1, 700, page_size, "bfloat16", batch=5, nheads=rows, nheads_k=1, head_dim=dim, filled=filled))


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("page_size", [None, 16, 64])
@pytest.mark.parametrize(
    ("batch", "keys", "nheads_k"),
    [(1, 130, 1), (1, 9000, 2), (3, 6000, 1), (8, 2100, 1), (40, 1500, 1)],
)
def test_tiles_that_are_cut_alike(batch: int, keys: int, nheads_k: int, page_size: int | None) -> None:
    """Pieces take turns with key blocks; there may be more of them than blocks."""
    filled = tuple(keys - n % 3 for n in range(batch))
    check(
        CacheCase(
            2, keys, page_size, "bfloat16", batch=batch, nheads=16, nheads_k=nheads_k, head_dim=128, filled=filled,
            causal=True,
        )
    )  # fmt: skip


@pytest.mark.parametrize("seqlen_q", [1, 4])
@pytest.mark.parametrize("page_size", [None, 1, 64, 256])
@pytest.mark.parametrize(
    ("nheads", "nheads_k", "dim"), [(32, 8, 128), (8, 1, 128), (8, 4, 64), (8, 2, 96), (4, 2, 192), (8, 2, 256)]
)
def test_many_tiles_in_a_row(nheads: int, nheads_k: int, dim: int, page_size: int | None, seqlen_q: int) -> None:
    """Sequences of few keys, of none in between: what is fetched for the next tile while one is computed."""
    rng = np.random.default_rng(dim + nheads_k)
    batch = 20 if HOST else 300
    filled = rng.integers(1, 512, batch) * (rng.random(batch) > 0.3)
    check(
        CacheCase(
            seqlen_q, 512, page_size, ("bfloat16", "float16")[nheads_k % 2], batch=batch, nheads=nheads,
            nheads_k=nheads_k, head_dim=dim, causal=seqlen_q > 1, filled=tuple(map(int, filled)),
        )
    )  # fmt: skip


@pytest.mark.parametrize("head_dim_v", [64, 128, 256])
@pytest.mark.parametrize("page_size", [None, 1, 64])
def test_a_head_dim_of_v_of_its_own(page_size: int | None, head_dim_v: int) -> None:
    check(CacheCase(3, 300, page_size, "bfloat16", head_dim=192, head_dim_v=head_dim_v, new="equal", causal=True))


@pytest.mark.parametrize("own_positions", [False, True])
@pytest.mark.parametrize("mask", MASKS[:3], ids=str)
@pytest.mark.parametrize(("fraction", "interleaved"), ROTARY[1:])
def test_rotary_positions(mask: dict[str, Any], own_positions: bool, fraction: float, interleaved: bool) -> None:
    case = CacheCase(
        6, 190, 4, "float16", new="ragged", rotary_dim=int(64 * fraction), interleaved=interleaved,
        rotary_seqlens=own_positions, packed_q=True, **mask,
    )  # fmt: skip
    check(case)


@pytest.mark.parametrize("page_size", [None, 3, 64])
@pytest.mark.parametrize("new", ["none", "equal"])
def test_more_new_rows_than_a_block(page_size: int | None, new: str) -> None:
    check(CacheCase(600, 1000, page_size, "bfloat16", head_dim=128, new=new, causal=True, rotary_dim=128, leftpad=True))


def test_an_int_and_no_lengths() -> None:
    arguments = CacheCase(2, 300, None, "bfloat16").arguments()
    for name in ("k_cache", "v_cache"):
        arguments[name] = np.nan_to_num(arguments[name].astype(np.float32)).astype(arguments[name].dtype)
    device = on_device(arguments)
    for value, length in ((170, 170), (np.int64(1), 1), (0, 0), (None, 300)):
        device["cache_seqlens"] = value
        out, lse = call(device)
        wait()
        right = want(arguments | {"cache_seqlens": np.full(3, length, np.int32)})
        judge(right.problem, *packed(out, lse), right.result)


def test_a_new_out_and_strided_arrays() -> None:
    case = CacheCase(3, 200, 16, "float16", new="equal", causal=True, head_dim=64, head_dim_v=64)
    arguments = case.arguments()
    device = on_device(arguments)
    want_out, want_lse = call(device)
    other = on_device(arguments)
    # Caches as (2, heads, pages, rows, columns), q and new rows with heads before rows.
    pages, rows, heads, dim = other["k_cache"].shape
    both = poisoned((2, heads, pages, rows, dim + 8), "float16")
    for i, name in enumerate(("k_cache", "v_cache")):
        view = both[i].transpose(1, 2, 0, 3)[..., :dim]
        view[...] = other[name]
        other[name] = view
    for name in ("q", "k", "v"):
        other[name] = put(np.ascontiguousarray(arguments[name].swapaxes(1, 2))).swapaxes(1, 2)
    out, lse = flash_attn_with_kvcache(**other, return_lse=True)
    wait()
    assert same_bits(out, want_out)
    assert same_bits(lse, want_lse)
    for name in ("k_cache", "v_cache"):
        assert (get(other[name]).view(np.uint16) == get(device[name]).view(np.uint16)).all()
    assert (get(both[..., dim:]).view(np.uint16) == 0x7FFF).all(), "columns beside the cache are written"


@pytest.mark.parametrize("page_size", [1, 16, 64, 100])
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_varlen_with_a_page_table(dim: int, page_size: int) -> None:
    """The same bits as flash_attn_with_kvcache of the same arrays."""
    case = CacheCase(70, 500, page_size, "bfloat16", head_dim=dim, packed_q=True, causal=True, full=True)
    device = on_device(case.arguments())
    want_out, want_lse = call(device)
    out, lse = flash_attn_varlen_func(
        device["q"], device["k_cache"], device["v_cache"], device["cu_seqlens_q"], None, 70, 500,
        seqused_k=device["cache_seqlens"], causal=True, page_table=device["page_table"],
        out=poisoned(device["q"].shape, "bfloat16"), return_lse=True,
    )  # fmt: skip
    wait()
    assert same_bits(out, want_out)
    assert same_bits(lse, want_lse)


@pytest.mark.parametrize("num_splits", [0, 1, 3])
def test_a_dense_cache_and_its_pages_give_what_packed_keys_give(num_splits: int) -> None:
    """The formula does not care where keys lie; one page size per way of loading them."""
    lengths, dim = [1, 63, 64, 65, 300, 513], 128
    q = normal((len(lengths), 1, 8, dim), "bfloat16", 1)
    k, v = (normal((len(lengths), 513, 2, dim), "bfloat16", seed) for seed in (2, 3))
    outs = []
    for page_size in (None, 1, 12, 27, 19 if HOST else 171, 513):
        arguments: dict[str, Any] = {"q": q, "cache_seqlens": int32(lengths), "k_cache": k, "v_cache": v}
        if page_size is not None:
            columns = -(-513 // page_size)
            table = np.random.default_rng(page_size).permutation(len(lengths) * columns).reshape(-1, columns)
            for name in ("k_cache", "v_cache"):
                pages = poisoned((table.size * page_size, 2, dim), "bfloat16")
                rows = table[:, np.arange(513) // page_size] * page_size + np.arange(513) % page_size
                bits(pages)[put(rows)] = bits(arguments[name])
                arguments[name] = pages.reshape(table.size, page_size, 2, dim)
            arguments["page_table"] = int32(table)
        outs.append(flash_attn_with_kvcache(**arguments, num_splits=num_splits))
    wait()
    first = get(outs[0]).astype(np.float32)
    for out in outs[1:]:
        assert np.abs(get(out).astype(np.float32) - first).max() <= 2.0**-7 * np.abs(first).max()


@pytest.mark.parametrize("sequences", [0, 3])
def test_nothing_to_do(sequences: int) -> None:
    """No sequence, and sequences without a key."""
    q = normal((sequences, 2, 4, 64), "bfloat16", 1)
    cache = poisoned((sequences, 40, 2, 64), "bfloat16")
    out, lse = call({"q": q, "k_cache": cache, "v_cache": cache, "cache_seqlens": int32([0] * sequences)})
    wait()
    assert not get(out).astype(np.float32).any()
    assert np.isneginf(get(lse)).all()
