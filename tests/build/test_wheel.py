"""`pip wheel .`: the library beside the package, one wheel for every Python 3, and nothing more needed to run."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pyflash3 import __version__
from pyflash3._lib import library
from tests.build_dir import REPOSITORY

if importlib.util.find_spec("scikit_build_core") is None:
    pytest.skip("needs scikit-build-core (scripts/requirements-build.txt)", allow_module_level=True)

CALL = """
import numpy as np, pyflash3
from pyflash3._lib import library
x = np.ones((1, 3, 1, 8), np.float32)
assert (pyflash3.flash_attn_func(x, x, x) == 1).all()
print(library().path)
print(library().build_info()["dtypes"], library().build_info()["head_dims"])
try:
    library().device_check(0)
except NotImplementedError as error:
    print(error)
except RuntimeError:  # no GPU here
    pass
"""

# FLASH3_CUDA -> what else to define; one kernel, since the way of the others into the wheel is the same.
DEFINES = {"OFF": {}, "ON": {"FLASH3_DTYPES": "bf16", "FLASH3_HEAD_DIMS": "64"}}
KERNELS = {"OFF": "", "ON": "bf16 64"}


@pytest.fixture(scope="module", params=DEFINES, ids=lambda cuda: f"cuda={cuda}")
def cuda(request: pytest.FixtureRequest) -> str:
    if request.param == "ON" and not library().build_info().get("cuda"):
        pytest.skip("the library was built without CUDA")
    return str(request.param)


@pytest.fixture(scope="module")
def wheel(cuda: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    defines = {"FLASH3_CUDA": cuda, **DEFINES[cuda]}
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--quiet"]
    # pip calls it -C too, but not the one of Debian 12.
    command += [f"--config-settings=cmake.define.{name}={value}" for name, value in defines.items()]
    command += [f"--config-settings=build-dir={folder / 'build'}", "-w", str(folder), str(REPOSITORY)]
    subprocess.run(command, check=True)
    (path,) = folder.glob("*.whl")
    return path


def test_name(wheel: Path) -> None:
    assert re.fullmatch(rf"pyflash3-{re.escape(__version__)}-py3-none-\w*linux\w*\.whl", wheel.name)


def test_contents(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {"pyflash3/lib/libflash3.so", "pyflash3/py.typed", "pyflash3/attention.py"} <= set(names)
    assert {name.split("/")[0] for name in names} == {"pyflash3", f"pyflash3-{__version__}.dist-info"}
    assert any(name.endswith("LICENSE") for name in names)


def test_installed_it_finds_its_own_library(wheel: Path, cuda: str, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), str(wheel)]
    subprocess.run(pip, check=True)
    env = {name: value for name, value in os.environ.items() if name != "PYFLASH3_LIBRARY"}
    run = [sys.executable, "-c", CALL]
    done = subprocess.run(run, cwd=tmp_path, env={**env, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path, kernels, *refusal = done.stdout.splitlines()
    assert path == str(tmp_path / "pyflash3" / "lib" / "libflash3.so")
    assert kernels.strip() == KERNELS[cuda]
    if cuda == "OFF":
        assert refusal[0].startswith("backend is 1 (CUDA); it must be 0 (host), since this library was built without")
