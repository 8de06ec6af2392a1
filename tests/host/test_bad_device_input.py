"""SPEC section 5 for device arrays and foreign ones, as far as it needs no GPU: places, strides, DLPack."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pyflash3 import _call, _prepared, flash_attn_func
from pyflash3._problem import AttnProblem, Request

F32, BF16, I32 = np.float32, ml_dtypes.bfloat16, np.int32
Q, KV, OUT = (2, 5, 4, 16), (2, 7, 2, 16), (2, 5, 4, 16)


def host_call(**changes: Any) -> Any:
    arguments = {"q": np.zeros(Q, F32), "k": np.zeros(KV, F32), "v": np.zeros(KV, F32), **changes}
    return flash_attn_func(**arguments)


class Foreign:
    """An array of another framework, as far as DLPack shows it."""

    def __init__(self, device_type: int, requires_grad: bool = False) -> None:
        self.device_type, self.requires_grad = device_type, requires_grad

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device_type, 0

    def __dlpack__(self, **kwargs: Any) -> Any:
        raise BufferError(f"no export with {sorted(kwargs)}")


class FakeCupy:
    """pyflash3._device where there is no CuPy."""

    Array = ()

    @staticmethod
    def is_capturing() -> bool:
        return True

    @staticmethod
    def to_numpy(x: Any) -> Any:
        raise AssertionError(f"{x} must not have been read in a capture")

    @staticmethod
    def from_dlpack(name: str, x: Foreign) -> Any:
        raise AssertionError(f"{name} must have been refused: {x}")


def test_host_arrays_of_other_frameworks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_call, "device_module", lambda: FakeCupy)
    with pytest.raises(TypeError, match="k is of type Foreign on the host; on the host it must be a NumPy array"):
        host_call(k=Foreign(device_type=1))


def test_gpu_arrays_without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise ImportError("No module named 'cupy'")

    monkeypatch.setattr(_call, "device_module", missing)
    with pytest.raises(RuntimeError, match=r"q is of type Foreign, .* need CuPy, .*pip install 'cupy-cuda13x\[ctk\]'"):
        host_call(q=Foreign(device_type=2))
    # CuPy would not help here.
    with pytest.raises(TypeError, match="q is of type Foreign on the host; on the host it must be a NumPy array"):
        host_call(q=Foreign(device_type=1))


def test_tensors_that_cannot_be_shared() -> None:
    device = pytest.importorskip("pyflash3._device", reason="needs CuPy", exc_type=ImportError)
    with pytest.raises(TypeError, match=r"q is a tensor that requires a gradient.*pass q\.detach\(\)"):
        device.from_dlpack("q", Foreign(2, requires_grad=True))


Spec = tuple[Any, ...]


def spec(shape: tuple[int, ...], dtype: Any = BF16, device: int = 0, strides: tuple[int, ...] | None = None) -> Spec:
    array = np.empty(shape, dtype)
    return shape, strides or array.strides, array.dtype, device


def on_gpu(**changes: Any) -> AttnProblem:
    """A dense problem of device arrays, of which no GPU is needed to check it."""
    fields: dict[str, Any] = dict.fromkeys(Request._fields)
    fields |= {"q": spec(Q), "k": spec(KV), "v": spec(KV), "softcap": 0.0, "window": (-1, -1)}
    fields |= {"num_splits": 0, "sm_margin": 0, **changes}
    return AttnProblem.of(Request(**fields))


GPU: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "float32": ({x: spec(Q if x == "q" else KV, F32) for x in "qkv"}, TypeError, "q has dtype float32; allowed on a GPU are float16, bfloat16"),
    "mixed devices": ({"k": spec(KV, device=1)}, ValueError, "k is on CUDA device 1, but q is on CUDA device 0; all arrays must be in one place"),
    "k on the host": ({"k": spec(KV, device=-1)}, ValueError, "k is on the host, but q is on CUDA device 0; all arrays must be in one place"),
    "out on the host": ({"out": spec(OUT, device=-1)}, ValueError, "out is on the host, but q is on CUDA device 0"),
    "slopes on the host": ({"alibi_slopes": spec((4,), F32, -1)}, ValueError, "alibi_slopes is on the host, but q is on CUDA device 0"),
    "sinks elsewhere": ({"sinks": spec((4,), F32, 1)}, ValueError, "sinks is on CUDA device 1, but q is on CUDA device 0"),
    "stride": ({"q": spec(Q, strides=(660, 132, 34, 2))}, ValueError, "q has strides (660, 132, 34, 2) bytes; each must be a multiple of 16 bytes"),
    "negative stride": ({"v": spec(KV, strides=(448, -64, 32, 2))}, ValueError, "v has strides (448, -64, 32, 2) bytes; on a GPU none may be negative"),
    "out stride": ({"out": spec(OUT, strides=(640, 128, 40, 2))}, ValueError, "out has strides (640, 128, 40, 2) bytes; each must be a multiple of 16"),
    "splits": ({"num_splits": 257}, ValueError, "num_splits is 257; it must be from 0 (the library chooses) to 256"),
    "too many rows": ({"q": ((2, 2**30, 4, 16), (2**37, 128, 32, 2), np.dtype(BF16), 0)}, ValueError, "q has 2147483648 rows in all; at most 2147483647 are allowed"),
}  # fmt: skip


@pytest.mark.parametrize("row", GPU)
def test_device_arrays(row: str) -> None:
    on_gpu()
    changes, kind, words = GPU[row]
    with pytest.raises(kind) as info:
        on_gpu(**changes)
    assert words in str(info.value)
    assert "\n" not in str(info.value)


def test_lengths_on_the_host_of_device_arrays() -> None:
    packed = {"q": spec((9, 4, 16)), "k": spec((12, 2, 16)), "v": spec((12, 2, 16))}
    lengths = {"cu_seqlens_q": spec((4,), I32), "cu_seqlens_k": spec((4,), I32)}
    assert on_gpu(**packed, **lengths).batch == 3
    for name in ("cu_seqlens_q", "cu_seqlens_k", "seqused_q", "seqused_k"):
        wrong = spec((4 if "cu" in name else 3,), I32, device=-1)
        with pytest.raises(ValueError, match=f"{name} is on the host, but q is on CUDA device 0"):
            on_gpu(**{**packed, **lengths, name: wrong})


def test_lengths_are_not_read_in_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_call, "device_module", lambda: FakeCupy)
    with pytest.raises(RuntimeError, match="PYFLASH3_CHECK is 1, but lengths cannot be read while a graph is captured"):
        _call.check_lengths(on_gpu(), [None] * 10)


@pytest.mark.parametrize("num_splits", [0, 1, 2, 256])
def test_splits(num_splits: int) -> None:
    assert on_gpu(num_splits=num_splits).num_splits == num_splits


def test_sizes_of_one_may_have_any_stride() -> None:
    problem = on_gpu(q=spec((1, 5, 1, 16), strides=(3, 160, 7, 2)), k=spec((1, 7, 1, 16)), v=spec((1, 7, 1, 16)))
    assert problem.q_strides == (16, 80, 16)


def test_misaligned_device_addresses() -> None:
    problem = on_gpu()
    assert problem.alignment == 16
    error = _prepared._misaligned([("k", 4096), ("v", 4104)], problem)
    assert str(error) == "v starts at address 0x1008; it must be a multiple of 16 bytes"
