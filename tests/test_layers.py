"""The layer rule: what each part of the house may include or import, and how long a file may be."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent

# Directory under cuda/ -> what its files may include with quotes, by first path component. Headers of the standard
# library, of CUDA and of CUTLASS come in angle brackets.
CUDA_LAYERS = {
    "include": set(),
    "core": {"flash3.h", "core"},
    "host": {"flash3.h", "core", "host"},
    "device": {"flash3.h", "core", "device"},
    "launch": {"flash3.h", "core", "device", "launch"},
    "instantiations": {"flash3.h", "core", "device", "launch"},
    "api": {"flash3.h", "core", "host", "launch", "api"},
}
EXTERNAL = {"core": False, "host": False, "include": False}  # whether <cuda...>, <cute...>, <cutlass...> are allowed

# Module -> modules of the package it may import. Modules that are not named may import all.
PYTHON_LAYERS: dict[str, set[str]] = {
    "_abi": set(),
    "_specs": set(),
    "_cache": {"_specs"},
    "_problem": {"_cache", "_specs"},
    "_errors": set(),
    "_values": set(),
    "_host": set(),
    "_device": set(),
    "_lib": {"_abi", "_errors"},
    "_prepared": {"_abi", "_cache", "_lib", "_problem", "_specs"},
    "_cache_contents": {"_cache", "_problem", "_values"},
    "_reference_cache": set(),
    "reference": {"_reference_cache", "_values"},
    "_call": {
        "_cache", "_cache_contents", "_device", "_errors", "_host", "_prepared", "_problem", "_specs", "_values",
    },
    "attention": {"_call"},
    "kvcache": {"_call", "_specs", "_values"},
    "combine": {"_abi", "_call", "_host", "_lib", "_prepared", "_specs"},
    "plans": {"_abi", "_call", "_host", "_prepared", "_problem", "_specs"},
}  # fmt: skip

MAX_LINES = 300
MAX_LINES_MAINLOOP = 600


def tracked(*patterns: str) -> list[Path]:
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=REPO, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    return [REPO / name for name in names if (REPO / name).is_file()]


def cuda_files() -> list[Path]:
    return tracked("cuda/*.h", "cuda/*.cuh", "cuda/*.cu", "cuda/*.cpp")


@pytest.mark.parametrize("path", cuda_files(), ids=lambda p: str(p.relative_to(REPO)))
def test_cuda_includes(path: Path) -> None:
    layer = path.relative_to(REPO / "cuda").parts[0]
    text = path.read_text()
    for include in re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.MULTILINE):
        assert include.split("/")[0] in CUDA_LAYERS[layer], f"{path.name} includes {include}"
    if layer == "api":
        launch = set(re.findall(r'"(launch/[^"]+)"', text))
        assert launch <= {"launch/fwd.h"}, "api reaches the kernels through launch/fwd.h alone"
    if EXTERNAL.get(layer, True) is False:
        assert not re.search(r"#\s*include\s+<(cuda|cute|cutlass)", text), f"{path.name} must compile with plain g++"


def python_imports(path: Path) -> tuple[set[str], set[str]]:
    """(modules of the package, top-level names of everything else) that a module imports anywhere."""
    own: set[str] = set()
    other: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            other |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            own |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            other.add(node.module.split(".")[0])
    return own, other


@pytest.mark.parametrize("path", tracked("pyflash3/*.py"), ids=lambda p: str(p.relative_to(REPO)))
def test_python_imports(path: Path) -> None:
    own, other = python_imports(path)
    if path.parent.name == "pyflash3" and path.stem in PYTHON_LAYERS:
        assert own <= PYTHON_LAYERS[path.stem]
    assert "torch" not in other
    assert "pyflash3" not in other
    assert path.stem == "_device" or "cupy" not in other, "_device is the only file that imports cupy"


@pytest.mark.parametrize(
    "path", [*cuda_files(), *tracked("*.py", "*.sh")], ids=lambda p: str(p.relative_to(REPO))
)  # fmt: skip
def test_length(path: Path) -> None:
    limit = MAX_LINES_MAINLOOP if "mainloop" in path.name else MAX_LINES
    assert len(path.read_text().splitlines()) <= limit
