"""Plans: the bits of the functions, what may change between calls, and threads."""

from __future__ import annotations

import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pyflash3
from pyflash3 import flash_attn_func, flash_attn_varlen_func

F32, F16, BF16, I32 = np.float32, np.float16, ml_dtypes.bfloat16, np.int32
Q, KV, OUT, LSE = (2, 37, 4, 16), (2, 45, 2, 16), (2, 37, 4, 24), (2, 4, 37)
V = (*KV[:-1], 24)


def normal(shape: tuple[int, ...], dtype: Any = F32, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, F32).astype(dtype)


def dense(dtype: Any = F32, seed: int = 0) -> dict[str, Any]:
    return {"q": normal(Q, dtype, seed), "k": normal(KV, dtype, seed + 1), "v": normal(V, dtype, seed + 2)}


def packed(dtype: Any = F32) -> dict[str, Any]:
    arrays = {"q": normal((37, 4, 16), dtype), "k": normal((45, 2, 16), dtype), "v": normal((45, 2, 24), dtype)}
    cu = {"cu_seqlens_q": np.array([0, 20, 20, 37], I32), "cu_seqlens_k": np.array([0, 5, 30, 45], I32)}
    return {**arrays, **cu}


def same(a: Any, b: Any) -> None:
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert a.tobytes() == b.tobytes()


OPTIONS: list[dict[str, Any]] = [
    {},
    {"causal": True, "softmax_scale": 0.3},
    {"window_size": (9, 3), "softcap": 2.0},
    {"causal": True, "alibi_slopes": normal((4,)), "sinks": normal((4,), seed=1), "sm_margin": 2, "num_splits": 1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o))
@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize("make", [dense, packed])
def test_same_bits_as_the_function(make: Any, dtype: Any, options: dict[str, Any]) -> None:
    arrays = make(dtype)
    function = flash_attn_func if make is dense else flash_attn_varlen_func
    want, want_lse = function(**arrays, **options, return_lse=True)
    step = pyflash3.plan(**arrays, **options, return_lse=True)
    for _ in range(2):
        step.out[...] = np.nan
        step.lse[...] = np.nan
        out, lse = step()
        assert out is step.out
        assert lse is step.lse
        same(out, want)
        same(lse, want_lse)


def test_hints_and_seqused() -> None:
    arrays = packed() | {"seqused_q": np.array([7, 0, 17], I32), "seqused_k": np.array([5, 25, 2], I32)}
    out = np.full((37, 4, 24), 7.0, F32)
    want = flash_attn_varlen_func(**arrays, max_seqlen_q=20, max_seqlen_k=25, out=out.copy())
    assert pyflash3.plan(**arrays, max_seqlen_q=20, max_seqlen_k=25, out=out)() is out
    same(out, want)


def test_given_outputs_and_strided_arrays() -> None:
    arrays = {name: np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for name, x in dense().items()}
    out, lse = np.zeros((2, 4, 37, 24), F32).swapaxes(1, 2), np.zeros(LSE, F32)
    step = pyflash3.plan(**arrays, out=out, lse=lse)
    assert (out == 0).all(), "making a plan computes nothing"
    result = step()
    assert result[0] is out is step.out
    assert result[1] is lse is step.lse
    want, want_lse = flash_attn_func(**arrays, return_lse=True)
    assert (out == want).all()
    same(lse, want_lse)


def test_contents_are_read_at_each_call() -> None:
    arrays = packed() | {"alibi_slopes": normal((4,))}
    step = pyflash3.plan(**arrays)
    assert step.lse is None
    step()
    for cu in ([0, 1, 2, 37], [0, 37, 37, 37], [0, 0, 12, 37]):
        arrays["cu_seqlens_q"][...] = cu
        arrays["k"] *= 1.25
        arrays["alibi_slopes"] *= 0.5
        same(step(), flash_attn_varlen_func(**arrays))


def test_replacements_hold_for_one_call() -> None:
    first, second = dense(), dense(seed=10)
    out, lse = np.empty(OUT, F32), np.empty(LSE, F32)
    step = pyflash3.plan(**first, causal=True, return_lse=True)
    want = flash_attn_func(**first, causal=True, return_lse=True)
    for changes in ({"q": second["q"]}, {"k": second["k"], "v": second["v"]}, second):
        step.out[...] = 7.0
        result = step(**changes, out=out, lse=lse)
        assert result[0] is out
        assert result[1] is lse
        assert (step.out == 7.0).all()
        for x, y in zip(result, flash_attn_func(**{**first, **changes}, causal=True, return_lse=True), strict=True):
            same(x, y)
        for x, y in zip(step(), want, strict=True):
            same(x, y)
    assert step(v=second["v"])[0] is step.out


def test_lengths_are_checked_at_each_call_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYFLASH3_CHECK", "1")
    arrays = packed()
    step = pyflash3.plan(**arrays)
    step()
    arrays["cu_seqlens_k"][-1] = 44
    with pytest.raises(ValueError, match="cu_seqlens_k ends at 44; it must end at 45"):
        step()


def test_threads_take_turns() -> None:
    arrays = [dense(seed=seed) for seed in range(4)]
    wants = [flash_attn_func(**x) for x in arrays]
    step = pyflash3.plan(**arrays[0])
    wrong = []

    def work(i: int) -> None:
        out = np.empty(OUT, F32)
        for _ in range(30):
            step(**arrays[i], out=out)
            if out.tobytes() != wants[i].tobytes():
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    same(step(), wants[0])
