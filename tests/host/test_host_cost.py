"""What it takes the host to issue a call: the benchmark's tiny calls, and how much Python runs in each.

Times depend on the machine and on what else it does. Numbers of function calls and allocations do not, and they grow
when somebody has work done anew in every call.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pyflash3
from pyflash3 import _call, _lib, _planned, _prepared
from scripts.benchlib.tiny_calls import tiny_calls
from tests.host.kvcache_cases import equal

BF16, F32, I32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32), np.dtype(np.int32)
REPEATED = 3


def result(call: Callable[[], Any]) -> Any:
    """The output of a call that may also give a log-sum-exp."""
    got = call()
    return got[0] if isinstance(got, tuple) else got


def test_tiny_calls_agree() -> None:
    calls = tiny_calls(np, F32)
    dense = result(calls["dense"])
    assert np.isfinite(dense).all()
    for name in ("dense, out=", "dense, return_lse", "plan", "plan, other q, k, v and out"):
        equal(result(calls[name]), dense)
    for name in ("varlen", "varlen, return_lse", "plan, varlen", "plan, varlen, return_lse"):
        equal(result(calls[name]), dense[0])
    cached = result(calls["kvcache"])
    equal(result(calls["plan, kvcache"]), cached)
    paged = result(calls["kvcache, paged, new rows"])
    assert (paged != cached).any(), "the new rows are keys"
    for name in ("plan, kvcache, paged, new rows", "plan, kvcache, another layer"):
        equal(result(calls[name]), paged)


class DeviceArray:
    """What a call sees of a CuPy array."""

    def __init__(self, shape: tuple[int, ...], dtype: Any = BF16) -> None:
        like = np.empty(shape, dtype)
        self.shape, self.strides, self.dtype = like.shape, like.strides, like.dtype
        self.data = SimpleNamespace(ptr=4096, device_id=0)


STREAM = SimpleNamespace(ptr=0)


class Gpu:
    """pyflash3._device of a machine with one device, which counts what it is asked for."""

    Array = DeviceArray
    allocations = 0
    launches = 0

    @staticmethod
    def pointers(arrays: list[Any]) -> list[int | None]:
        return [None if x is None else x.data.ptr for x in arrays]

    @staticmethod
    def pointer(x: DeviceArray) -> int:
        address: int = x.data.ptr
        return address

    @staticmethod
    def on_device(ordinal: int) -> None:
        assert ordinal == 0

    @staticmethod
    def stream() -> int:
        return 0

    @staticmethod
    def current_stream(ordinal: int) -> Any:
        assert ordinal == 0
        return STREAM

    @classmethod
    def results(cls, out: Any, lse: Any, scratch: int) -> tuple[Any, Any, Any, int]:
        assert scratch > 0
        cls.allocations += 1
        made = [None if x is None else DeviceArray(x[0], x[1]) for x in (out, lse)]
        return made[0], made[1], object(), 4096

    @classmethod
    def allocate_on(cls, ordinal: int, size: int) -> tuple[object, int]:
        assert ordinal == 0
        assert size > 0
        cls.allocations += 1
        return object(), 4096

    @classmethod
    def empty_on(cls, ordinal: int, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        assert ordinal == 0
        cls.allocations += 1
        return DeviceArray(shape, dtype)


def launch(*_: Any) -> int:
    """Stands where run_mha_v3 is called."""
    Gpu.launches += 1
    return 0


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    for module in (_call, _planned):
        monkeypatch.setattr(module, "device_module", lambda: Gpu)
    library = _lib.library()
    stubbed = SimpleNamespace(
        cdll=SimpleNamespace(run_mha_v3=launch), workspace_size=library.workspace_size, check=library.check
    )
    _prepared.prepared.cache_clear()
    monkeypatch.setattr(_prepared, "library", lambda: stubbed)
    yield
    _prepared.prepared.cache_clear()


def device_calls() -> dict[str, Callable[[], Any]]:
    """Calls of arrays that have no contents."""
    q, kv = DeviceArray((1, 64, 4, 64)), DeviceArray((1, 64, 2, 64))
    packed_q, packed_kv = DeviceArray((64, 4, 64)), DeviceArray((64, 2, 64))
    packed: dict[str, Any] = {
        "q": packed_q, "k": packed_kv, "v": packed_kv, "cu_seqlens_q": DeviceArray((2,), I32),
        "cu_seqlens_k": DeviceArray((2,), I32), "max_seqlen_q": 64, "max_seqlen_k": 64,
    }  # fmt: skip
    cache, row = DeviceArray((9, 16, 2, 64)), DeviceArray((1, 1, 2, 64))
    decoding: dict[str, Any] = {
        "q": DeviceArray((1, 1, 4, 64)), "k_cache": cache, "v_cache": cache, "k": row, "v": row,
        "cache_seqlens": DeviceArray((1,), I32), "page_table": DeviceArray((1, 9), I32), "causal": True,
    }  # fmt: skip
    plan, layers = pyflash3.plan(q, kv, kv, out=q), pyflash3.plan_with_kvcache(**decoding)
    names = ("q", "k", "v", "k_cache", "v_cache")
    return {
        "dense": lambda: pyflash3.flash_attn_func(q, kv, kv, causal=True),
        "dense, out=, return_lse": lambda: pyflash3.flash_attn_func(q, kv, kv, out=q, return_lse=True),
        "varlen": lambda: pyflash3.flash_attn_varlen_func(**packed),
        "varlen, return_lse": lambda: pyflash3.flash_attn_varlen_func(**packed, return_lse=True),
        "kvcache": lambda: pyflash3.flash_attn_with_kvcache(**decoding),
        "kvcache, return_lse": lambda: pyflash3.flash_attn_with_kvcache(**decoding, return_lse=True),
        "plan": plan,
        "plan, other arrays": lambda: plan(q=q, k=kv, v=kv, out=q),
        "plan, varlen": pyflash3.plan(**packed, return_lse=True),
        "plan, kvcache": layers,
        "plan, kvcache, another layer": lambda: layers(**{name: decoding[name] for name in names}),
    }


# Python functions that each enters, comprehensions included, as Python 3.11 counts them; others count a few less.
# Something done anew for every array or argument would be many more.
FUNCTION_CALLS = {
    "dense": 19, "dense, out=, return_lse": 19, "varlen": 21, "varlen, return_lse": 23, "kvcache": 24,
    "kvcache, return_lse": 26, "plan": 6, "plan, other arrays": 24, "plan, varlen": 6, "plan, kvcache": 7,
    "plan, kvcache, another layer": 29,
}  # fmt: skip
MORE = 2


def function_calls(call: Callable[[], Any]) -> int:
    """How many Python functions a call enters, itself not counted."""
    count = 0

    def profile(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", FUNCTION_CALLS)
def test_what_a_call_does_anew(name: str) -> None:
    call = device_calls()[name]
    call()  # the kind of the call gets prepared
    Gpu.allocations = Gpu.launches = 0
    counts = [function_calls(call) for _ in range(REPEATED)]
    assert Gpu.launches == REPEATED
    assert Gpu.allocations == (0 if name.startswith("plan") else REPEATED), "one allocation for all that a call needs"
    assert len(set(counts)) == 1
    assert counts[0] <= FUNCTION_CALLS[name] + MORE
