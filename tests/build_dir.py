"""Where the tests find what CMake has built: $FLASH3_BUILD_DIR, else <repository>/build."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
BUILD_DIR = Path(os.environ.get("FLASH3_BUILD_DIR", str(REPOSITORY / "build"))).resolve()


def built_file(name: str) -> Path:
    """Path of a file in the build folder.

    A missing file fails the test unless no build folder was named and none is there: then nobody has built yet, and
    the test is skipped.
    """
    path = BUILD_DIR / name
    if not path.exists():
        message = f"{path} is not there; build first: cmake -S . -B build && cmake --build build"
        if "FLASH3_BUILD_DIR" in os.environ or BUILD_DIR.exists():
            pytest.fail(message)
        pytest.skip(message)
    return path


def load_library(name: str) -> ctypes.CDLL:
    """A library of the build folder, e.g. "libflash3_core.so"."""
    return ctypes.CDLL(str(built_file(name)))
