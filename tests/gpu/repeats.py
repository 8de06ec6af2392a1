"""Calls that are made again and again, beside other work: every run must give the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.gpu.machine import HOST, bits, get, put, wait, xp


def other_work() -> Callable[[], None]:
    """Other work on another stream, so that blocks run at other times and places."""
    if HOST:
        return lambda: None
    stream = xp.cuda.Stream(non_blocking=True)
    with stream:
        a = xp.ones((1024, 1024), np.float32)

    def work() -> None:
        with stream:
            xp.matmul(a, a)

    return work


def same_every_time(call: Callable[[], Any], repeats: int, before: Callable[[int], object]) -> tuple[Any, Any]:
    """(out, lse) of a first call; each of the repeats, `before` them with their number, must give the same bits."""
    out, lse = call()
    differing = put(np.zeros((), np.int64))
    for i in range(repeats):
        before(i)
        again, again_lse = call()
        differing = differing + (bits(again) != bits(out)).sum() + (bits(again_lse) != bits(lse)).sum()
        if i % 100 == 99:
            wait()
    wait()
    assert int(get(differing)) == 0
    return out, lse
