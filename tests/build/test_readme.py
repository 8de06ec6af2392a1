"""The README's examples run as they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.build_dir import REPOSITORY, built_file


def example(language: str, mark: str) -> str:
    """The one code block of the README in that language that holds the mark."""
    blocks = re.findall(
        rf"^```{language}\n(.*?)^```$", (REPOSITORY / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    (block,) = [block for block in blocks if mark in block]
    return str(block)


def run_python(code: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_numpy_example() -> None:
    errors = [float(x) for x in run_python(example("python", "reference.attention")).split()]
    assert len(errors) == 2
    assert max(errors) < 1e-5


def test_plan_example() -> None:
    check = """
from pyflash3 import flash_attn_func
want = flash_attn_func(other_q, k, v, causal=True, return_lse=True)
assert (step.out == want[0]).all() and (step.lse == want[1]).all()
"""
    run_python(example("python", "import plan") + check)


def test_kvcache_example() -> None:
    check = """
from pyflash3 import reference
cache_seqlens -= 1
want = reference.attention_with_kvcache(
    q, k_cache, v_cache, k, v, cos, sin, cache_seqlens, page_table=page_table, causal=True
)
assert abs(out - want[0]).max() < 1e-5 and (v_cache == want[3]).all()
"""
    run_python(example("python", "out = flash_attn_with_kvcache(q, k_cache") + check)


def test_latent_example() -> None:
    check = """
from pyflash3 import reference
want = reference.attention_with_kvcache(
    q, cache, None, cache_seqlens=cache_seqlens + 1, page_table=page_table, softmax_scale=192**-0.5, d_v=512
)
assert out.shape == (2, 1, 128, 512) and abs(out - want[0]).max() < 1e-5
assert (cache[page_table[1, 3], 8] == new[1, 0]).all()
"""
    run_python(example("python", "d_v=512") + check)


@pytest.mark.gpu
def test_cupy_example() -> None:
    run_python(example("python", "import cupy"))


@pytest.mark.gpu
def test_torch_example() -> None:
    pytest.importorskip("torch", reason="the example is about torch")
    run_python(example("python", "import torch"))


def test_c_example(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source, program, folder = tmp_path / "example.c", tmp_path / "example", built_file("libflash3.so").parent
    source.write_text(example("c", "run_mha_v3"))
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{REPOSITORY / 'cuda/include'}"]
    flags += [f"-L{folder}", "-lflash3", "-lm", f"-Wl,-rpath,{folder}"]
    subprocess.run([compiler, str(source), "-o", str(program), *flags], check=True)
    # The first row sees only itself, so its result is its own value; the last one is a mean of values below 7.
    first, last = (
        float(x) for x in subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    )
    assert first == 0.0
    assert 0.0 < last < 7.0
