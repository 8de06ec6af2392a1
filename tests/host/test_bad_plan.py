"""Wrong arguments of plans, and wrong replacements of their arrays: one clear exception, and the plan goes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pyflash3
from pyflash3 import flash_attn_func
from tests.host.test_plan import F32, KV, LSE, OUT, Q, V, dense, normal, same

F16, I32 = np.float16, np.int32


def misaligned(shape: tuple[int, ...]) -> Any:
    return np.zeros(4 * int(np.prod(shape)) + 1, np.uint8)[1:].view(F32).reshape(shape)


def read_only(shape: tuple[int, ...]) -> Any:
    x = np.zeros(shape, F32)
    x.flags.writeable = False
    return x


def transposed(shape: tuple[int, ...]) -> Any:
    return np.zeros((shape[0], shape[2], shape[1], shape[3]), F32).swapaxes(1, 2)


REPLACEMENTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "shape": ({"q": normal((2, 36, 4, 16))}, ValueError, "q has shape (2, 36, 4, 16); this plan was made for (2, 37, 4, 16)"),
    "rank": ({"k": normal((45, 2, 16))}, ValueError, "k has shape (45, 2, 16); this plan was made for (2, 45, 2, 16)"),
    "strides": ({"v": transposed(V)}, ValueError, "v has strides (8640, 96, 4320, 4) bytes; this plan was made for (8640, 192, 96, 4)"),
    "dtype": ({"out": np.zeros(OUT, F16)}, TypeError, "out has dtype float16; this plan was made for float32"),
    "byte order": ({"q": np.zeros(Q, ">f4")}, TypeError, "q has dtype >f4; this plan was made for float32"),
    "address": ({"k": misaligned(KV)}, ValueError, "; it must be a multiple of 4 bytes"),
    "read-only out": ({"out": read_only(OUT)}, ValueError, "out is a read-only array; it must be writable"),
    "read-only lse": ({"lse": read_only(LSE)}, ValueError, "lse is a read-only array; it must be writable"),
    "lse": ({"lse": np.zeros((2, 4, 38), F32)}, ValueError, "lse has shape (2, 4, 38); this plan was made for (2, 4, 37)"),
    "lse's address": ({"lse": misaligned(LSE)}, ValueError, "; it must be a multiple of 4 bytes"),
    "list": ({"q": [[1.0]]}, TypeError, "q is of type list; it must be a NumPy, CuPy or CUDA DLPack array"),
}  # fmt: skip


@pytest.mark.parametrize("row", REPLACEMENTS)
def test_wrong_replacements(row: str) -> None:
    changes, kind, words = REPLACEMENTS[row]
    arrays = dense()
    step = pyflash3.plan(**arrays, return_lse=True)
    step.out[...] = 7.0
    # The right replacement beside the wrong one must not stay either.
    with pytest.raises(kind) as info:
        step(**({"q": normal(Q, seed=9)} | changes))
    assert words in str(info.value)
    assert "\n" not in str(info.value)
    assert (step.out == 7.0).all()
    same(step()[0], flash_attn_func(**arrays))


def test_an_lse_for_a_plan_without_one() -> None:
    step = pyflash3.plan(**dense())
    with pytest.raises(ValueError, match="lse is given, but this plan has none; make it with return_lse=True"):
        step(lse=np.zeros(LSE, F32))


def test_a_v_for_a_plan_without_one() -> None:
    step = pyflash3.plan(**(dense() | {"v": None, "d_v": 8}))
    with pytest.raises(ValueError, match="v is given, but this plan has none; make it with v instead of d_v"):
        step(v=normal(V))


MADE: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "lse dtype": ({"lse": np.zeros(LSE)}, TypeError, "lse has dtype float64; it must be float32"),
    "lse shape": ({"lse": np.zeros((2, 37, 4), F32)}, ValueError, "lse has shape (2, 37, 4); it must be (2, 4, 37)"),
    "lse strides": ({"lse": np.zeros((2, 37, 4), F32).swapaxes(1, 2)}, ValueError, "lse has strides (592, 4, 16) bytes; it must be contiguous"),
    "lse address": ({"lse": misaligned(LSE)}, ValueError, "; it must be a multiple of 4 bytes"),
    "lse read-only": ({"lse": read_only(LSE)}, ValueError, "lse is a read-only array; it must be writable"),
    "lse list": ({"lse": [0.0]}, TypeError, "lse is of type list; it must be"),
    "out": ({"out": np.zeros(Q, F32)}, ValueError, "out has shape (2, 37, 4, 16); it must be (2, 37, 4, 24)"),
    "out read-only": ({"out": read_only(OUT)}, ValueError, "out is a read-only array; it must be writable"),
    "q": ({"q": misaligned(Q)}, ValueError, "q starts at address"),
    "no v": ({"v": None}, TypeError, "v is None; it must be an array, or d_v the number of columns of k that are the values"),
    "v and d_v": ({"d_v": 16}, ValueError, "d_v is 16, but v is given; one of them must be None"),
    "softcap": ({"softcap": -1.0}, ValueError, "softcap is -1.0; it must be finite and at least 0 (0 is off)"),
    "one cu_seqlens": ({"cu_seqlens_q": np.zeros(3, I32)}, TypeError, "cu_seqlens_k is None; it must be a (batch + 1,) int32 array"),
    "seqused alone": ({"seqused_k": np.zeros(2, I32)}, TypeError, "cu_seqlens_q is None; it must be a (batch + 1,) int32 array"),
}  # fmt: skip


@pytest.mark.parametrize("row", MADE)
def test_wrong_arguments(row: str) -> None:
    changes, kind, words = MADE[row]
    with pytest.raises(kind) as info:
        pyflash3.plan(**(dense() | changes))
    assert words in str(info.value)
