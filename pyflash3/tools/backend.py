"""Which engine a tool works with, and how arrays get there and back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from .._call import device_module
from .._errors import Flash3Error, NoDeviceError
from .._lib import library

DTYPES: dict[str, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


@dataclass(frozen=True)
class Backend:
    """The host engine (NumPy arrays) or the GPU (CuPy arrays)."""

    name: str
    description: str
    dtypes: tuple[str, ...]

    def put(self, x: Any) -> Any:
        """A NumPy array as an array of this backend."""
        return x if self.name == "host" else device_module().from_numpy(x)

    def get(self, x: Any) -> Any:
        """An array of this backend as a NumPy array."""
        return x if self.name == "host" else device_module().to_numpy(x)

    def seconds(self, call: Callable[[], Any]) -> float:
        """Best of a few runs of call, each waited for."""
        wait = (lambda: None) if self.name == "host" else device_module().synchronize
        best = float("inf")
        for _ in range(3 if self.name == "host" else 20):
            wait()
            begin = time.perf_counter()
            call()
            wait()
            best = min(best, time.perf_counter() - begin)
        return best


def cuda_obstacle() -> str | None:
    """Why CUDA calls cannot run here, in one sentence; None when they can."""
    try:
        device = device_module()
    except ImportError as error:
        return f"CuPy cannot be imported ({error}); pip install 'cupy-cuda13x[ctk]'"
    if device.device_count() == 0:
        return "CuPy sees no CUDA device"
    try:
        library().device_check(0)
    except (Flash3Error, NotImplementedError) as error:
        return str(error)
    return None


def select(name: str) -> Backend:
    """The backend called host, cuda, or auto (the GPU when it can run). NoDeviceError when cuda cannot."""
    obstacle = None if name == "host" else cuda_obstacle()
    if name == "cuda" and obstacle is not None:
        raise NoDeviceError(f"the CUDA backend cannot run here: {obstacle}")
    if name == "host" or obstacle is not None:
        return Backend("host", "host engine, NumPy arrays", ("float16", "bfloat16", "float32"))
    gpu = device_module().device_name(0)
    return Backend("cuda", f"{gpu}, CuPy arrays", built_dtypes())


def built_dtypes() -> tuple[str, ...]:
    """Element types that this build has CUDA kernels for."""
    names = {"fp16": "float16", "bf16": "bfloat16"}
    built = library().build_info().get("dtypes", "").replace(";", ",").split(",")
    return tuple(names[x] for x in built if x in names)
