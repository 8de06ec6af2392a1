"""flash_attn_combine on the device, after FlashAttention-3's test: strided partials, some of them empty."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pyflash3 import flash_attn_combine, flash_attn_func
from tests.gpu.machine import get, normal, put, same_bits, spin, wait, xp
from tests.host.test_combine import formula, partials

F32, F16, BF16 = np.float32, np.float16, ml_dtypes.bfloat16


def on_device(out: Any, lse: Any) -> tuple[Any, Any]:
    """Both with the strides that they have on the host, which the partials of FlashAttention-3's test have too."""
    shape = (2 * out.shape[0], out.shape[1], out.shape[3], out.shape[2], out.shape[4])
    outs = xp.empty(shape, F32).swapaxes(2, 3)[: out.shape[0]]
    lses = xp.empty((*lse.shape[:2], 2 * lse.shape[3], lse.shape[2]), F32).swapaxes(2, 3)[..., : lse.shape[3]]
    outs[...] = put(np.ascontiguousarray(out))
    lses[...] = put(np.ascontiguousarray(lse))
    return outs, lses


@pytest.mark.parametrize("num_splits", [1, 2, 3, 5, 17, 32, 55, 97, 133, 256])
@pytest.mark.parametrize(
    ("dtype", "head_dim", "seqlen"),
    [(F32, 64, 67), (F16, 96, 3), (BF16, 40, 67), (F32, 4, 1), (BF16, 256, 3), (F16, 512, 1)],
)
def test_formula(num_splits: int, seqlen: int, dtype: Any, head_dim: int) -> None:
    arrays = partials(num_splits, seqlen, head_dim)
    want, want_lse = formula(*arrays)
    out, lse = flash_attn_combine(*on_device(*arrays), out_dtype=dtype)
    wait()
    assert out.dtype == dtype
    assert (lse.dtype, lse.shape) == (F32, (5, seqlen, 3))
    assert lse.strides == (12 * seqlen, 4, 4 * seqlen)
    np.testing.assert_allclose(get(lse), want_lse, atol=1e-5, rtol=1e-5)
    rounded = np.abs(want.astype(dtype).astype(np.float64) - want).max()
    assert np.abs(get(out).astype(np.float64) - want).max() <= 2 * rounded + 1e-5
    assert not get(out[2, 0]).astype(F32).any(), "no split at all"
    assert np.isneginf(get(lse[2, 0])).all()


def test_many_rows() -> None:
    rng = np.random.default_rng(0)
    lse = rng.standard_normal((9, 3, 1000, 16), F32)
    out = rng.standard_normal((9, 3, 1000, 16, 128), F32)
    lse[rng.random(lse.shape) < 0.3] = -np.inf
    out[np.isneginf(lse)] = np.nan
    want, want_lse = formula(out, lse)
    got, got_lse = flash_attn_combine(put(out), put(lse))
    wait()
    np.testing.assert_allclose(get(got), want, atol=1e-5)
    np.testing.assert_allclose(get(got_lse), want_lse, atol=1e-5, rtol=1e-5)


def test_parts_of_the_keys() -> None:
    q, k, v = (normal((2, n, h, 64), "bfloat16", seed) for seed, (n, h) in enumerate(((9, 4), (300, 2), (300, 2))))
    want, want_lse = flash_attn_func(q, k, v, return_lse=True)
    parts = [flash_attn_func(q, k[:, a:b], v[:, a:b], return_lse=True) for a, b in ((0, 10), (10, 10), (10, 300))]
    outs, lses = (xp.stack(x) for x in ([out.astype(F32) for out, _ in parts], [lse for _, lse in parts]))
    into = xp.empty((2, 4, 9, 64), BF16).swapaxes(1, 2)
    out, lse = flash_attn_combine(outs, lses.swapaxes(2, 3), into)
    wait()
    assert out is into
    difference = np.abs(get(out).astype(F32) - get(want).astype(F32)).max()
    assert difference <= 2.0**-7 * np.abs(get(want).astype(F32)).max()
    np.testing.assert_allclose(get(lse.swapaxes(1, 2)), get(want_lse), atol=1e-5)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_split_that_counts_shows_its_nan(poison: float) -> None:
    out_partial, lse_partial = partials(5, 3, 8)
    clean, clean_lse = flash_attn_combine(*on_device(out_partial, lse_partial))
    out_partial[1, 4, 2, 1] = poison
    out, lse = flash_attn_combine(*on_device(out_partial, lse_partial))
    wait()
    assert not np.isfinite(get(out[4, 2, 1])).any()
    assert same_bits(xp.ascontiguousarray(lse), xp.ascontiguousarray(clean_lse))
    out[4, 2, 1] = clean[4, 2, 1]
    assert same_bits(out, clean)
    lse_partial[1, 4, 2, 1] = np.nan
    lse = flash_attn_combine(*on_device(out_partial, lse_partial))[1]
    wait()
    assert np.isnan(get(lse[4, 2, 1]))


@pytest.mark.parametrize(("batch", "seqlen"), [(0, 3), (3, 0)])
def test_no_rows(batch: int, seqlen: int) -> None:
    out, lse = flash_attn_combine(xp.zeros((2, batch, seqlen, 4, 8), F32), xp.zeros((2, batch, seqlen, 4), F32))
    assert out.shape == (batch, seqlen, 4, 8)
    assert lse.shape == (batch, seqlen, 4)


def test_the_current_stream_and_a_graph(cuda: Any) -> None:
    arrays = on_device(*partials(17, 67, 64))
    want, _ = flash_attn_combine(*arrays)
    true = arrays[0].copy()
    arrays[0][...] = 0
    wait()
    stream = cuda.cuda.Stream(non_blocking=True)
    with stream:
        spin(30)
        arrays[0][...] = true  # the work of the producer
        out, _ = flash_attn_combine(*arrays)
        wait(stream)
        assert same_bits(out, want)
        stream.begin_capture(mode=cuda.cuda.runtime.streamCaptureModeThreadLocal)
        try:
            flash_attn_combine(*arrays, out)
        finally:
            graph = stream.end_capture()
        out[...] = 0
        graph.launch(stream)
        wait(stream)
        assert same_bits(out, want)
