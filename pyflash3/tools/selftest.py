"""`python -m pyflash3 selftest`: the library against the float64 formula on a few hundred shapes."""

from __future__ import annotations

import sys
import time

from . import backend as backends
from .cases import Case, all_cases
from .compare import bound, mismatch

LSE_TOLERANCE = 1e-3  # float32 sums of scores that ALiBi takes down to about -100


def check(case: Case, backend: backends.Backend) -> str | None:
    """What is wrong with the library's answer to a case, in one sentence; None when it is right."""
    arrays, numbers = case.arrays()
    out, lse = case.run(backend, arrays, numbers)
    ref, ref_lse, lowp = case.expect(arrays, numbers)
    wrong = mismatch(out, ref, bound(ref, lowp))
    if wrong is not None:
        return f"out: {wrong}"
    wrong = mismatch(lse, ref_lse, LSE_TOLERANCE)
    return None if wrong is None else f"lse: {wrong}"


def run(backend_name: str, quick: bool) -> int:
    """Runs all cases with a progress bar; 1 when any failed."""
    backend = backends.select(backend_name)
    cases = list(all_cases(backend.dtypes, quick))
    print(f"{len(cases)} cases on the {backend.description}")
    begin = time.perf_counter()
    failures: list[str] = []
    for done, case in enumerate(cases):
        _progress(done, len(cases), len(failures))
        wrong = check(case, backend)
        if wrong is not None:
            failures.append(f"{case}: {wrong}")
    _progress(len(cases), len(cases), len(failures))
    print(f"\n{len(cases) - len(failures)} passed, {len(failures)} failed in {time.perf_counter() - begin:.1f} s")
    for failure in failures:
        print(f"FAILED {failure}")
    return 1 if failures else 0


def _progress(done: int, total: int, failed: int, width: int = 40) -> None:
    # In a log file, where nothing can be overwritten, one line per tenth is enough.
    if not sys.stdout.isatty() and done != total and done % max(total // 10, 1):
        return
    filled = width * done // total
    end = "\r" if sys.stdout.isatty() else "\n"
    print(f"[{'#' * filled}{'.' * (width - filled)}] {done}/{total}, {failed} failed", end=end, flush=True)
