"""python -m pyflash3 info | selftest | demo, on the host engine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pyflash3._lib import library
from pyflash3.tools import backend, demo, selftest
from pyflash3.tools.backend import cuda_obstacle
from pyflash3.tools.cases import Case
from tests.build_dir import REPOSITORY


def pyflash3(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pyflash3", *arguments]
    return subprocess.run(command, env={**os.environ, **env}, cwd=REPOSITORY, capture_output=True, text=True)


def test_info() -> None:
    done = pyflash3("info")
    assert done.returncode == 0, done.stderr
    for words in (library().path, library().version(), "head_dims", "NumPy arrays", "CUDA arrays"):
        assert words in done.stdout


def test_info_without_a_library() -> None:
    done = pyflash3("info", PYFLASH3_LIBRARY="/nowhere/libflash3.so")
    assert done.returncode == 1
    assert "/nowhere/libflash3.so: no such file" in done.stdout


def test_selftest() -> None:
    done = pyflash3("selftest", "--quick", "--backend", "host")
    assert done.returncode == 0, done.stderr
    assert "0 failed in" in done.stdout
    assert "host engine" in done.stdout


def test_selftest_tells_of_wrong_results(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A library that ignores the mask."""
    true = Case.run
    monkeypatch.setattr(
        Case, "run", lambda case, b, arrays, numbers: true(case, b, arrays, {**numbers, "causal": False})
    )
    assert selftest.run("host", quick=True) == 1
    assert "FAILED float32" in capsys.readouterr().out


def test_demo(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.run("host") == 0
    assert capsys.readouterr().out.endswith("all right\n")


def test_demo_tells_of_wrong_results(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(backend.Backend, "get", lambda _, x: x + 1)
    assert demo.run("host") == 1
    assert capsys.readouterr().out.endswith("WRONG RESULTS\n")


def test_the_gpu_where_there_is_none() -> None:
    if cuda_obstacle() is None:
        pytest.skip("there is a GPU here")
    for command in ("selftest", "demo"):
        done = pyflash3(command, "--backend", "cuda")
        assert done.returncode == 1
        assert done.stderr.startswith("pyflash3: the CUDA backend cannot run here: ")
        assert done.stderr.count("\n") == 1
