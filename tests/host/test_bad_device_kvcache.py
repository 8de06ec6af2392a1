"""SPEC section 5 for a KV cache on a GPU and for flash_attn_combine there, as far as it needs no GPU."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pyflash3 import _prepared, combine, flash_attn_combine
from pyflash3._abi import BACKEND_CUDA, CombineParams
from pyflash3._cache import CacheRequest
from pyflash3._problem import AttnProblem, Request

FLASH3_OK = 0
F32, BF16, I32 = np.float32, ml_dtypes.bfloat16, np.int32


def spec(shape: tuple[int, ...], dtype: Any = BF16, device: int = 0, strides: tuple[int, ...] | None = None) -> Any:
    array = np.empty(shape, dtype)
    return shape, strides or array.strides, array.dtype, device


def on_gpu(kvcache: bool = True, **changes: Any) -> AttnProblem:
    """A call of device arrays, of which no GPU is needed to check it. k and v are the caches, k_new and v_new rows."""
    request: dict[str, Any] = dict.fromkeys(Request._fields) | {
        "q": spec((3, 2, 4, 32)), "k": spec((3, 4, 2, 32)), "v": spec((3, 4, 2, 32)), "seqused_k": spec((3,), I32),
        "softcap": 0.0, "window": (-1, 0), "num_splits": 0, "sm_margin": 0,
    }  # fmt: skip
    cache: dict[str, Any] = dict.fromkeys(CacheRequest._fields) | {"rotary_interleaved": True, "kvcache": kvcache}
    for name, value in changes.items():
        (cache if name in cache else request)[name] = value
    return AttnProblem.of(Request(**request | {"cache": CacheRequest(**cache)}))


NEW = {"k_new": spec((3, 1, 2, 32)), "v_new": spec((3, 1, 2, 32))}
TURNS = {**NEW, "rotary_cos": spec((9, 16)), "rotary_sin": spec((9, 16))}
ON_GPU: list[dict[str, Any]] = [
    {}, {"page_table": spec((3, 2), I32)}, {"page_table": spec((3, 2), I32), "kvcache": False}, {"num_splits": 37},
    {"cache_batch_idx": spec((3,), I32), "k": spec((5, 4, 2, 32)), "v": spec((5, 4, 2, 32))},
    {"cache_leftpad": spec((3,), I32)}, NEW, TURNS | {"rotary_seqlens": spec((3,), I32)},
]  # fmt: skip


@pytest.mark.parametrize("changes", ON_GPU, ids=lambda x: "-".join(x) or "dense")
def test_caches_on_a_gpu(changes: dict[str, Any]) -> None:
    problem = on_gpu(**changes)
    assert problem.device == 0
    assert problem.cache is not None
    assert (problem.cache.page_size, problem.cache.max_pages) == ((4, 2) if "page_table" in changes else (0, 0))


WRONG_ON_GPU: dict[str, tuple[dict[str, Any], str]] = {
    "table on the host": ({"page_table": spec((3, 2), I32, -1)}, "page_table is on the host, but q is on CUDA device 0; all arrays must be in one place"),
    "lengths elsewhere": ({"seqused_k": spec((3,), I32, 1)}, "cache_seqlens is on CUDA device 1, but q is on CUDA device 0; all arrays must be in one place"),
    "new rows elsewhere": (NEW | {"v_new": spec((3, 1, 2, 32), device=1)}, "v is on CUDA device 1, but q is on CUDA device 0; all arrays must be in one place"),
    "cache stride": ({"k": spec((3, 4, 2, 32), strides=(544, 136, 64, 2))}, "k_cache has strides (544, 136, 64, 2) bytes; each must be a multiple of 16 bytes"),
    "stride of new rows": (NEW | {"k_new": spec((3, 1, 2, 32), strides=(136, 136, 64, 2))}, "k has strides (136, 136, 64, 2) bytes; each must be a multiple of 16 bytes"),
    "negative stride": (NEW | {"v_new": spec((3, 1, 2, 32), strides=(128, 128, -64, 2))}, "v has strides (128, 128, -64, 2) bytes; on a GPU none may be negative"),
    "stride of the tables": (TURNS | {"rotary_sin": spec((9, 16), strides=(36, 2))}, "rotary_sin has strides (36, 2) bytes; each must be a multiple of 16 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("row", WRONG_ON_GPU)
def test_wrong_caches_on_a_gpu(row: str) -> None:
    changes, words = WRONG_ON_GPU[row]
    with pytest.raises(ValueError, match=re.escape(words)) as info:
        on_gpu(**changes)
    assert "\n" not in str(info.value)


def test_misaligned_new_rows_on_a_gpu() -> None:
    problem = on_gpu(**TURNS)
    error = _prepared._misaligned([("k_new", 4096), ("rotary_cos", 4104)], problem)
    assert str(error) == "rotary_cos starts at address 0x1008; it must be a multiple of 16 bytes"
    error = _prepared._misaligned([("k_new", 4104)], problem)
    assert str(error) == "k starts at address 0x1008; it must be a multiple of 16 bytes"


OUT, LSE = (3, 2, 5, 4, 8), (3, 2, 5, 4)


class Memory:
    def __init__(self, ptr: int, device_id: int) -> None:
        self.ptr, self.device_id = ptr, device_id


class DeviceArray:
    """What a call sees of a CuPy array."""

    def __init__(
        self, shape: tuple[int, ...], dtype: Any = F32, device: int = 1, ptr: int = 4096, like: Any = None
    ) -> None:
        like = np.empty(shape, dtype) if like is None else like
        self.shape, self.strides, self.dtype, self.itemsize = like.shape, like.strides, like.dtype, like.itemsize
        self.data = Memory(ptr, device)
        self.like = like

    def swapaxes(self, a: int, b: int) -> DeviceArray:
        return DeviceArray((), like=self.like.swapaxes(a, b), ptr=self.data.ptr, device=self.data.device_id)


class Gpu:
    """pyflash3._device of a machine with devices 0 and 1, and of the library what it was last called with."""

    Array = DeviceArray
    current = 0
    calls: list[tuple[CombineParams, int, int]]

    @staticmethod
    def pointer(x: DeviceArray) -> int:
        return x.data.ptr

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        return DeviceArray(shape, dtype, cls.current, 8192)

    @classmethod
    def on_device(cls, ordinal: int) -> Any:
        return cls() if ordinal != cls.current else None

    def __enter__(self) -> None:
        Gpu.current = 1

    def __exit__(self, *_: object) -> None:
        Gpu.current = 0

    @classmethod
    def stream(cls) -> int:
        return 77 + cls.current

    @classmethod
    def flash3_combine(cls, params: CombineParams, stream: int) -> int:
        cls.calls.append((params, stream, cls.current))
        return 0


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> type[Gpu]:
    from pyflash3 import _call

    Gpu.calls = []
    for module in (_call, combine):
        monkeypatch.setattr(module, "device_module", lambda: Gpu)
    monkeypatch.setattr(combine, "library", lambda: SimpleNamespace(cdll=Gpu, check=[FLASH3_OK].index))
    return Gpu


def combined(**changes: Any) -> Any:
    return flash_attn_combine(**{"out_partial": DeviceArray(OUT), "lse_partial": DeviceArray(LSE), **changes})


def test_combine_on_the_device_and_stream_of_its_arrays(gpu: type[Gpu]) -> None:
    out, lse = combined(out_dtype=BF16)
    ((params, stream, device),) = gpu.calls
    assert (params.backend, params.device, params.dtype, stream, device) == (BACKEND_CUDA, 1, 1, 78, 1)
    assert (params.num_splits, params.batch, params.seqlen, params.nheads, params.head_dim) == OUT
    assert (out.shape, out.dtype, lse.shape) == ((2, 5, 4, 8), np.dtype(BF16), (2, 5, 4))
    assert (params.lse_batch_stride, params.lse_row_stride, params.lse_head_stride) == (20, 1, 5)
    assert (params.out_batch_stride, params.out_row_stride, params.out_head_stride) == (160, 32, 8)
    into = DeviceArray((2, 5, 4, 8), BF16)
    assert combined(out=into)[0] is into


COMBINE: dict[str, tuple[dict[str, Any], str]] = {
    "lse on the host": ({"lse_partial": np.zeros(LSE, F32)}, "lse_partial is on the host, but out_partial is on CUDA device 1; all arrays must be in one place"),
    "out elsewhere": ({"out": DeviceArray((2, 5, 4, 8), device=0)}, "out is on CUDA device 0, but out_partial is on CUDA device 1; all arrays must be in one place"),
    "partial on the host": ({"out_partial": np.zeros(OUT, F32)}, "lse_partial is on CUDA device 1, but out_partial is on the host; all arrays must be in one place"),
    "address": ({"out_partial": DeviceArray(OUT, ptr=4104)}, "out_partial starts at address 0x1008; it must be a multiple of 16 bytes"),
    "address of out": ({"out": DeviceArray((2, 5, 4, 8), ptr=4100)}, "out starts at address 0x1004; it must be a multiple of 16 bytes"),
    "address of lse": ({"lse_partial": DeviceArray(LSE, ptr=4098)}, "lse_partial starts at address 0x1002; it must be a multiple of 4 bytes"),
    "stride": ({"out_partial": DeviceArray((), like=np.zeros((3, 2, 5, 4, 10), F32)[..., :8])}, "each must be a multiple of 16 bytes"),
    "head_dim": ({"out_partial": DeviceArray((3, 2, 5, 4, 12)), "out_dtype": BF16}, "out_partial has head_dim 12; on a GPU it must be a multiple of 8 for an out of bfloat16"),
}  # fmt: skip


@pytest.mark.parametrize("row", COMBINE)
def test_wrong_combine_on_a_gpu(row: str, gpu: type[Gpu]) -> None:
    combined(lse_partial=DeviceArray((), like=np.zeros((3, 2, 4, 5), F32).swapaxes(2, 3), ptr=4100))
    changes, words = COMBINE[row]
    with pytest.raises(ValueError, match=re.escape(words)):
        combined(**changes)
    assert len(gpu.calls) == 1
