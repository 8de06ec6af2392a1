"""Values and sizes at the edge of what the contract allows."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

import pyflash3
from pyflash3 import reference
from tests.gpu.machine import DTYPES, fill, get, normal, put, wait
from tests.gpu.problem import Problem, make


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_v_that_is_nan_all_over_is_not_slow(head_dim: int) -> None:
    """Rows that see a NaN are not computed again key by key."""
    inputs = make(Problem(lengths=((4096, 4096),), nheads=8, nheads_k=8, head_dim=head_dim, causal=True))
    inputs.call()
    wait()
    begin = time.perf_counter()
    inputs.call()
    wait()
    finite = time.perf_counter() - begin
    fill(inputs.v, np.nan)
    begin = time.perf_counter()
    out, lse = inputs.call()
    wait()
    assert time.perf_counter() - begin < max(1.0, 3 * finite)  # the host engine takes that long anyway
    assert np.isnan(get(out[:, ::501]).astype(np.float32)).all()
    assert np.isfinite(get(lse)).all()


def test_an_infinite_sink_takes_everything() -> None:
    inputs = make(Problem(lengths=((200, 300),), nheads=2, nheads_k=1, head_dim=64, causal=True))
    out, lse = inputs.call(sinks=put(np.array([np.inf, -np.inf], np.float32)))
    plain, plain_lse = inputs.call()
    wait()
    assert (get(out[:, :, 0]) == 0).all()
    assert (get(lse[:, 0]) == np.inf).all()
    assert (get(out[:, :, 1]) == get(plain[:, :, 1])).all()
    assert (get(lse[:, 1]) == get(plain_lse[:, 1])).all()
    fill(inputs.v[:, -1], np.nan)  # which the last row sees
    hidden, _ = inputs.call(sinks=put(np.array([np.inf, -np.inf], np.float32)))
    wait()
    assert (get(hidden[:, :-1, 0]) == 0).all()
    assert np.abs(get(hidden[:, :-1, 1]).astype(np.float32) - get(plain[:, :-1, 1]).astype(np.float32)).max() < 0.02


@pytest.mark.parametrize("softcap", [50.0, 1e3, 1e5])
def test_a_large_softcap_changes_little(softcap: float) -> None:
    inputs = make(Problem(dtype="float16", lengths=((200, 300),), nheads=2, nheads_k=1, head_dim=64))
    out, lse = inputs.call(softcap=softcap)
    wait()
    q, k, v = (get(x) for x in (inputs.q, inputs.k, inputs.v))
    want, want_lse = reference.attention(q, k, v, softcap=softcap)
    assert np.abs(get(out).astype(np.float64) - want).max() < 1e-3
    assert np.abs(get(lse) - want_lse).max() < 2e-5


def test_alibi_of_keys_far_from_the_start(cuda: Any) -> None:
    """Positions beyond 2^24, where float32 has no longer every integer."""
    keys, near, dtype = 2**24 + 4321, 2048, "bfloat16"
    q, k, v = normal((1, 40, 2, 8), dtype, 1), normal((1, keys, 1, 8), dtype, 2), normal((1, keys, 1, 8), dtype, 3)
    slopes = np.array([0.5, 1.0], np.float32)
    out, lse = pyflash3.flash_attn_func(q, k, v, causal=True, alibi_slopes=cuda.asarray(slopes), return_lse=True)
    wait()
    want, want_lse = reference.attention(
        get(q), get(k[:, -near:]), get(v[:, -near:]), causal=True, alibi_slopes=slopes
    )  # fmt: skip
    assert np.abs(get(out).astype(np.float64) - want).max() < 0.02
    assert np.abs(get(lse) - want_lse).max() < 1e-4


def test_r12_2_31_minus_1_rows(cuda: Any) -> None:
    """As many query rows as the contract allows. Only the last 16 see a key."""
    rows, keys = 2**31 - 1, 16
    if cuda.cuda.runtime.memGetInfo()[0] < 90 << 30:
        pytest.skip("needs 90 GB of free GPU memory")
    q = cuda.zeros((1, rows, 1, 8), DTYPES["bfloat16"])
    q[:, -512:] = normal((1, 512, 1, 8), "bfloat16", 1)
    k, v = normal((1, keys, 1, 8), "bfloat16", 2), normal((1, keys, 1, 8), "bfloat16", 3)
    out, lse = pyflash3.flash_attn_func(q, k, v, causal=True, return_lse=True)
    wait()
    want, want_lse = reference.attention(get(q[:, -keys:]), get(k), get(v), causal=True)
    assert np.abs(get(out[:, -keys:]).astype(np.float64) - want).max() < 0.02
    assert np.abs(get(lse[:, :, -keys:]) - want_lse).max() < 1e-4
    assert not cuda.isfinite(lse[:, :, :-keys]).any()
    assert not out[:, -4096:-keys].any()
    del q, out, lse
    cuda.get_default_memory_pool().free_all_blocks()
