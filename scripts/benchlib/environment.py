"""What a record says about the machine and the build that made it."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]


def describe_environment(cupy: Any) -> dict[str, Any]:
    """GPU, driver, CUDA, versions, commit and date; without CuPy (None) the part that needs no GPU."""
    from pyflash3._lib import library

    lib = library()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "pyflash3": lib.version(),
        "build": lib.build_info(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        **({} if cupy is None else _gpu(cupy)),
    }


def commit() -> str:
    """The revision under test: PYFLASH3_COMMIT, else git's, with +changes when the tree differs from it."""
    named = os.environ.get("PYFLASH3_COMMIT")
    if named:
        return named
    revision = _output("git", "-C", str(REPOSITORY), "rev-parse", "HEAD")
    if revision is None:
        return "unknown"
    changes = _output("git", "-C", str(REPOSITORY), "status", "--porcelain", "--untracked-files=no")
    return revision + ("+changes" if changes else "")


def _gpu(cupy: Any) -> dict[str, Any]:
    runtime = cupy.cuda.runtime
    ordinal = runtime.getDevice()
    properties = runtime.getDeviceProperties(ordinal)
    # Power limit and clock explain most of the difference between two machines.
    query = _output(
        "nvidia-smi",
        "-i",
        str(ordinal),
        "--format=csv,noheader",
        "--query-gpu=driver_version,power.limit,clocks.max.sm",
    )
    driver, power, clock = (x.strip() for x in query.split(",")) if query else ("unknown", "unknown", "unknown")
    return {
        "gpu": properties["name"].decode(),
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "multiprocessors": properties["multiProcessorCount"],
        "memory_bytes": properties["totalGlobalMem"],
        "driver": driver,
        "power_limit": power,
        "max_sm_clock": clock,
        "cuda_driver_api": runtime.driverGetVersion(),
        "cuda_runtime": runtime.runtimeGetVersion(),
        "cupy": cupy.__version__,
    }


def _output(*command: str) -> str | None:
    """What a command prints, or None when it cannot run here."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
