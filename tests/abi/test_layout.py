"""The ctypes mirror of flash3_params against the library, and what happens to a library that does not fit."""

from __future__ import annotations

import ctypes.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyflash3 import _abi, _lib

REPO = Path(__file__).resolve().parents[2]
HEADER = REPO / "cuda" / "include" / "flash3.h"

USE_LIBRARY = "from pyflash3._lib import library; library()"


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, cwd=REPO, capture_output=True, text=True, check=False
    )


STRUCTS = ("flash3_params", "flash3_combine_params")


@pytest.mark.parametrize("struct", STRUCTS)
def test_every_field_has_the_librarys_name_offset_and_size(struct: str) -> None:
    assert _abi.library_layout(_lib.library().cdll, struct) == _abi.own_layout(struct)


def test_versions_are_those_of_the_header() -> None:
    text = HEADER.read_text()
    version = [re.search(rf"FLASH3_VERSION_{part} (\d+)", text) for part in ("MAJOR", "MINOR", "PATCH")]
    abi = re.search(r"FLASH3_ABI_VERSION (\d+)u", text)
    assert ".".join(m[1] for m in version if m) == _abi.VERSION == _lib.library().version()
    assert abi is not None
    assert int(abi[1]) == _abi.ABI_VERSION == _lib.library().cdll.flash3_abi_version()


def test_every_function_of_the_header_is_declared() -> None:
    cdll = _lib.library().cdll
    names = re.findall(r"^FLASH3_API [^(]*?(\w+)\(", HEADER.read_text(), re.MULTILINE)
    assert len(names) >= 8
    for name in names:
        assert getattr(cdll, name).argtypes is not None, name


def foreign(layouts: dict[str, _abi.Layout] | None = None, abi_version: int = _abi.ABI_VERSION) -> Any:
    """A stand-in for a loaded library 9.8.7 with another ABI version, or another layout of the structs named."""

    def layout(struct: str) -> Any:
        places = (layouts or {}).get(struct, _abi.own_layout(struct))
        fields = [_abi.Field(name.encode(), offset, size) for name, offset, size in places]

        def exported(count: Any) -> list[_abi.Field]:
            count._obj.value = len(fields)
            return fields

        return exported

    return SimpleNamespace(
        flash3_version=lambda: b"9.8.7",
        flash3_abi_version=lambda: abi_version,
        **{f"{struct}_layout": layout(struct) for struct in STRUCTS},
    )


def test_a_fitting_library_is_accepted() -> None:
    assert _abi.mismatch(foreign()) is None


def test_another_abi_version_is_refused_naming_both() -> None:
    message = _abi.mismatch(foreign(abi_version=77))
    assert message is not None
    assert "9.8.7 (ABI 77)" in message
    assert f"{_abi.VERSION} (ABI {_abi.ABI_VERSION})" in message


@pytest.mark.parametrize("change", ["moved", "renamed", "resized", "missing"])
@pytest.mark.parametrize(("struct", "field"), [*zip(STRUCTS, ("softcap", "out_row_stride"), strict=True)])
def test_another_layout_is_refused_naming_field_and_versions(struct: str, field: str, change: str) -> None:
    layout = _abi.own_layout(struct)
    at = [name for name, _, _ in layout].index(field)
    name, offset, size = layout[at]
    replaced = {"moved": (name, offset + 4, size), "renamed": ("cap", offset, size), "resized": (name, offset, 16)}
    layout = layout[:-1] if change == "missing" else [*layout[:at], replaced[change], *layout[at + 1 :]]
    message = _abi.mismatch(foreign({struct: layout}))
    assert message is not None
    assert f"{struct} differs" in message
    assert "9.8.7" in message
    assert _abi.VERSION in message
    assert ("fields instead of" if change == "missing" else field) in message


def test_a_wrong_struct_size_is_refused_by_the_library() -> None:
    lib = _lib.library()
    params = _abi.Params(struct_size=8, abi_version=_abi.ABI_VERSION)
    with pytest.raises(ImportError, match="struct_size"):
        lib.check(lib.cdll.run_mha_v3(params, None))


def test_a_missing_library_lists_the_path_tried() -> None:
    done = run_python(USE_LIBRARY, PYFLASH3_LIBRARY="/nowhere/libflash3.so")
    assert done.returncode != 0
    assert "LibraryNotFoundError" in done.stderr
    assert "/nowhere/libflash3.so: no such file" in done.stderr


def test_without_a_choice_every_place_is_listed(tmp_path: Path) -> None:
    shutil.copytree(REPO / "pyflash3", tmp_path / "pyflash3", ignore=shutil.ignore_patterns("lib", "__pycache__"))
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {USE_LIBRARY}"
    done = run_python(code, PYFLASH3_LIBRARY="", LD_LIBRARY_PATH="")
    for place in (tmp_path / "pyflash3" / "lib", tmp_path / "build"):
        assert f"{place}/libflash3.so: no such file" in done.stderr
    assert "cannot open shared object file" in done.stderr


def test_a_library_of_something_else_is_refused() -> None:
    libm = ctypes.util.find_library("m") or "libm.so.6"
    done = run_python(USE_LIBRARY, PYFLASH3_LIBRARY=libm)
    assert "AbiMismatchError" in done.stderr
    assert "is not the libflash3" in done.stderr


def test_import_needs_neither_library_nor_cupy() -> None:
    code = "import sys; sys.modules['cupy'] = None; import pyflash3; print(pyflash3.__version__)"
    done = run_python(code, PYFLASH3_LIBRARY="/nowhere/libflash3.so")
    assert done.stdout.strip() == _abi.VERSION, done.stderr


def test_torch_and_cupy_are_not_imported_by_a_numpy_call() -> None:
    code = (
        "import sys, numpy as np, pyflash3; x = np.ones((1, 4, 1, 8), np.float32); pyflash3.flash_attn_func(x, x, x);"
        "print(sorted({'torch', 'cupy', 'jax'} & set(sys.modules)))"
    )
    assert run_python(code).stdout.strip() == "[]"
