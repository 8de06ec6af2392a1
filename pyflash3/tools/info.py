"""`python -m pyflash3 info`: what is installed, and what will run where."""

from __future__ import annotations

import platform
import sys

import ml_dtypes
import numpy as np

from .. import __version__
from .._call import device_module
from .._errors import Flash3Error
from .._lib import library
from .backend import cuda_obstacle


def run() -> int:
    """Prints the table; 1 when the library does not load."""
    _row("pyflash3", __version__)
    _row("Python", f"{platform.python_version()} ({sys.executable})")
    _row("NumPy, ml_dtypes", f"{np.__version__}, {ml_dtypes.__version__}")
    try:
        lib = library()
    except Flash3Error as error:
        _row("library", str(error))
        return 1
    _row("library", f"{lib.path}, version {lib.version()}")
    for key, value in lib.build_info().items():
        _row(f"  {key}", value or "none")
    _row("CuPy", _cupy_version())
    obstacle = cuda_obstacle()
    if obstacle is None:
        for ordinal in range(device_module().device_count()):
            _row(f"GPU {ordinal}", device_module().device_name(ordinal))
    _row("NumPy arrays", "run in the host engine: float16, bfloat16, float32")
    _row("CUDA arrays", "run in the GPU kernels: float16, bfloat16" if obstacle is None else f"cannot run: {obstacle}")
    return 0


def _row(name: str, value: str) -> None:
    print(f"{name:18}{value}")


def _cupy_version() -> str:
    try:
        version: str = device_module().version()
    except ImportError as error:
        return f"cannot be imported ({error})"
    return version
