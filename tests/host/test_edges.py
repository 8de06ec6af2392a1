"""Edges of the contract on the host engine: empty things, isolation, memory layouts, arguments that change nothing."""

from __future__ import annotations

import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pyflash3 import flash_attn_func, flash_attn_qkvpacked_func, flash_attn_varlen_func, reference

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32]
MASKS: list[dict[str, Any]] = [{}, {"causal": True}, {"window_size": (5, 3)}, {"causal": True, "window_size": (20, -1)}]


def normal(*shape: int, dtype: Any = np.float32, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


Triple = tuple[Any, Any, Any]


def qkv(
    seqlen_q: int, seqlen_k: int, *, batch: int = 2, heads: tuple[int, int] = (4, 2), dtype: Any = np.float32
) -> Triple:
    q = normal(batch, seqlen_q, heads[0], 64, dtype=dtype, seed=1)
    k, v = (normal(batch, seqlen_k, heads[1], 64, dtype=dtype, seed=s) for s in (2, 3))
    return q, k, v


def equal(a: Any, b: Any) -> None:
    """Bit for bit, also where both are NaN."""
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(np.ascontiguousarray(a).view(np.uint8), np.ascontiguousarray(b).view(np.uint8))


def ints(*values: int) -> Any:
    return np.array(values, np.int32)


def test_batch_zero() -> None:
    out, lse = flash_attn_func(*qkv(5, 7, batch=0), return_lse=True)
    assert out.shape == (0, 5, 4, 64)
    assert lse.shape == (0, 4, 5)
    q, k, v = (x[0] for x in qkv(0, 0, batch=1))
    out, lse = flash_attn_varlen_func(q, k, v, ints(0), ints(0), return_lse=True)
    assert out.shape == (0, 4, 64)
    assert lse.shape == (4, 0)


def test_no_queries() -> None:
    out, lse = flash_attn_func(*qkv(0, 7), return_lse=True)
    assert out.shape == (2, 0, 4, 64)
    assert lse.shape == (2, 4, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_sinks", [False, True])
def test_no_keys_give_the_empty_row(dtype: Any, with_sinks: bool) -> None:
    sinks = normal(4) if with_sinks else None
    out, lse = flash_attn_func(*qkv(5, 0, dtype=dtype), sinks=sinks, return_lse=True)
    assert not out.astype(np.float32).any()
    want = np.full(4, -np.inf, np.float32) if sinks is None else sinks
    np.testing.assert_allclose(lse, np.broadcast_to(want[:, None], lse.shape), rtol=1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_rows_above_the_first_key_are_empty(packed: bool) -> None:
    q, k, v = qkv(9, 4, batch=1)
    if packed:
        args = q[0], k[0], v[0], ints(0, 9), ints(0, 4)
        out, lse = flash_attn_varlen_func(*args, causal=True, return_lse=True)
    else:
        out, lse = (x[0] for x in flash_attn_func(q, k, v, causal=True, return_lse=True))
    assert not out[:5].any()
    assert np.isneginf(lse[:, :5]).all()
    assert np.isfinite(lse[:, 5:]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_a_neighbour_sequence_never_changes_a_bit(dtype: Any, poison: float, mask: dict[str, Any]) -> None:
    lengths_q, lengths_k = (0, 37, 70, 81), (0, 50, 61, 130)
    q, k, v = (normal(n, h, 64, dtype=dtype, seed=n) for n, h in ((81, 4), (130, 2), (130, 2)))
    args = ints(*lengths_q), ints(*lengths_k)
    clean, clean_lse = flash_attn_varlen_func(q, k, v, *args, **mask, return_lse=True)
    for b in range(3):
        dirty = q.copy(), k.copy(), v.copy()
        for x, cu in zip(dirty, (lengths_q, lengths_k, lengths_k), strict=True):
            x[: cu[b]], x[cu[b + 1] :] = poison, poison
        out, lse = flash_attn_varlen_func(*dirty, *args, **mask, return_lse=True)
        own = slice(lengths_q[b], lengths_q[b + 1])
        equal(out[own], clean[own])
        equal(lse[:, own], clean_lse[:, own])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", ["k", "v"])
def test_a_hidden_key_of_the_same_sequence_never_changes_a_bit(dtype: Any, poison: float, which: str) -> None:
    q, k, v = qkv(90, 90, dtype=dtype)
    clean, clean_lse = flash_attn_func(q, k, v, window_size=(20, 4), return_lse=True)
    (k if which == "k" else v)[:, 40] = poison
    out, lse = flash_attn_func(q, k, v, window_size=(20, 4), return_lse=True)
    sees = np.zeros(90, bool)
    sees[40 - 4 : 40 + 20 + 1] = True
    equal(out[:, ~sees], clean[:, ~sees])
    equal(lse[:, :, ~sees], clean_lse[:, :, ~sees])
    ref, ref_lse = reference.attention(q, k, v, window_size=(20, 4))
    np.testing.assert_array_equal(np.isnan(out.astype(np.float32)), np.isnan(ref))
    np.testing.assert_array_equal(np.isnan(lse), np.isnan(ref_lse))


def test_unused_rows_are_neither_read_nor_written() -> None:
    q, k, v = (normal(40, 2, 64, seed=s) for s in range(3))
    cu, used_q, used_k = ints(0, 15, 40), ints(9, 0), ints(11, 25)
    poisoned = q.copy(), k.copy(), v.copy()
    poisoned[0][9:], poisoned[1][11:15], poisoned[2][11:15] = np.nan, np.nan, np.nan
    out = np.full((40, 2, 64), 7.0, np.float32)
    flash_attn_varlen_func(*poisoned, cu, cu, seqused_q=used_q, seqused_k=used_k, causal=True, out=out)
    ref, _ = reference.attention(
        q, k, v, causal=True, cu_seqlens_q=cu, cu_seqlens_k=cu, seqused_q=used_q, seqused_k=used_k
    )
    np.testing.assert_allclose(out[:9], ref[:9], atol=1e-5)
    assert (out[9:] == 7.0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_of_every_kind(dtype: Any) -> None:
    q, k, v = qkv(33, 47, dtype=dtype)
    want, want_lse = flash_attn_func(q, k, v, causal=True, return_lse=True)

    def transposed(x: Any) -> Any:  # (b, h, s, d) in memory
        return np.ascontiguousarray(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)

    def backwards(x: Any) -> Any:
        return np.ascontiguousarray(x[::-1, ::-1, ::-1])[::-1, ::-1, ::-1]

    def spread(x: Any) -> Any:  # rows, heads and columns between others
        wide = np.full((x.shape[0], 2 * x.shape[1], 3 * x.shape[2], x.shape[3] + 8), np.nan, x.dtype)
        wide[:, ::2, 1::3, 8:] = x
        return wide[:, ::2, 1::3, 8:]

    for change in (transposed, backwards, spread):
        out_memory = change(np.zeros_like(want))
        out, lse = flash_attn_func(change(q), change(k), change(v), causal=True, out=out_memory, return_lse=True)
        assert out is out_memory
        equal(out, want)
        equal(lse, want_lse)


def test_one_kv_head_broadcast_to_all() -> None:
    q, k, v = qkv(20, 30, heads=(4, 1))
    wide_k, wide_v = (np.broadcast_to(x, (2, 30, 4, 64)) for x in (k, v))
    equal(flash_attn_func(q, wide_k, wide_v), flash_attn_func(q, k, v))


def test_out_writes_nothing_else() -> None:
    q, k, v = qkv(20, 30)
    frame = np.full((4, 24, 8, 80), 5.0, np.float32)
    inner = frame[1:3, 2:22, 2:6, 8:72]
    flash_attn_func(q, k, v, out=inner)
    equal(np.ascontiguousarray(inner), flash_attn_func(q, k, v))
    inner[...] = 5.0
    assert (frame == 5.0).all()


def test_number_of_threads_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for threads in ("1", "2", "3", "7", "0"):
        monkeypatch.setenv("PYFLASH3_NUM_THREADS", threads)
        results.append(flash_attn_func(*qkv(300, 300, dtype=np.float16), causal=True, return_lse=True))
    for out, lse in results[1:]:
        equal(out, results[0][0])
        equal(lse, results[0][1])


def test_hints_change_nothing() -> None:
    q, k, v = (normal(40, 2, 64, seed=s) for s in range(3))
    cu = ints(0, 15, 40)
    want = flash_attn_varlen_func(q, k, v, cu, cu, 25, 25, causal=True)
    for max_q, max_k in ((1, 1), (0, 0), (10**6, 3), (None, None)):
        equal(flash_attn_varlen_func(q, k, v, cu, cu, max_q, max_k, causal=True), want)
    equal(flash_attn_varlen_func(q, k, v, cu, cu, causal=True, pack_gqa=True, num_splits=1, sm_margin=3), want)


def test_each_option_changes_the_result() -> None:
    q, k, v = qkv(40, 40)
    plain = flash_attn_func(q, k, v)
    slopes, sinks = np.full(4, 0.3, np.float32), np.ones(4, np.float32)
    changes: list[dict[str, Any]] = [
        {"causal": True}, {"window_size": (3, -1)}, {"window_size": (-1, 3)}, {"softcap": 1.0},
        {"alibi_slopes": slopes}, {"sinks": sinks}, {"softmax_scale": 0.5},
    ]  # fmt: skip
    results = [plain, *(flash_attn_func(q, k, v, **change) for change in changes)]
    for i, a in enumerate(results):
        for b in results[:i]:
            assert np.abs(a - b).max() > 1e-3


def test_slopes_per_batch_entry() -> None:
    q, k, v = qkv(20, 30)
    slopes = np.abs(normal(2, 4))
    both = flash_attn_func(q, k, v, alibi_slopes=slopes)
    for b in range(2):
        equal(both[b], flash_attn_func(q[b : b + 1], k[b : b + 1], v[b : b + 1], alibi_slopes=slopes[b])[0])


def test_qkvpacked() -> None:
    packed = normal(2, 20, 3, 4, 64)
    want = flash_attn_func(packed[:, :, 0], packed[:, :, 1], packed[:, :, 2], causal=True)
    equal(flash_attn_qkvpacked_func(packed, causal=True), want)
    heads = normal(2, 20, 4 + 2 + 2, 64)
    want = flash_attn_func(heads[:, :, :4], heads[:, :, 4:6], heads[:, :, 6:])
    equal(flash_attn_qkvpacked_func(heads, num_heads_q=4), want)


def test_two_threads_at_once() -> None:
    inputs = [qkv(100 + 50 * i, 200, dtype=DTYPES[i % 3]) for i in range(6)]
    want = [flash_attn_func(*x, causal=True) for x in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(5):
            if flash_attn_func(*inputs[i], causal=True).tobytes() != want[i].tobytes():
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_wrong_lengths_stay_inside_the_arrays() -> None:
    q, k, v = (normal(40, 2, 64, seed=s) for s in range(3))
    for cu in (ints(5, 90, 2), ints(-7, 2**31 - 1, -(2**31)), ints(40, 0, 40)):
        frame = np.full((60, 2, 64), 5.0, np.float32)
        used = ints(10**9, -3)
        flash_attn_varlen_func(q, k, v, cu, cu, seqused_q=used, seqused_k=used, out=frame[10:50])
        assert (frame[:10] == 5.0).all()
        assert (frame[50:] == 5.0).all()
