"""flash3.h and libflash3.so from pure C11, without any C++ or Python between."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.build_dir import REPOSITORY, built_file

SOURCE = Path(__file__).with_name("consumer.c")
FLAGS = ["-std=c11", "-pedantic", "-Werror", "-Wall", "-Wextra", "-O1"]


@pytest.fixture(scope="module")
def compiler() -> str:
    path = shutil.which("gcc") or shutil.which("cc")
    if path is None:
        pytest.skip("no C compiler on PATH")
    return path


def test_header_compiles_alone(compiler: str, tmp_path: Path) -> None:
    """Nothing needs to be included before it, in C11 and in C++17."""
    for language, standard in (("c", "c11"), ("c++", "c++17")):
        source = tmp_path / f"alone.{language}"
        source.write_text('#include "flash3.h"\nint unused_translation_unit;\n')
        include = f"-I{REPOSITORY / 'cuda' / 'include'}"
        strict = [f"-std={standard}", "-pedantic", "-Werror", "-Wall", "-Wextra", "-fsyntax-only"]
        subprocess.run([compiler, "-x", language, *strict, include, str(source)], check=True)


def test_consumer(compiler: str, tmp_path: Path) -> None:
    library = built_file("libflash3.so")
    program = tmp_path / "consumer"
    subprocess.run(
        [compiler, *FLAGS, f"-I{REPOSITORY / 'cuda' / 'include'}", str(SOURCE), "-o", str(program),
         f"-L{library.parent}", "-lflash3", f"-Wl,-rpath,{library.parent}", "-lm"],
        check=True,
    )  # fmt: skip
    result = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert result.stdout == "consumer: all checks passed\n", "the library itself prints nothing"
    assert result.stderr == ""
