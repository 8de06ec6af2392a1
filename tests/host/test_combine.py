"""flash_attn_combine on the host engine, after FlashAttention-3's test."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pyflash3 import flash_attn_combine, flash_attn_func

F32, BF16 = np.float32, ml_dtypes.bfloat16


def partials(num_splits: int, seqlen: int, head_dim: int, batch: int = 5, nheads: int = 3) -> tuple[Any, Any]:
    """Strided ones, as FlashAttention-3 tests them, with some splits empty: their results are NaN."""
    rng = np.random.default_rng(num_splits)
    out = rng.standard_normal((2 * num_splits, batch, nheads, seqlen, head_dim), F32)
    lse = rng.standard_normal((num_splits, batch, 2 * nheads, seqlen), F32) * 4
    out, lse = out.swapaxes(2, 3)[:num_splits], lse.swapaxes(2, 3)[..., :nheads]
    lse[num_splits // 2 :, : batch // 3] = -np.inf
    lse[:, 2, 0] = -np.inf
    lse[::2, 3] = -np.inf
    out[np.isneginf(lse)] = np.nan
    return out, lse


def formula(out: Any, lse: Any) -> tuple[Any, Any]:
    total = np.logaddexp.reduce(lse.astype(np.float64), axis=0)
    with np.errstate(invalid="ignore"):
        weight = np.where(np.isneginf(lse), 0.0, np.exp(lse - total))
    return (weight[..., None] * np.where(np.isneginf(lse)[..., None], 0.0, out)).sum(axis=0), total


@pytest.mark.parametrize("num_splits", [1, 2, 3, 5, 17, 32, 55, 97, 133, 256])
@pytest.mark.parametrize("seqlen", [1, 3, 67])
@pytest.mark.parametrize(("dtype", "head_dim"), [(F32, 64), (np.float16, 96), (BF16, 40), (F32, 7)])
def test_formula(num_splits: int, seqlen: int, dtype: Any, head_dim: int) -> None:
    out_partial, lse_partial = partials(num_splits, seqlen, head_dim)
    want, want_lse = formula(out_partial, lse_partial)
    out, lse = flash_attn_combine(out_partial, lse_partial, out_dtype=dtype)
    assert out.dtype == dtype
    assert lse.dtype == F32
    assert lse.shape == (5, seqlen, 3)
    np.testing.assert_allclose(lse, want_lse, atol=1e-5, rtol=1e-5)
    rounded = np.abs(want.astype(dtype).astype(np.float64) - want).max()
    assert np.abs(out.astype(np.float64) - want).max() <= 2 * rounded + 1e-5
    assert not out[2, 0].any(), "no split at all"
    assert np.isneginf(lse[2, 0]).all()


def test_parts_of_the_keys() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, n, h, 64), F32) for n, h in ((9, 4), (300, 2), (300, 2)))
    want, want_lse = flash_attn_func(q, k, v, return_lse=True)
    parts = [flash_attn_func(q, k[:, a:b], v[:, a:b], return_lse=True) for a, b in ((0, 10), (10, 10), (10, 300))]
    outs, lses = (np.stack(x) for x in zip(*parts, strict=True))
    into = np.empty((2, 4, 9, 64), F32).swapaxes(1, 2)
    out, lse = flash_attn_combine(outs, lses.swapaxes(2, 3), into)
    assert out is into
    np.testing.assert_allclose(out, want, atol=2e-6)
    np.testing.assert_allclose(lse.swapaxes(1, 2), want_lse, atol=2e-6)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_split_that_counts_shows_its_nan(poison: float) -> None:
    out_partial, lse_partial = partials(5, 3, 8)
    clean, clean_lse = flash_attn_combine(out_partial, lse_partial)
    out_partial[1, 4, 2, 1] = poison
    out, lse = flash_attn_combine(out_partial, lse_partial)
    assert not np.isfinite(out[4, 2, 1]).any()
    np.testing.assert_array_equal(lse, clean_lse)
    out[4, 2, 1] = clean[4, 2, 1]
    np.testing.assert_array_equal(out, clean)
    lse_partial[1, 4, 2, 1] = np.nan
    assert np.isnan(flash_attn_combine(out_partial, lse_partial)[1][4, 2, 1])


@pytest.mark.parametrize("threads", ["1", "2", "7"])
def test_threads_change_nothing(threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = partials(40, 100, 64)
    want = flash_attn_combine(*arrays)
    monkeypatch.setenv("PYFLASH3_NUM_THREADS", threads)
    for a, b in zip(flash_attn_combine(*arrays), want, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("batch", "seqlen"), [(0, 3), (3, 0)])
def test_no_rows(batch: int, seqlen: int) -> None:
    out, lse = flash_attn_combine(np.zeros((2, batch, seqlen, 4, 8), F32), np.zeros((2, batch, seqlen, 4), F32))
    assert out.shape == (batch, seqlen, 4, 8)
    assert lse.shape == (batch, seqlen, 4)
