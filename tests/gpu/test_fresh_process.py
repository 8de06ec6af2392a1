"""The first call of a process in unusual places."""

from __future__ import annotations

import subprocess
import sys

import pytest

PREPARE = """
import cupy, threading, pyflash3
q, k, v = (cupy.random.standard_normal((1, 300, 2, 64), dtype=cupy.float32).astype(cupy.float16) for _ in range(3))
out = cupy.full_like(q, cupy.nan)
cupy.cuda.Device().synchronize()
"""

IN_A_THREAD = """
errors = []
def run():
    try:
        pyflash3.flash_attn_func(q, k, v, causal=True, out=out)
    except BaseException as error:
        errors.append(error)
thread = threading.Thread(target=run)
thread.start()
thread.join()
if errors:
    raise errors[0]
"""

UNDER_CAPTURE = """
stream = cupy.cuda.Stream(non_blocking=True)
with stream:
    stream.begin_capture()
    pyflash3.flash_attn_func(q, k, v, causal=True, out=out)
    graph = stream.end_capture()
graph.launch(stream)
stream.synchronize()
"""

CHECK = """
cupy.cuda.Device().synchronize()
assert cupy.isfinite(out).all()
again = pyflash3.flash_attn_func(q, k, v, causal=True)
assert (again == out).all()
"""


def run(code: str) -> None:
    """Runs code in a new interpreter."""
    result = subprocess.run([sys.executable, "-c", PREPARE + code + CHECK], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.usefixtures("cuda")
def test_the_first_call_is_in_a_thread_that_has_no_context_yet() -> None:
    run(IN_A_THREAD)


@pytest.mark.usefixtures("cuda")
def test_the_first_call_is_captured_into_a_graph() -> None:
    run(UNDER_CAPTURE)
