"""Which library the tests load, and when GPU tests run.

The library is FLASH3_BUILD_DIR/libflash3.so, by default build/ of the repository; PYFLASH3_LIBRARY overrules both.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.build_dir import BUILD_DIR
from tests.obstacle import gpu_obstacle

TESTS = Path(__file__).resolve().parent

# Before pyflash3 looks for it, also in subprocesses.
os.environ.setdefault("PYFLASH3_LIBRARY", str(BUILD_DIR / "libflash3.so"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips gpu tests where none can run, saying why."""
    if item.get_closest_marker("gpu") is not None and (obstacle := gpu_obstacle()) is not None:
        pytest.skip(f"no usable GPU: {obstacle}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything under tests/gpu needs a GPU."""
    for item in items:
        if "gpu" in item.path.relative_to(TESTS).parts:
            item.add_marker(pytest.mark.gpu)
