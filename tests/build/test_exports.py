"""What the built libraries show to the outside, and what they need from it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.build_dir import REPOSITORY, built_file

LIBRARIES = ["libflash3.so", "libflash3_core.so"]
# The C library in its parts (older glibc keeps threads, dlopen and clocks in files of their own) and the loader.
ALLOWED_NEEDED = re.compile(r"^(libc|libm|libpthread|libdl|librt|ld-linux[-\w]*)\.so\.\d+$")


def output(tool: str, *args: str) -> str:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not on PATH")
    return subprocess.run([tool, *args], capture_output=True, text=True, check=True).stdout


def defined_symbols(library: Path) -> set[str]:
    lines = output("nm", "-D", "--defined-only", "--no-demangle", str(library)).splitlines()
    return {line.split()[-1].split("@")[0] for line in lines}


def header_functions() -> set[str]:
    text = (REPOSITORY / "cuda" / "include" / "flash3.h").read_text()
    return set(re.findall(r"^FLASH3_API [^(]*?(\w+)\(", text, re.MULTILINE))


def test_exports_are_the_functions_of_the_header() -> None:
    """R7: a relative's exported symbol clashed with another library."""
    functions = header_functions()
    assert "run_mha_v3" in functions
    assert all(name == "run_mha_v3" or name.startswith("flash3_") for name in functions)
    assert defined_symbols(built_file("libflash3.so")) == functions


def test_core_exports_its_test_surface_alone() -> None:
    symbols = defined_symbols(built_file("libflash3_core.so"))
    assert symbols
    assert all(name.startswith("flash3_test_") for name in symbols)


@pytest.mark.parametrize("name", LIBRARIES)
def test_needs_the_c_library_alone(name: str) -> None:
    """No libcuda, so that it loads without a driver; no libcudart, libstdc++ or libtorch to bring along."""
    dynamic = output("readelf", "-d", str(built_file(name)))
    needed = re.findall(r"\(NEEDED\).*\[(.+?)\]", dynamic)
    assert needed
    assert [n for n in needed if not ALLOWED_NEEDED.match(n)] == []
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic


@pytest.mark.parametrize("name", LIBRARIES)
def test_takes_no_foreign_symbols(name: str) -> None:
    """Symbols of CUDA's driver or torch would be bound at load time, needed library or not."""
    undefined = output("nm", "-D", "--undefined-only", str(built_file(name)))
    names = [line.split()[-1] for line in undefined.splitlines()]
    assert [n for n in names if re.match(r"cu[A-Z]|cuda[A-Z]|.*(torch|c10)", n)] == []


def test_stack_is_not_executable() -> None:
    headers = output("readelf", "-lW", str(built_file("libflash3.so")))
    stack = next(line for line in headers.splitlines() if "GNU_STACK" in line)
    assert "RWE" not in stack
