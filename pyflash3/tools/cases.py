"""Attention problems with random data: what selftest and demo run, and what the tests build upon."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import flash_attn_func, flash_attn_varlen_func, reference
from .backend import DTYPES, Backend


@dataclass(frozen=True)
class Case:
    """One problem. lengths holds (seqlen_q, seqlen_k) per sequence; dense cases have the same one throughout."""

    dtype: str
    lengths: tuple[tuple[int, int], ...]
    nheads: int = 4
    nheads_k: int = 2
    head_dim: int = 64
    head_dim_v: int = 64
    packed: bool = False
    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    alibi: bool = False
    sinks: bool = False
    seed: int = field(default=0, compare=False)

    def __str__(self) -> str:
        """One line that says all of it."""
        texts = [str(q) if q == k else f"{q}x{k}" for q, k in self.lengths]
        layout = f"varlen {','.join(texts)}" if self.packed else f"dense {len(texts)} of {texts[0]}"
        extras = [f"window {self.window}"] if self.window != (-1, -1) else []
        extras += [f"softcap {self.softcap}"] if self.softcap else []
        extras += [name for name in ("causal", "alibi", "sinks") if getattr(self, name)]
        dim = str(self.head_dim) if self.head_dim == self.head_dim_v else f"{self.head_dim}/{self.head_dim_v}"
        heads = f"heads {self.nheads}/{self.nheads_k} d {dim}"
        return " ".join([self.dtype, layout, heads, *extras])

    def arrays(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """(q, k, v and the other arrays, the numbers) as NumPy arguments for reference.attention."""
        rng = np.random.default_rng(self.seed)
        dtype = DTYPES[self.dtype]

        def normal(*shape: int) -> Any:
            return rng.standard_normal(shape, np.float32).astype(dtype)

        batch = len(self.lengths)
        rows_q, rows_k = (sum(side) for side in zip(*self.lengths, strict=True))
        lead_q, lead_k = ((rows_q,), (rows_k,)) if self.packed else ((batch, rows_q // batch), (batch, rows_k // batch))
        arrays = {
            "q": normal(*lead_q, self.nheads, self.head_dim),
            "k": normal(*lead_k, self.nheads_k, self.head_dim),
            "v": normal(*lead_k, self.nheads_k, self.head_dim_v),
        }
        if self.packed:
            for name, side in zip(("cu_seqlens_q", "cu_seqlens_k"), zip(*self.lengths, strict=True), strict=True):
                arrays[name] = np.concatenate([[0], np.cumsum(side)]).astype(np.int32)
        if self.alibi:
            arrays["alibi_slopes"] = rng.uniform(0.01, 0.5, (batch, self.nheads)).astype(np.float32)
        if self.sinks:
            arrays["sinks"] = rng.standard_normal(self.nheads, np.float32)
        return arrays, {"causal": self.causal, "window_size": self.window, "softcap": self.softcap}

    def flops(self) -> float:
        """Multiplications and additions of both matrix products, over the visible (query, key) pairs alone."""
        left, right = self.window[0], 0 if self.causal else self.window[1]
        pairs = 0
        for n_q, n_k in self.lengths:
            diagonal = np.arange(n_q) + n_k - n_q
            begin = np.maximum(diagonal - left, 0) if left >= 0 else np.zeros(n_q, np.int64)
            end = np.minimum(diagonal + right + 1, n_k) if right >= 0 else np.full(n_q, n_k)
            pairs += int(np.maximum(end - begin, 0).sum())
        return 2.0 * (self.head_dim + self.head_dim_v) * self.nheads * pairs

    def run(self, backend: Backend, arrays: dict[str, Any], numbers: dict[str, Any]) -> tuple[Any, Any]:
        """(out, lse) of the library as NumPy arrays."""
        function = flash_attn_varlen_func if self.packed else flash_attn_func
        on_backend = {name: backend.put(x) for name, x in arrays.items()}
        out, lse = function(**on_backend, **numbers, return_lse=True)
        return backend.get(out), backend.get(lse)

    def expect(self, arrays: dict[str, Any], numbers: dict[str, Any]) -> tuple[Any, Any, Any]:
        """(out, lse, low-precision out) of the formula."""
        out, lse = reference.attention(**arrays, **numbers)
        lowp, _ = reference.attention(**arrays, **numbers, rounding=DTYPES[self.dtype])
        return out, lse, lowp


LENGTHS = ((1, 1), (64, 128), (113, 203), (128, 217), (108, 256), (239, 1), (203, 113), (256, 256), (3, 799))
HEAD_DIMS = (
    (64, 64),
    (128, 128),
    (8, 8),
    (40, 40),
    (72, 72),
    (96, 96),
    (192, 128),
    (192, 192),
    (256, 256),
    (64, 256),
    (320, 512),
)
MASKS: tuple[dict[str, Any], ...] = (
    {},
    {"causal": True},
    {"window": (17, 5)},
    {"causal": True, "window": (31, -1)},
    {"window": (-1, 3)},
    {"causal": True, "softcap": 3.0},
    {"alibi": True},
    {"causal": True, "sinks": True},
    {"window": (9, 0), "softcap": 5.0, "alibi": True, "sinks": True},
)
HEADS = ((6, 6), (6, 2), (6, 1))


def all_cases(dtypes: tuple[str, ...], quick: bool) -> Iterator[Case]:
    """A few hundred dense and varlen cases (a few dozen when quick), the same in every run."""
    lengths, heads = itertools.cycle(LENGTHS), itertools.cycle(HEADS)
    dims = HEAD_DIMS[:3] if quick else HEAD_DIMS
    for seed, (dtype, (d, d_v), mask) in enumerate(itertools.product(dtypes, dims, MASKS)):
        nheads, nheads_k = next(heads)
        common: dict[str, Any] = {
            "nheads": nheads,
            "nheads_k": nheads_k,
            "head_dim": d,
            "head_dim_v": d_v,
            "seed": seed,
        }
        if seed % 3 == 2:
            rng = np.random.default_rng(seed)
            ragged = tuple((int(a), int(b)) for a, b in rng.integers(0, 200, (rng.integers(1, 6), 2)))
            yield Case(dtype, ((0, 7), *ragged, (5, 0)), packed=True, **common, **mask)
        else:
            yield Case(dtype, (next(lengths),) * 2, **common, **mask)
