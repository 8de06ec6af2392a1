"""SPEC section 5: every kind of bad input is one clear exception, raised before anything is computed or written."""

from __future__ import annotations

import inspect
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pyflash3
from pyflash3 import flash_attn_func, flash_attn_qkvpacked_func, flash_attn_varlen_func

F32, F16, BF16, I32 = np.float32, np.float16, ml_dtypes.bfloat16, np.int32


def zeros(*shape: int, dtype: Any = F32) -> Any:
    return np.zeros(shape, dtype)


Q, KV, OUT = (2, 5, 4, 16), (2, 7, 2, 16), (2, 5, 4, 16)


def dense(**changes: Any) -> Any:
    """A right dense call but for the changes; out must come back untouched."""
    arguments = {"q": zeros(*Q), "k": zeros(*KV), "v": zeros(*KV), "out": np.full(OUT, 7.0, F32), **changes}
    out = arguments["out"]
    before = out.copy() if isinstance(out, np.ndarray) else None
    try:
        return flash_attn_func(**arguments)
    except Exception:
        if before is not None:
            np.testing.assert_array_equal(out, before)
        raise


def varlen(**changes: Any) -> Any:
    """The same for a packed call of three sequences."""
    arguments = {
        "q": zeros(9, 4, 16), "k": zeros(12, 2, 16), "v": zeros(12, 2, 16),
        "cu_seqlens_q": np.array([0, 4, 4, 9], I32), "cu_seqlens_k": np.array([0, 0, 5, 12], I32),
        "out": np.full((9, 4, 16), 7.0, F32), **changes,
    }  # fmt: skip
    try:
        return flash_attn_varlen_func(**arguments)
    except Exception:
        assert (arguments["out"] == 7.0).all()
        raise


def test_the_unchanged_calls_are_right() -> None:
    dense()
    varlen()


def misaligned() -> Any:
    return np.zeros(2 * 5 * 4 * 16 * 4 + 1, np.uint8)[1:].view(F32).reshape(Q)


def read_only() -> Any:
    out = zeros(*OUT)
    out.flags.writeable = False
    return out


DENSE = {
    "rank q": ({"q": zeros(5, 4, 16)}, ValueError, "q has shape (5, 4, 16); it must have 4 dimensions (batch, seqlen_q, nheads, head_dim)"),
    "rank k": ({"k": zeros(7, 2, 16)}, ValueError, "k has shape (7, 2, 16); it must have 4 dimensions"),
    "rank v": ({"v": zeros(1, 2, 7, 2, 16)}, ValueError, "v has shape (1, 2, 7, 2, 16); it must have 4 dimensions"),
    "batch": ({"k": zeros(3, 7, 2, 16), "v": zeros(3, 7, 2, 16)}, ValueError, "k has batch 3, but q has 2; they must be equal"),
    "head dims differ": ({"k": zeros(2, 7, 2, 24)}, ValueError, "k has head_dim 24, but q has 16; they must be equal"),
    "v's rows": ({"v": zeros(2, 8, 2, 16)}, ValueError, "v has shape (2, 8, 2, 16), but k has (2, 7, 2, 16); they must be equal up to the last dimension"),
    "dtype": ({"q": zeros(*Q, dtype=np.float64)}, TypeError, "q has dtype float64; allowed on NumPy arrays are float16, bfloat16, float32"),
    "integers": ({"q": zeros(*Q, dtype=np.int8)}, TypeError, "q has dtype int8; allowed"),
    "mixed k": ({"k": zeros(*KV, dtype=F16)}, TypeError, "k has dtype float16, but q has float32; q, k, v and out must have the same"),
    "mixed v": ({"v": zeros(*KV, dtype=BF16)}, TypeError, "v has dtype bfloat16, but q has float32"),
    "mixed out": ({"out": zeros(*OUT, dtype=F16)}, TypeError, "out has dtype float16, but q has float32"),
    "last stride q": ({"q": zeros(2, 5, 4, 32)[..., ::2]}, ValueError, "q has a last-dimension stride of 8 bytes; it must be contiguous"),
    "last stride k": ({"k": zeros(2, 7, 2, 32)[..., ::2]}, ValueError, "k has a last-dimension stride of 8 bytes; it must be contiguous"),
    "last stride v": ({"v": zeros(2, 7, 16, 2).swapaxes(2, 3)}, ValueError, "v has a last-dimension stride of 8 bytes; it must be contiguous"),
    "last stride out": ({"out": np.full((2, 5, 4, 32), 7.0, F32)[..., ::2]}, ValueError, "out has a last-dimension stride of 8 bytes; it must be contiguous"),
    "address": ({"q": misaligned()}, ValueError, "it must be a multiple of 4 bytes"),
    "head dim 12": ({"q": zeros(2, 5, 4, 12), "k": zeros(2, 7, 2, 12)}, ValueError, "q has head_dim 12; it must be a multiple of 8 from 8 to 576"),
    "head dim 584": ({"q": zeros(2, 5, 4, 584), "k": zeros(2, 7, 2, 584)}, ValueError, "q has head_dim 584; it must be a multiple of 8 from 8 to 576"),
    "head dim 0": ({"q": zeros(2, 5, 4, 0), "k": zeros(2, 7, 2, 0)}, ValueError, "q has head_dim 0; it must be a multiple of 8 from 8 to 576"),
    "head dim v 520": ({"v": zeros(2, 7, 2, 520)}, ValueError, "v has head_dim 520; it must be a multiple of 8 from 8 to 512"),
    "head dim v": ({"v": zeros(2, 7, 2, 20)}, ValueError, "v has head_dim 20; it must be a multiple of 8 from 8 to 512"),
    "heads": ({"q": zeros(2, 5, 3, 16)}, ValueError, "q has 3 heads and k has 2; nheads must be a positive multiple of nheads_k"),
    "no heads": ({"k": zeros(2, 7, 0, 16), "v": zeros(2, 7, 0, 16)}, ValueError, "q has 4 heads and k has 0; nheads must be a positive multiple"),
    "out shape": ({"out": np.full((2, 5, 4, 24), 7.0, F32)}, ValueError, "out has shape (2, 5, 4, 24); it must be (2, 5, 4, 16)"),
    "out rows overlap": ({"out": np.broadcast_to(np.full((1, 5, 4, 16), 7.0, F32), OUT)}, ValueError, "none may be 0, since its rows would overlap"),
    "out read-only": ({"out": read_only()}, ValueError, "out is a read-only array; it must be writable"),
    "slopes shape": ({"alibi_slopes": zeros(3)}, ValueError, "alibi_slopes has shape (3,); it must be (4,) or (2, 4)"),
    "slopes batch": ({"alibi_slopes": zeros(3, 4)}, ValueError, "alibi_slopes has shape (3, 4); it must be (4,) or (2, 4)"),
    "slopes dtype": ({"alibi_slopes": zeros(4, dtype=F16)}, TypeError, "alibi_slopes has dtype float16; it must be float32"),
    "slopes stride": ({"alibi_slopes": zeros(8)[::2]}, ValueError, "alibi_slopes has a last-dimension stride of 8 bytes; it must be contiguous"),
    "sinks shape": ({"sinks": zeros(2, 4)}, ValueError, "sinks has shape (2, 4); it must be (4,), that is (nheads,)"),
    "sinks dtype": ({"sinks": zeros(4, dtype=np.float64)}, TypeError, "sinks has dtype float64; it must be float32"),
    "sinks stride": ({"sinks": zeros(8)[::2]}, ValueError, "sinks has a stride of 8 bytes; it must be contiguous"),
    "window -2": ({"window_size": (-2, 0)}, ValueError, "window_size is (-2, 0); each side must be -1 (unlimited) or at least 0"),
    "window right": ({"window_size": (3, -5)}, ValueError, "window_size is (3, -5); each side must be -1"),
    "window right, causal": ({"window_size": (3, -5), "causal": True}, ValueError, "window_size is (3, -5)"),
    "window of floats": ({"window_size": (1.5, 2)}, TypeError, "window_size is (1.5, 2); it must be two integers (left, right)"),
    "window of one": ({"window_size": 3}, TypeError, "window_size is 3; it must be two integers (left, right)"),
    "softcap": ({"softcap": -1.0}, ValueError, "softcap is -1.0; it must be finite and at least 0 (0 is off)"),
    "softcap NaN": ({"softcap": float("nan")}, ValueError, "softcap is nan; it must be finite and at least 0"),
    "softcap inf": ({"softcap": float("inf")}, ValueError, "softcap is inf; it must be finite and at least 0"),
    "softcap text": ({"softcap": "big"}, TypeError, "softcap is 'big'; it must be a number"),
    "scale inf": ({"softmax_scale": float("inf")}, ValueError, "softmax_scale is inf; it must be finite"),
    "scale NaN": ({"softmax_scale": float("nan")}, ValueError, "softmax_scale is nan; it must be finite"),
    "scale too big": ({"softmax_scale": 1e39}, ValueError, "softmax_scale is 1e+39; it must be finite in float32"),
    "splits": ({"num_splits": 257}, ValueError, "num_splits is 257; it must be from 0 (the library chooses) to 256"),
    "splits negative": ({"num_splits": -1}, ValueError, "num_splits is -1; it must be from 0 (the library chooses) to 256"),
    "splits float": ({"num_splits": 1.0}, TypeError, "num_splits is 1.0; it must be an integer"),
    "pack_gqa": ({"pack_gqa": 2}, TypeError, "pack_gqa is 2; it must be True, False or None"),
    "sm_margin": ({"sm_margin": -1}, ValueError, "sm_margin is -1; it must be at least 0"),
    "list": ({"q": [[1.0]]}, TypeError, "q is of type list; it must be a NumPy, CuPy or CUDA DLPack array"),
    "None": ({"k": None}, TypeError, "k is of type NoneType; it must be"),
    "no v": ({"v": None}, TypeError, "v is None; it must be an array, or d_v the number of columns of k that are the values"),
    "v and d_v": ({"d_v": 16}, ValueError, "d_v is 16, but v is given; one of them must be None"),
    "d_v 12": ({"v": None, "d_v": 12}, ValueError, "d_v is 12; with k of head_dim 16 it must be a multiple of 8 from 8 to 16"),
    "d_v 0": ({"v": None, "d_v": 0}, ValueError, "d_v is 0; with k of head_dim 16 it must be a multiple of 8 from 8 to 16"),
    "d_v wide": ({"v": None, "d_v": 24}, ValueError, "d_v is 24; with k of head_dim 16 it must be a multiple of 8 from 8 to 16"),
    "d_v 520": ({"q": zeros(2, 5, 4, 576), "k": zeros(2, 7, 2, 576), "v": None, "d_v": 520}, ValueError, "d_v is 520; with k of head_dim 576 it must be a multiple of 8 from 8 to 512"),
    "d_v float": ({"v": None, "d_v": 16.0}, TypeError, "d_v is 16.0; it must be an integer"),
    "d_v out": ({"v": None, "d_v": 8}, ValueError, "out has shape (2, 5, 4, 16); it must be (2, 5, 4, 8)"),
    "list of slopes": ({"alibi_slopes": [0.1] * 4}, TypeError, "alibi_slopes is of type list; it must be"),
}  # fmt: skip

CU = np.array([0, 4, 4, 9], I32)
VARLEN = {
    "rank": ({"q": zeros(1, 9, 4, 16)}, ValueError, "q has shape (1, 9, 4, 16); it must have 3 dimensions (total_q, nheads, head_dim)"),
    "cu dtype": ({"cu_seqlens_q": CU.astype(np.int64)}, TypeError, "cu_seqlens_q has dtype int64; it must be int32"),
    "cu_k dtype": ({"cu_seqlens_k": CU.astype(np.uint32)}, TypeError, "cu_seqlens_k has dtype uint32; it must be int32"),
    "cu rank": ({"cu_seqlens_q": CU[None]}, ValueError, "cu_seqlens_q has shape (1, 4); it must be (batch + 1,)"),
    "cu empty": ({"cu_seqlens_q": CU[:0]}, ValueError, "cu_seqlens_q has shape (0,); it must be (batch + 1,)"),
    "cu_k length": ({"cu_seqlens_k": CU[:3]}, ValueError, "cu_seqlens_k has shape (3,); it must be (4,), that is (batch + 1,)"),
    "cu stride": ({"cu_seqlens_q": np.repeat(CU, 2)[::2]}, ValueError, "cu_seqlens_q has a stride of 8 bytes; it must be contiguous"),
    "cu list": ({"cu_seqlens_q": [0, 4, 4, 9]}, TypeError, "cu_seqlens_q is of type list; it must be"),
    "cu None": ({"cu_seqlens_k": None}, TypeError, "cu_seqlens_k is None; it must be a (batch + 1,) int32 array"),
    "used dtype": ({"seqused_q": zeros(3)}, TypeError, "seqused_q has dtype float32; it must be int32"),
    "used length": ({"seqused_k": CU}, ValueError, "seqused_k has shape (4,); it must be (3,), that is (batch,)"),
    "hint": ({"max_seqlen_q": -3}, ValueError, "max_seqlen_q is -3; it must be from 0 to 2147483647, or None"),
    "hint float": ({"max_seqlen_k": 3.5}, TypeError, "max_seqlen_k is 3.5; it must be an integer"),
    "slopes": ({"alibi_slopes": zeros(4, 4)}, ValueError, "alibi_slopes has shape (4, 4); it must be (4,) or (3, 4)"),
}  # fmt: skip

CHECKED = {
    "start": ({"cu_seqlens_q": CU + 1}, "cu_seqlens_q starts at 1; it must start at 0"),
    "falling": ({"cu_seqlens_q": np.array([0, 5, 4, 9], I32)}, "cu_seqlens_q falls from 5 to 4 at 2; it must not decrease"),
    "end": ({"cu_seqlens_k": np.array([0, 0, 5, 11], I32)}, "cu_seqlens_k ends at 11; it must end at 12, the rows of the packed array"),
    "used": ({"seqused_k": np.array([0, 6, 7], I32)}, "seqused_k[1] is 6; it must be from 0 to 5, the rows of sequence 1"),
    "used negative": ({"seqused_q": np.array([0, -1, 7], I32)}, "seqused_q[1] is -1; it must be from 0 to 0"),
}  # fmt: skip


def raised(call: Any, arguments: dict[str, Any]) -> Exception:
    with pytest.raises((ValueError, TypeError, NotImplementedError)) as info:
        call(**arguments)
    assert "\n" not in str(info.value)
    return info.value


@pytest.mark.parametrize("row", DENSE)
def test_dense(row: str) -> None:
    changes, kind, words = DENSE[row]
    error = raised(dense, changes)
    assert isinstance(error, kind)
    assert words in str(error)


@pytest.mark.parametrize("row", VARLEN)
def test_varlen(row: str) -> None:
    changes, kind, words = VARLEN[row]
    error = raised(varlen, changes)
    assert isinstance(error, kind)
    assert words in str(error)


@pytest.mark.parametrize("row", CHECKED)
def test_contents_when_asked(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, words = CHECKED[row]
    varlen(**changes)  # not asked: no exception
    monkeypatch.setenv("PYFLASH3_CHECK", "1")
    varlen()
    error = raised(varlen, changes)
    assert isinstance(error, ValueError)
    assert words in str(error)


def test_qkvpacked() -> None:
    for shape, words in (
        ((2, 5, 2, 4, 16), "qkv has shape (2, 5, 2, 4, 16); its third dimension must be 3 (q, k, v)"),
        ((2, 5, 16), "qkv has shape (2, 5, 16); it must have 5 dimensions"),
        ((2, 5, 8, 16), "num_heads_q is None; for qkv with 8 heads in all"),
    ):
        with pytest.raises(ValueError, match="qkv") as info:
            flash_attn_qkvpacked_func(zeros(*shape))
        assert words in str(info.value)
    with pytest.raises(ValueError, match="num_heads_q is 3; for qkv with 8 heads in all it must leave an even number"):
        flash_attn_qkvpacked_func(zeros(2, 5, 8, 16), num_heads_q=3)
    with pytest.raises(TypeError, match="qkv is of type list; it must be an array"):
        flash_attn_qkvpacked_func([1.0])


def test_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYFLASH3_NUM_THREADS", "many")
    with pytest.raises(ValueError, match="PYFLASH3_NUM_THREADS is 'many'; it must be a number of threads"):
        dense()


def test_statuses_become_the_exceptions_that_users_expect() -> None:
    kinds = {
        "InvalidArgumentError": ValueError, "UnsupportedError": NotImplementedError, "NoDeviceError": RuntimeError,
        "CudaError": RuntimeError, "InternalError": RuntimeError, "LibraryNotFoundError": ImportError,
        "AbiMismatchError": ImportError,
    }  # fmt: skip
    for name, kind in kinds.items():
        cls = getattr(pyflash3, name)
        assert issubclass(cls, kind)
        assert issubclass(cls, pyflash3.Flash3Error)
        assert inspect.getdoc(cls)


def test_the_process_goes_on() -> None:
    for changes, _, _ in DENSE.values():
        raised(dense, changes)
    assert dense().shape == OUT


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_out_is_what_is_read(name: str) -> None:
    arrays = {"q": zeros(*Q), "k": zeros(2, 7, 4, 16), "v": zeros(2, 7, 4, 16)}
    if name != "q":
        arrays |= {"k": zeros(*Q), "v": zeros(*Q)}
    with pytest.raises(ValueError, match=f"out is {name}; it must be memory of its own"):
        flash_attn_func(**arrays, out=arrays[name])
