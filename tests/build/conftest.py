"""The machine code of the built kernels, read once for all tests."""

from __future__ import annotations

import re

import pytest

from tests.build.machine_code import cuobjdump


@pytest.fixture(scope="session")
def sass() -> dict[str, str]:
    """Machine code by mangled kernel name."""
    parts = re.split(r"^\s*Function : (\S+)$", cuobjdump("--dump-sass"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture(scope="session")
def resources() -> dict[str, dict[str, int]]:
    """REG, STACK, SHARED, LOCAL by mangled kernel name."""
    rows = re.findall(r"Function (\S+):\s+(REG:.*)", cuobjdump("--dump-resource-usage"))
    return {name: {key: int(n) for key, n in re.findall(r"(\w+):(\d+)", row)} for name, row in rows}
