"""python -m pyflash3 info | selftest | demo, on the GPU."""

from __future__ import annotations

from typing import Any

import pytest

from pyflash3.tools import demo, info, selftest


def test_info(cuda: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert info.run() == 0
    printed = capsys.readouterr().out
    assert cuda.cuda.runtime.getDeviceProperties(0)["name"].decode() in printed
    assert "run in the GPU kernels" in printed


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("backend", ["auto", "cuda"])
def test_selftest(capsys: pytest.CaptureFixture[str], backend: str) -> None:
    assert selftest.run(backend, quick=True) == 0
    assert "CuPy arrays" in capsys.readouterr().out, "auto takes the GPU where it can run"


@pytest.mark.usefixtures("cuda")
def test_demo(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.run("cuda") == 0
    assert "CuPy arrays" in capsys.readouterr().out
