"""The cases of FlashAttention-3's own test protocol: a covering selection of the product, the same in every run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.gpu.machine import DTYPES, HOST
from tests.gpu.problem import Lengths, Problem

# (seqlen_q, seqlen_k), from hopper/test_flash_attn.py of FlashAttention.
# fmt: off
PAIRS = [
    (1, 1), (64, 128), (128, 192), (256, 256), (239, 1), (799, 3), (113, 203), (113, 128), (128, 217), (113, 211),
    (108, 256), (256, 512), (384, 256), (640, 128), (512, 256), (1024, 1024), (1023, 1024), (1024, 1023),
    (2048, 2048), (4096, 4096), (4224, 4224),
]
# fmt: on
HEAD_DIMS = (64, 96, 128, 192, 256)
OTHER_DIMS = ((8, 8), (40, 40), (72, 72), (104, 104), (136, 136), (200, 200), (248, 248), (192, 128), (64, 256))
NHEADS_K = (6, 2, 1)

# Everything beside plain and causal, which every shape gets. {"window": "third"}: a third of the keys on each side.
OPTIONS: tuple[dict[str, Any], ...] = (
    {"window": (-1, 0)},
    {"window": (17, 5)},
    {"window": (0, 0)},
    {"window": "third"},
    {"window": (-1, 61)},
    {"window": (133, -1)},
    {"causal": True, "window": (100, -1)},
    {"causal": True, "window": "third", "sinks": True},
    {"softcap": 60.0},
    {"causal": True, "softcap": 5.0},
    {"alibi": True},
    {"causal": True, "alibi": True},
    {"sinks": True},
    {"causal": True, "sinks": True},
    {"window": (64, 32), "alibi": True, "sinks": True},
    {"window": "third", "softcap": 10.0, "alibi": True, "sinks": True},
    {"causal": True, "softcap": 8.0, "sinks": True},
)


class _Rotation:
    """Goes through OPTIONS and NHEADS_K, so that neighbouring cases differ and every combination turns up."""

    def __init__(self) -> None:
        self._options, self._seeds = itertools.cycle(OPTIONS), itertools.count()

    def problem(self, pair: tuple[int, int], options: dict[str, Any] | None, **common: Any) -> Problem:
        """options None: the next of the rotation."""
        chosen = dict(next(self._options) if options is None else options)
        if chosen.get("window") == "third":
            chosen["window"] = (pair[1] // 3, pair[1] // 3)
        seed = next(self._seeds)
        if common.pop("packed"):
            common |= _ragged(pair, seed)
        else:
            common["lengths"] = (pair,) * (3 if max(pair) <= 1024 else 1)
        # A step every five cases, since a plain cycle would give the same number to, say, every causal case.
        nheads_k = NHEADS_K[(seed + seed // 5) % 3]
        return Problem(nheads=6, nheads_k=nheads_k, seed=seed, **common, **chosen)


def _ragged(pair: tuple[int, int], seed: int) -> dict[str, Any]:
    """Five sequences of a third to all of the pair, sometimes an empty side, and in every third case seqused."""
    rng = np.random.default_rng(seed)
    batch = 5 if max(pair) <= 1024 else 2

    def draw(most: int) -> int:
        return int(rng.integers(most // 3, most + 1))

    lengths: Lengths = (pair, *((draw(pair[0]), draw(pair[1])) for _ in range(batch - 1)))
    if seed % 4 == 1:
        empty = int(rng.integers(1, batch))
        changed = ((0, lengths[empty][1]), (lengths[empty][0], 0), (0, 0))[int(rng.integers(3))]
        lengths = (*lengths[:empty], changed, *lengths[empty + 1 :])
    used = None
    if seed % 3 == 2:
        used = tuple((int(rng.integers(0, q + 1)), int(rng.integers(0, k + 1))) for q, k in lengths)
    return {"lengths": lengths, "packed": True, "used": used}


def cases(packed: bool) -> Iterator[Problem]:
    """About 1,600 dense or 1,400 varlen problems."""
    rotation = _Rotation()
    fixed: tuple[dict[str, Any] | None, ...] = ({}, {"causal": True})
    rotating: tuple[dict[str, Any] | None, ...] = (None,) * (3 if packed else 4)
    pairs = [pair for pair in PAIRS if max(pair) <= 256] if HOST else PAIRS
    for pair, dim, dtype in itertools.product(pairs, HEAD_DIMS, DTYPES):
        large = max(pair) > 2048
        for options in fixed + (rotating[:1] if large else rotating):
            yield rotation.problem(pair, options, dtype=dtype, head_dim=dim, packed=packed)
    for pair, (dim, dim_v), dtype in itertools.product(pairs, OTHER_DIMS, DTYPES):
        if max(pair) <= 1024:
            yield rotation.problem(pair, None, dtype=dtype, head_dim=dim, head_dim_v=dim_v, packed=packed)


def selection(packed: bool) -> list[Problem]:
    """All cases; on the host engine every 17th."""
    every = list(cases(packed))
    return every[::17] if HOST else every


def title(p: Problem) -> str:
    """A test id that says all of a problem."""
    lengths = "x".join(map(str, p.lengths[0]))
    masks = [name for name in ("causal", "alibi", "sinks") if getattr(p, name)]
    if p.window != (-1, -1):
        masks.append(f"window{p.window[0]},{p.window[1]}")
    if p.softcap:
        masks.append(f"softcap{p.softcap:g}")
    if p.used is not None:
        masks.append("seqused")
    dim = f"d{p.head_dim}" if p.dim_v == p.head_dim else f"d{p.head_dim}v{p.dim_v}"
    return "-".join([p.dtype, lengths, dim, f"kv{p.nheads_k}", *(masks or ["plain"]), f"#{p.seed}"])
