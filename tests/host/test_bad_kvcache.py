"""SPEC section 5 for the KV cache: one clear exception, before anything is computed or written."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pyflash3 import flash_attn_varlen_func, flash_attn_with_kvcache

F32, F16, BF16, I32 = np.float32, np.float16, ml_dtypes.bfloat16, np.int32


def zeros(*shape: int, dtype: Any = F32) -> Any:
    return np.zeros(shape, dtype)


def ints(*values: int) -> Any:
    return np.array(values, I32)


PAGED, NEW, TABLE = (12, 4, 2, 32), (3, 2, 2, 32), np.arange(12, dtype=I32).reshape(3, 4)


def call(**changes: Any) -> Any:
    """A right call with pages, new rows and rotary embedding but for the changes; nothing may be written if it fails."""
    arguments = {
        "q": zeros(3, 2, 4, 32), "k_cache": np.full(PAGED, 7.0, F32), "v_cache": np.full(PAGED, 7.0, F32),
        "k": zeros(*NEW), "v": zeros(*NEW), "cache_seqlens": ints(3, 9, 14), "page_table": TABLE,
        "rotary_cos": zeros(16, 8), "rotary_sin": zeros(16, 8), "causal": True, "out": np.full((3, 2, 4, 32), 7.0, F32),
        **changes,
    }  # fmt: skip
    written = {name: arguments[name] for name in ("k_cache", "v_cache", "out")}
    before = {name: x.copy() for name, x in written.items() if isinstance(x, np.ndarray)}
    try:
        return flash_attn_with_kvcache(**arguments)
    except Exception:
        for name, x in before.items():
            np.testing.assert_array_equal(written[name], x)
        raise


def dense(**changes: Any) -> Any:
    """The same with a dense cache."""
    cache = {"k_cache": np.full((3, 16, 2, 32), 7.0, F32), "v_cache": np.full((3, 16, 2, 32), 7.0, F32)}
    return call(**{**cache, "page_table": None, **changes})


def packed(**changes: Any) -> Any:
    """The same with packed queries and new rows."""
    lengths = {
        "cu_seqlens_q": ints(0, 1, 4, 6),
        "cu_seqlens_k_new": ints(0, 3, 3, 5),
        "out": np.full((6, 4, 32), 7.0, F32),
    }
    return call(**{"q": zeros(6, 4, 32), "k": zeros(5, 2, 32), "v": zeros(5, 2, 32), **lengths, **changes})


def read_only() -> Any:
    cache = zeros(*PAGED)
    cache.flags.writeable = False
    return cache


def broadcast() -> Any:
    return np.broadcast_to(np.full((1, 4, 2, 32), 7.0, F32), PAGED)


def misaligned() -> Any:
    return np.zeros(3 * 2 * 2 * 32 * 4 + 1, np.uint8)[1:].view(F32).reshape(NEW)


Rows = dict[str, tuple[Any, dict[str, Any], type[Exception], str]]

ROWS: Rows = {
    "cache rank": (call, {"k_cache": zeros(12, 4, 64)}, ValueError, "k_cache has shape (12, 4, 64); it must have 4 dimensions (num_pages, page_size, nheads_k, head_dim)"),
    "v cache rank": (dense, {"v_cache": zeros(16, 2, 32)}, ValueError, "v_cache has shape (16, 2, 32); it must have 4 dimensions (batch_cache, seqlen_cache, nheads_k, head_dim_v)"),
    "cache list": (call, {"k_cache": [1.0]}, TypeError, "k_cache is of type list; it must be"),
    "cache dtype": (call, {"v_cache": zeros(*PAGED, dtype=F16)}, TypeError, "v_cache has dtype float16, but q has float32; q, k_cache, v_cache and out must have the same"),
    "cache head dim": (call, {"k_cache": zeros(12, 4, 2, 40)}, ValueError, "k_cache has head_dim 40, but q has 32; they must be equal"),
    "caches differ": (call, {"v_cache": zeros(12, 5, 2, 32)}, ValueError, "v_cache has shape (12, 5, 2, 32), but k_cache has (12, 4, 2, 32); they must be equal up to the last dimension"),
    "cache heads": (call, {"k_cache": zeros(12, 4, 3, 32), "v_cache": zeros(12, 4, 3, 32)}, ValueError, "q has 4 heads and k_cache has 3; nheads must be a positive multiple of nheads_k"),
    "cache stride": (call, {"k_cache": zeros(12, 4, 2, 64)[..., ::2]}, ValueError, "k_cache has a last-dimension stride of 8 bytes; it must be contiguous"),
    "cache read-only": (call, {"k_cache": read_only()}, ValueError, "k_cache is a read-only array; it must be writable"),
    "cache overlaps": (call, {"v_cache": broadcast()}, ValueError, "v_cache has strides (0, 256, 128, 4) bytes; none may be 0, since its rows would overlap"),
    "cache batch": (dense, {"k_cache": zeros(4, 16, 2, 32), "v_cache": zeros(4, 16, 2, 32)}, ValueError, "k_cache has shape (4, 16, 2, 32), but q has batch 3; the first dimension must be equal, unless cache_batch_idx says which entries are used"),
    "no entries": (dense, {"k_cache": zeros(0, 16, 2, 32), "v_cache": zeros(0, 16, 2, 32), "cache_batch_idx": ints(0, 0, 0)}, ValueError, "k_cache has shape (0, 16, 2, 32); with cache_batch_idx the first dimension must be at least 1"),
    "no pages": (call, {"k_cache": zeros(0, 4, 2, 32), "v_cache": zeros(0, 4, 2, 32)}, ValueError, "k_cache has shape (0, 4, 2, 32); with page_table it must have at least one page of one row"),
    "empty pages": (call, {"k_cache": zeros(4, 0, 2, 32), "v_cache": zeros(4, 0, 2, 32)}, ValueError, "k_cache has shape (4, 0, 2, 32); with page_table it must have at least one page"),
    "table dtype": (call, {"page_table": TABLE.astype(np.int64)}, TypeError, "page_table has dtype int64; it must be int32"),
    "table rank": (call, {"page_table": TABLE[0]}, ValueError, "page_table has shape (4,); it must be (batch, max_pages) with at least one page"),
    "table columns": (call, {"page_table": TABLE[:, :0]}, ValueError, "page_table has shape (3, 0); it must be (batch, max_pages) with at least one page"),
    "table rows": (call, {"page_table": TABLE[:2]}, ValueError, "page_table has shape (2, 4), but q has batch 3; the first dimension must be equal"),
    "table stride": (call, {"page_table": np.repeat(TABLE, 2, 1)[:, ::2]}, ValueError, "page_table has a last-dimension stride of 8 bytes; it must be contiguous"),
    "table backwards": (call, {"page_table": TABLE[::-1]}, ValueError, "page_table has strides (-16, 4) bytes; they must be positive multiples of 4 bytes, or 0"),
    "table list": (call, {"page_table": [[0]]}, TypeError, "page_table is of type list; it must be"),
    "seqlens dtype": (call, {"cache_seqlens": zeros(3)}, TypeError, "cache_seqlens has dtype float32; it must be int32"),
    "seqlens shape": (call, {"cache_seqlens": ints(1, 2)}, ValueError, "cache_seqlens has shape (2,); it must be (3,), that is (batch,)"),
    "seqlens negative": (call, {"cache_seqlens": -1}, ValueError, "cache_seqlens is -1; it must be from 0 to 2147483647"),
    "seqlens too large": (call, {"cache_seqlens": 2**31}, ValueError, "cache_seqlens is 2147483648; it must be from 0 to 2147483647"),
    "seqlens missing": (call, {"cache_seqlens": None}, ValueError, "cache_seqlens is None; with k it must be given, as it says where the new rows go"),
    "index dtype": (call, {"cache_batch_idx": np.arange(3)}, TypeError, "cache_batch_idx has dtype int64; it must be int32"),
    "index shape": (call, {"cache_batch_idx": ints(0, 1)}, ValueError, "cache_batch_idx has shape (2,); it must be (3,), that is (batch,)"),
    "leftpad dtype": (call, {"cache_leftpad": zeros(3)}, TypeError, "cache_leftpad has dtype float32; it must be int32"),
    "leftpad shape": (call, {"cache_leftpad": ints(1)}, ValueError, "cache_leftpad has shape (1,); it must be (3,), that is (batch,)"),
    "v missing": (call, {"v": None}, ValueError, "v is None, but k is given; both or neither must be"),
    "k missing": (call, {"k": None}, ValueError, "k is None, but v is given; both or neither must be"),
    "v without v_cache": (call, {"v_cache": None, "d_v": 32}, ValueError, "v is given, but v_cache is None; it must be None too, as values are columns of k"),
    "no v_cache": (call, {"v_cache": None, "v": None}, TypeError, "v_cache is None; it must be an array, or d_v the number of columns of k that are the values"),
    "v_cache and d_v": (call, {"d_v": 32}, ValueError, "d_v is 32, but v_cache is given; one of them must be None"),
    "d_v wide": (dense, {"v_cache": None, "v": None, "d_v": 40}, ValueError, "d_v is 40; with k_cache of head_dim 32 it must be a multiple of 8 from 8 to 32"),
    "k rank": (call, {"k": zeros(2, 2, 32)}, ValueError, "k has shape (2, 2, 32); it must have 4 dimensions (batch, seqlen_new, nheads_k, head_dim)"),
    "k packed rank": (packed, {"k": zeros(1, 5, 2, 32)}, ValueError, "k has shape (1, 5, 2, 32); it must have 3 dimensions (total_new, nheads_k, head_dim)"),
    "k dtype": (call, {"k": zeros(*NEW, dtype=BF16)}, TypeError, "k has dtype bfloat16, but q has float32; they must have the same"),
    "k shape": (call, {"k": zeros(2, 2, 2, 32)}, ValueError, "k has shape (2, 2, 2, 32); with this k_cache it must be (3, 2, 2, 32)"),
    "v shape": (call, {"v": zeros(3, 2, 2, 40)}, ValueError, "v has shape (3, 2, 2, 40); with this v_cache it must be (3, 2, 2, 32)"),
    "k and v differ": (call, {"v": zeros(3, 4, 2, 32)}, ValueError, "v has shape (3, 4, 2, 32), but k has (3, 2, 2, 32); they must be equal up to the last dimension"),
    "k stride": (call, {"k": zeros(3, 2, 2, 64)[..., ::2]}, ValueError, "k has a last-dimension stride of 8 bytes; it must be contiguous"),
    "k address": (call, {"k": misaligned()}, ValueError, "it must be a multiple of 4 bytes"),
    "new lengths alone": (call, {"k": None, "v": None, "cu_seqlens_k_new": ints(0, 1, 2, 3), "rotary_cos": None, "rotary_sin": None}, ValueError, "cu_seqlens_k_new is given, but k is None; both or neither must be given"),
    "new lengths": (packed, {"cu_seqlens_k_new": ints(0, 3, 5)}, ValueError, "cu_seqlens_k_new has shape (3,); it must be (4,), that is (batch + 1,)"),
    "new lengths dtype": (packed, {"cu_seqlens_k_new": np.array([0, 1, 2, 5])}, TypeError, "cu_seqlens_k_new has dtype int64; it must be int32"),
    "q rank": (packed, {"q": zeros(1, 6, 4, 32)}, ValueError, "q has shape (1, 6, 4, 32); it must have 3 dimensions (total_q, nheads, head_dim)"),
    "q lengths": (packed, {"cu_seqlens_q": ints(0, 1, 6)}, ValueError, "cache_seqlens has shape (3,); it must be (2,), that is (batch,)"),
    "sin missing": (call, {"rotary_sin": None}, ValueError, "rotary_sin is None, but rotary_cos is given; both or neither must be"),
    "cos missing": (call, {"rotary_cos": None}, ValueError, "rotary_cos is None, but rotary_sin is given; both or neither must be"),
    "rotary alone": (call, {"k": None, "v": None}, ValueError, "rotary_cos is given, but k is None; rotary embedding turns q and new rows together"),
    "rotary rank": (call, {"rotary_cos": zeros(16, 1, 8)}, ValueError, "rotary_cos has shape (16, 1, 8); it must have 2 dimensions (seqlen_rotary, rotary_dim / 2)"),
    "rotary dtype": (call, {"rotary_sin": zeros(16, 8, dtype=F16)}, TypeError, "rotary_sin has dtype float16, but q has float32; they must have the same"),
    "rotary dim": (call, {"rotary_cos": zeros(16, 12), "rotary_sin": zeros(16, 12)}, ValueError, "rotary_cos has shape (16, 12); it must be (seqlen_rotary, rotary_dim / 2) with at least one row and a rotary_dim that is a multiple of 16 from 16 to head_dim (32)"),
    "rotary dim large": (call, {"rotary_cos": zeros(16, 24), "rotary_sin": zeros(16, 24)}, ValueError, "rotary_cos has shape (16, 24); it must be"),
    "rotary empty": (call, {"rotary_cos": zeros(0, 8), "rotary_sin": zeros(0, 8)}, ValueError, "rotary_cos has shape (0, 8); it must be"),
    "rotary shapes": (call, {"rotary_sin": zeros(17, 8)}, ValueError, "rotary_sin has shape (17, 8); it must be rotary_cos's, (16, 8)"),
    "rotary stride": (call, {"rotary_cos": zeros(16, 16)[:, ::2]}, ValueError, "rotary_cos has a last-dimension stride of 8 bytes; it must be contiguous"),
    "rotary lengths": (call, {"rotary_seqlens": ints(1)}, ValueError, "rotary_seqlens has shape (1,); it must be (3,), that is (batch,)"),
    "hint": (call, {"max_seqlen_k": -3}, ValueError, "max_seqlen_k is -3; it must be from 0 to 2147483647, or None"),
    "hint too large": (call, {"max_seqlen_k": 2**31}, ValueError, "max_seqlen_k is 2147483648; it must be from 0 to"),
    "hint float": (call, {"max_seqlen_k": 3.5}, TypeError, "max_seqlen_k is 3.5; it must be an integer"),
    "interleaved": (call, {"rotary_interleaved": 1}, TypeError, "rotary_interleaved is 1; it must be True or False"),
    "splits": (call, {"num_splits": 257}, ValueError, "num_splits is 257; it must be from 0 (the library chooses) to 256"),
    "out": (call, {"out": zeros(3, 2, 4, 40)}, ValueError, "out has shape (3, 2, 4, 40); it must be (3, 2, 4, 32)"),
    "window": (call, {"window_size": (-2, 0)}, ValueError, "window_size is (-2, 0); each side must be -1"),
}  # fmt: skip

CHECKED: Rows = {
    "page id": (call, {"page_table": np.where(TABLE == 9, 12, TABLE)}, ValueError, "page_table[2, 1] is 12; it must be from 0 to 11, the last page"),
    "page id below": (call, {"page_table": np.where(TABLE == 4, -1, TABLE)}, ValueError, "page_table[1, 0] is -1; it must be from 0 to 11, the last page"),
    "seqlens": (call, {"cache_seqlens": ints(3, 15, 14)}, ValueError, "cache_seqlens[1] is 15; it must be from 0 to 14, the rows that a sequence has room for (16) less the new ones"),
    "seqlens below": (dense, {"cache_seqlens": ints(3, 9, -1)}, ValueError, "cache_seqlens[2] is -1; it must be from 0 to 14"),
    "index": (dense, {"cache_batch_idx": ints(0, 3, 1)}, ValueError, "cache_batch_idx[1] is 3; it must be from 0 to 2, the last entry"),
    "leftpad": (call, {"cache_leftpad": ints(0, 12, 0)}, ValueError, "cache_leftpad[1] is 12; it must be from 0 to 11, the keys of the sequence"),
    "new lengths": (packed, {"cu_seqlens_k_new": ints(0, 3, 2, 5)}, ValueError, "cu_seqlens_k_new falls from 3 to 2 at 2; it must not decrease"),
    "q lengths": (packed, {"cu_seqlens_q": ints(0, 1, 4, 5)}, ValueError, "cu_seqlens_q ends at 5; it must end at 6"),
    "rotary": (call, {"rotary_seqlens": ints(0, 15, 0)}, ValueError, "rotary_seqlens[1] is 15; it must be from 0 to 14, the 16 positions of rotary_cos less the rows that are turned"),
    "rotary of q": (packed, {"cache_seqlens": ints(3, 14, 13)}, ValueError, "cache_seqlens[1] is 14; it must be from 0 to 13, the 16 positions of rotary_cos"),
}  # fmt: skip


def refused(row: tuple[Any, dict[str, Any], type[Exception], str]) -> None:
    function, changes, kind, words = row
    with pytest.raises(kind) as info:
        function(**changes)
    assert words in str(info.value)
    assert "\n" not in str(info.value)


def test_the_unchanged_calls_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    for checked in ("0", "1"):
        monkeypatch.setenv("PYFLASH3_CHECK", checked)
        for function in (call, dense, packed):
            function()


@pytest.mark.parametrize("name", ROWS)
def test_refused(name: str) -> None:
    refused(ROWS[name])


@pytest.mark.parametrize("name", CHECKED)
def test_contents_when_asked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, changes, _, _ = CHECKED[name]
    function(**changes)  # not asked: no exception
    monkeypatch.setenv("PYFLASH3_CHECK", "1")
    refused(CHECKED[name])


def test_unused_entries_of_the_page_table_may_hold_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYFLASH3_CHECK", "1")
    table = TABLE.copy()
    table[0, 2:], table[1, 3], table[1, 0] = 99, -7, 1000
    call(page_table=table, cache_leftpad=ints(0, 4, 0))


def test_rows_that_are_not_there_have_no_position(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYFLASH3_CHECK", "1")
    full: dict[str, Any] = {"cache_seqlens": ints(3, 16, 13), "rotary_cos": zeros(15, 8), "rotary_sin": zeros(15, 8)}
    packed(**full, cu_seqlens_q=ints(0, 4, 4, 6))
    with pytest.raises(ValueError, match=r"cache_seqlens\[1\] is 16; it must be from 0 to 13"):
        packed(**full, cu_seqlens_q=ints(0, 2, 4, 6))
    with pytest.raises(ValueError, match=r"cache_seqlens\[1\] is 16; it must be from 0 to 14"):
        packed(**full, cu_seqlens_q=ints(0, 2, 4, 6), causal=False)


VARLEN: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "cu_seqlens_k": ({"cu_seqlens_k": ints(0, 1, 2, 3)}, ValueError, "cu_seqlens_k is given; with page_table it must be None, and seqused_k has the lengths"),
    "cu_seqlens_q": ({"cu_seqlens_q": None}, TypeError, "cu_seqlens_q is None; it must be a (batch + 1,) int32 array"),
    "k rank": ({"k": zeros(12, 2, 32)}, ValueError, "k has shape (12, 2, 32); it must have 4 dimensions (num_pages, page_size, nheads_k, head_dim)"),
    "table": ({"page_table": TABLE[:2]}, ValueError, "page_table has shape (2, 4), but q has batch 3"),
    "seqused_k": ({"seqused_k": ints(0)}, ValueError, "seqused_k has shape (1,); it must be (3,), that is (batch,)"),
}  # fmt: skip


def varlen(**changes: Any) -> Any:
    arguments = {
        "q": zeros(6, 4, 32), "k": zeros(*PAGED), "v": zeros(*PAGED), "cu_seqlens_q": ints(0, 1, 4, 6),
        "cu_seqlens_k": None, "seqused_k": ints(3, 9, 14), "page_table": TABLE, **changes,
    }  # fmt: skip
    return flash_attn_varlen_func(**arguments)


@pytest.mark.parametrize("name", VARLEN)
def test_varlen_with_pages(name: str) -> None:
    varlen()
    changes, kind, words = VARLEN[name]
    refused((varlen, changes, kind, words))


def test_varlen_contents_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYFLASH3_CHECK", "1")
    varlen()
    with pytest.raises(
        ValueError, match=r"seqused_k\[1\] is 17; it must be from 0 to 16, the rows that a sequence has"
    ):
        varlen(seqused_k=ints(3, 17, 14))
    with pytest.raises(ValueError, match=r"page_table\[0, 0\] is 12; it must be from 0 to 11, the last page"):
        varlen(page_table=TABLE + 12)
