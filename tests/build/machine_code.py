"""What the CUDA binary tools show of the built kernels."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from pyflash3._lib import library
from tests.build_dir import built_file

FORWARD = "fwd_kernel_sm90"


def tool(name: str) -> str:
    """Path of a CUDA binary tool: on PATH, in the toolkit, or from the PyPI package of its name."""
    wheel = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin"
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), str(wheel), "/usr/local/cuda/bin"]))
    if found is None:
        pytest.skip(f"{name} is not installed (pip install nvidia-cuda-{name})")
    return found


def cuobjdump(option: str) -> str:
    cuda = library().build_info().get("cuda")
    if not cuda:
        pytest.skip("the library was built without CUDA")
    # cuobjdump runs nvdisasm from PATH.
    path = os.pathsep.join([str(Path(tool("nvdisasm")).parent), os.environ.get("PATH", "")])
    command = [tool("cuobjdump"), option, str(built_file("libflash3.so"))]
    return subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True).stdout


def instructions(code: str) -> list[tuple[int, str]]:
    """Address and text of each instruction of a kernel."""
    return [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,6})\*/\s+(.*?) ;", code)]


def loops_of_whole_blocks(code: str) -> list[list[str]]:
    """The instructions of the loops with both products and their exponentials, the shortest one first."""
    rows = instructions(code)
    loops = []
    for at, text in rows:
        jump = re.search(r"\bBRA\b.* 0x([0-9a-f]+)$", text)
        if jump and int(jump[1], 16) < at:
            body = [t for a, t in rows if int(jump[1], 16) <= a <= at]
            if sum("HGMMA" in t for t in body) >= 8 and any("MUFU.EX2" in t for t in body):
                loops.append(body)
    return sorted(loops, key=len)
