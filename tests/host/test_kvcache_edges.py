"""Edges of the KV cache on the host engine: the same bits in every layout, strides, sharing, empty things."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pyflash3 import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache, reference
from tests.host.kvcache_cases import CacheCase, equal

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32]


def normal(*shape: int, dtype: Any = np.float32, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


def ints(*values: int) -> Any:
    return np.array(values, np.int32)


def paged(x: Any, page_size: int, seed: int = 0) -> tuple[Any, Any]:
    """(pages, page_table) of a dense cache (batch, rows, ...), with NaN in all other rows."""
    batch, rows = x.shape[:2]
    columns = -(-rows // page_size)
    table = np.random.default_rng(seed).permutation(batch * columns + 5)[: batch * columns].reshape(batch, columns)
    pages = np.full((batch * columns + 5, page_size, *x.shape[2:]), np.nan, x.dtype)
    for b in range(batch):
        for j in range(rows):
            pages[table[b, j // page_size], j % page_size] = x[b, j]
    return pages, table.astype(np.int32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("page_size", [1, 2, 7, 64, 100, 300])
def test_pages_give_the_bits_of_dense_keys(dtype: Any, page_size: int) -> None:
    q, k, v = (
        normal(2, 5, 4, 64, dtype=dtype),
        normal(2, 210, 2, 64, dtype=dtype, seed=1),
        normal(2, 210, 2, 64, seed=2),
    )
    v = v.astype(dtype)
    want = flash_attn_func(q, k, v, causal=True, return_lse=True)
    k_pages, table = paged(k, page_size)
    v_pages, _ = paged(v, page_size)
    lengths = ints(210, 210)
    got = flash_attn_with_kvcache(
        q, k_pages, v_pages, cache_seqlens=lengths, page_table=table, causal=True, return_lse=True
    )
    for a, b in zip(got, want, strict=True):
        equal(a, b)
    packed = flash_attn_varlen_func(
        q.reshape(10, 4, 64), k_pages, v_pages, ints(0, 5, 10), None, seqused_k=lengths, page_table=table, causal=True
    )
    equal(packed.reshape(want[0].shape), want[0])


def test_left_padding_gives_the_bits_of_the_keys_behind_it() -> None:
    q, k, v = normal(1, 6, 4, 64), normal(1, 150, 2, 64, seed=1), normal(1, 150, 2, 64, seed=2)
    want = flash_attn_func(q, k[:, 37:], v[:, 37:], window_size=(50, 0))
    got = flash_attn_with_kvcache(q, k, v, cache_leftpad=ints(37), window_size=(50, 0))
    equal(got, want)


@pytest.mark.parametrize("seqlen_q", [1, 9])
def test_a_whole_cache_without_lengths(seqlen_q: int) -> None:
    q, k, v = normal(2, seqlen_q, 4, 64), normal(2, 70, 2, 64, seed=1), normal(2, 70, 2, 64, seed=2)
    equal(flash_attn_with_kvcache(q, k, v), flash_attn_func(q, k, v))
    k_pages, table = paged(k, 10)
    v_pages, _ = paged(v, 10)
    equal(flash_attn_with_kvcache(q, k_pages, v_pages, page_table=table), flash_attn_func(q, k, v))
    cu = ints(*range(0, 3 * seqlen_q, seqlen_q))
    rows = q.reshape(-1, 4, 64)
    got = flash_attn_varlen_func(rows, k_pages, v_pages, cu, None, page_table=table)
    equal(got.reshape(q.shape), flash_attn_func(q, k, v))


@pytest.mark.parametrize("kind", [int, np.int64])
def test_one_length_for_all(kind: Any) -> None:
    q, k, v = normal(2, 3, 4, 64), normal(2, 70, 2, 64, seed=1), normal(2, 70, 2, 64, seed=2)
    want = flash_attn_with_kvcache(q, k, v, cache_seqlens=ints(33, 33))
    equal(flash_attn_with_kvcache(q, k, v, cache_seqlens=kind(33)), want)
    rows = q.reshape(6, 4, 64)
    got = flash_attn_with_kvcache(rows, k, v, cache_seqlens=kind(33), cu_seqlens_q=ints(0, 3, 6))
    equal(got.reshape(want.shape), want)


def test_decoding_step_by_step_equals_everything_at_once() -> None:
    k, v, q = normal(2, 40, 2, 64, seed=1), normal(2, 40, 2, 64, seed=2), normal(2, 40, 4, 64)
    k_cache, v_cache = np.full((2, 50, 2, 64), np.nan, np.float32), np.full((2, 50, 2, 64), np.nan, np.float32)
    want = flash_attn_func(q, k, v, causal=True)
    for step in range(40):
        row = slice(step, step + 1)
        out = flash_attn_with_kvcache(
            q[:, row], k_cache, v_cache, k[:, row], v[:, row], cache_seqlens=step, causal=True
        )
        np.testing.assert_allclose(out, want[:, row], atol=2e-6)
    equal(k_cache[:, :40], k)
    assert np.isnan(k_cache[:, 40:]).all()


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("threads", ["1", "5"])
def test_threads_and_instruction_sets(isa: str, threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CacheCase(40, 300, 4, "float16", batch=7, new="ragged", rotary_dim=32, causal=True, leftpad=True)
    first, second = case.arguments(), case.arguments()
    monkeypatch.setenv("FLASH3_HOST_ISA", isa)
    monkeypatch.setenv("PYFLASH3_NUM_THREADS", "2")
    try:
        want, _ = case.run(first)
    except NotImplementedError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("PYFLASH3_NUM_THREADS", threads)
    got, _ = case.run(second)
    equal(got, want)
    equal(second["k_cache"], first["k_cache"])


def test_arguments_that_change_nothing() -> None:
    case = CacheCase(3, 300, 16, "bfloat16", new="equal", causal=True, packed_q=True)
    want, want_lse = case.run(case.arguments())
    for more in ({"num_splits": 256}, {"num_splits": 3}, {"pack_gqa": True}, {"sm_margin": 5}, {"max_seqlen_q": 1}):
        got, lse = case.run(case.arguments(), **more)
        equal(got, want)
        equal(lse, want_lse)


def test_strided_caches_and_out() -> None:
    q, k, v = normal(2, 3, 4, 32), normal(2, 60, 2, 32, seed=1), normal(2, 60, 2, 32, seed=2)
    new_k, new_v = normal(2, 2, 3, 32, seed=3).swapaxes(1, 2)[:, :2], normal(2, 2, 3, 32, seed=4).swapaxes(1, 2)[:, :2]
    # (kv, heads, batch, rows, head_dim) seen as (batch, rows, heads, head_dim)
    both = np.full((2, 2, 2, 66, 40), 7.0, np.float32)
    k_cache, v_cache = both[0].transpose(1, 2, 0, 3)[..., 4:36], both[1].transpose(1, 2, 0, 3)[..., 4:36]
    k_cache[:, :60], v_cache[:, :60] = k, v
    out = np.full((2, 4, 3, 32), 7.0, np.float32).swapaxes(1, 2)
    table = normal(80, 32, seed=5)
    cos, sin = table[:, :8], table[:, 8:16]  # rows of one array of both
    options: dict[str, Any] = {"rotary_cos": cos, "rotary_sin": sin, "cache_seqlens": ints(50, 60), "causal": True}
    want, _, want_k, want_v = reference.attention_with_kvcache(q, k_cache, v_cache, new_k, new_v, **options)
    assert flash_attn_with_kvcache(q, k_cache, v_cache, new_k, new_v, out=out, **options) is out
    np.testing.assert_allclose(out, want, atol=1e-5)
    np.testing.assert_allclose(k_cache, want_k, atol=1e-5)
    equal(v_cache, want_v)
    assert (both[..., :4] == 7.0).all()
    assert (both[..., 36:] == 7.0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [True, False])
def test_rotary_gives_the_bits_of_rows_turned_beforehand(dtype: Any, interleaved: bool) -> None:
    """So the rounding of q is that of the new keys: what a GPU computes too."""
    q, k, v = (normal(2, 5, h, 32, dtype=dtype, seed=h + 3) for h in (4, 2, 2))
    angle = np.random.default_rng(1).uniform(0, 6, (20, 8))
    cos, sin = np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)
    half = np.arange(8)
    first, second = (2 * half, 2 * half + 1) if interleaved else (half, half + 8)

    def turned(x: Any) -> Any:
        a, b = x[..., first].astype(np.float32), x[..., second].astype(np.float32)
        c, s = (table[7:12, None].astype(np.float32) for table in (cos, sin))
        y = x.copy()
        y[..., first], y[..., second] = (a * c - b * s).astype(dtype), (a * s + b * c).astype(dtype)
        return y

    caches = [normal(2, 15, 2, 32, dtype=dtype, seed=9) for _ in range(4)]
    lengths: dict[str, Any] = {"cache_seqlens": 7, "causal": True}
    got = flash_attn_with_kvcache(
        q, caches[0], caches[1], k, v, cos, sin, rotary_interleaved=interleaved, **lengths
    )  # fmt: skip
    equal(got, flash_attn_with_kvcache(turned(q), caches[2], caches[3], turned(k), v, **lengths))
    equal(caches[0], caches[2])
    equal(caches[1], caches[3])


def test_shared_pages() -> None:
    """A common prefix in common pages; each sequence adds to pages of its own."""
    prefix_k, prefix_v = normal(3, 4, 2, 64, seed=1), normal(3, 4, 2, 64, seed=2)
    k_pages, v_pages = (np.full((8, 4, 2, 64), np.nan, np.float32) for _ in range(2))
    k_pages[[5, 0, 7]], v_pages[[5, 0, 7]] = prefix_k, prefix_v
    table = ints(5, 0, 7, 2, 5, 0, 7, 6).reshape(2, 4)
    q, k, v = normal(2, 3, 4, 64), normal(2, 3, 2, 64, seed=3), normal(2, 3, 2, 64, seed=4)
    out = flash_attn_with_kvcache(q, k_pages, v_pages, k, v, cache_seqlens=12, page_table=table, causal=True)
    all_k = np.concatenate([np.stack([prefix_k.reshape(12, 2, 64)] * 2), k], 1)
    all_v = np.concatenate([np.stack([prefix_v.reshape(12, 2, 64)] * 2), v], 1)
    equal(out, flash_attn_func(q, all_k, all_v, causal=True))
    equal(k_pages[[5, 0, 7]], prefix_k)
    assert np.isnan(k_pages[[1, 3, 4]]).all()


def test_one_page_table_for_all() -> None:
    q, k, v = normal(3, 1, 4, 64), normal(1, 40, 2, 64, seed=1), normal(1, 40, 2, 64, seed=2)
    k_pages, table = paged(k, 8)
    v_pages, _ = paged(v, 8)
    got = flash_attn_with_kvcache(q, k_pages, v_pages, page_table=np.broadcast_to(table, (3, 5)))
    equal(got, flash_attn_func(q, np.repeat(k, 3, 0), np.repeat(v, 3, 0)))
    again = flash_attn_with_kvcache(q, k_pages, v_pages, page_table=table, cache_batch_idx=ints(0, 0, 0))
    equal(again, got)


def test_no_queries_still_append() -> None:
    cache = np.zeros((2, 9, 2, 16), np.float32)
    k = normal(2, 3, 2, 16)
    out = flash_attn_with_kvcache(normal(2, 0, 4, 16), cache, cache.copy(), k, k, cache_seqlens=ints(1, 6))
    assert out.shape == (2, 0, 4, 16)
    equal(cache[0, 1:4], k[0])
    equal(cache[1, 6:], k[1])
    assert not cache[0, 4:].any()


def test_nothing_to_append_and_nothing_cached() -> None:
    q, cache = normal(2, 2, 4, 16), normal(2, 9, 2, 16, seed=1)
    before = cache.copy()
    empty = np.zeros((2, 0, 2, 16), np.float32)
    out, lse = flash_attn_with_kvcache(q, cache, cache, empty, empty, cache_seqlens=ints(0, 4), return_lse=True)
    assert not out[0].any()
    assert np.isneginf(lse[0]).all()
    assert np.isfinite(lse[1]).all()
    equal(cache, before)
    out = flash_attn_with_kvcache(q, cache, cache, cache_leftpad=ints(9, 0), sinks=normal(4))
    assert not out[0].any()


def test_batch_zero() -> None:
    cache = np.zeros((0, 4, 2, 16), np.float32)
    out, lse = flash_attn_with_kvcache(
        np.zeros((0, 1, 4, 16), np.float32), cache, cache, cache_seqlens=3, return_lse=True
    )
    assert out.shape == (0, 1, 4, 16)
    assert lse.shape == (0, 4, 1)
