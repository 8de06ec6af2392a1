"""The record of a run (--record PATH), and the trial of the test code on the host engine.

With FLASH3_TEST_BACKEND=host every test that does not ask for the fixture `cuda` runs on NumPy arrays.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from scripts.benchlib.environment import describe_environment
from tests.gpu.machine import HOST, xp
from tests.obstacle import gpu_obstacle

_rows: list[dict[str, Any]] = []
_begin = time.time()


@pytest.fixture
def cuda() -> Any:
    """CuPy, for tests that have no meaning on the host."""
    return xp


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On the host engine a test of this folder needs no GPU, unless it asks for the fixture `cuda`."""
    if not HOST:
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and "cuda" not in getattr(item, "fixturenames", ()):
            item.own_markers[:] = [mark for mark in item.own_markers if mark.name != "gpu"]


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """What CuPy keeps of a large test's memory is missing to tests that run at the same time (pytest-xdist)."""
    if HOST or not hasattr(item.config, "workerinput") or gpu_obstacle() is not None:
        return
    pool = xp.get_default_memory_pool()
    if pool.total_bytes() > 1 << 30:
        pool.free_all_blocks()


def pytest_addoption(parser: pytest.Parser) -> None:
    """--record PATH"""
    parser.addoption("--record", metavar="PATH", help="write every test's outcome and figures to this JSON file")


def _short(figure: Any) -> Any:
    """Four digits say what an error is, and keep a record of thousands of rows small."""
    return float(f"{figure:.4g}") if isinstance(figure, float) else figure


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """One row per test: the call itself, or the phase that skipped or broke it."""
    if report.when != "call" and report.passed:
        return
    row: dict[str, Any] = {"test": report.nodeid}
    if seconds := round(report.duration, 1):  # most take less
        row["seconds"] = seconds
    if not report.passed:
        row["outcome"] = report.outcome
    row |= {name: _short(value) for name, value in report.user_properties if not name.startswith("_")}
    if report.skipped and isinstance(report.longrepr, tuple):
        row["reason"] = report.longrepr[2]
    elif report.failed:
        row["reason"] = str(report.longrepr)[-2000:]
    _rows.append(row)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Writes the record, also after a failure or a hang. pytest-xdist's workers report to the process that does."""
    path = session.config.getoption("--record", default=None)
    if path is None or hasattr(session.config, "workerinput"):
        return
    outcomes = [row.get("outcome", "passed") for row in _rows]
    record = {
        "kind": "gpu-tests",
        "backend": "host" if HOST else "cuda",
        "exit_status": int(exitstatus),
        "seconds": round(time.time() - _begin, 1),
        "processes": session.config.getoption("numprocesses", default=None) or 1,
        "counts": {name: outcomes.count(name) for name in ("passed", "failed", "skipped")},
        "environment": describe_environment(None if HOST or gpu_obstacle() is not None else xp),
        "rows": _rows,
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # One line per row, so that records of two runs can be compared with diff.
    head = json.dumps({name: value for name, value in record.items() if name != "rows"}, indent=1)
    in_order = sorted(_rows, key=lambda row: str(row["test"]))
    rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in in_order)  # compact: there are thousands
    Path(path).write_text(f'{head[:-2]},\n "rows": [\n{rows}\n ]\n}}\n')
