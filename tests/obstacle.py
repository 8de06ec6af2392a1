"""Why GPU tests cannot run here, asked once per process."""

from __future__ import annotations

import functools


@functools.cache
def gpu_obstacle() -> str | None:
    """None where they can."""
    # Not before tests/conftest.py has said which library is loaded.
    from pyflash3.tools.backend import cuda_obstacle

    return cuda_obstacle()
