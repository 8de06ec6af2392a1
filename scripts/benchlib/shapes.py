"""The problems that are timed, by grid, with their floating-point operations and the bytes that they must move."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .cache_shapes import decode, few, mla

TOKENS = 16_384
WIDTH = 2048  # heads * head_dim of the paper's grid


@dataclass(frozen=True)
class Shape:
    """Self-attention over sequences of these lengths; dense unless packed."""

    lengths: tuple[int, ...]
    nheads: int
    nheads_k: int
    head_dim: int
    causal: bool
    packed: bool = False
    window: tuple[int, int] = (-1, -1)
    options: tuple[str, ...] = ()  # of softcap, alibi, sinks
    label: str = field(default="", compare=False)  # instead of the lengths
    head_dim_v: int | None = None  # None: head_dim

    @property
    def dim_v(self) -> int:
        """Head dim of v and out."""
        return self.head_dim_v or self.head_dim

    def __str__(self) -> str:
        """One line that tells it from every other shape of all grids."""
        heads = f"h{self.nheads}" if self.nheads == self.nheads_k else f"h{self.nheads}/{self.nheads_k}"
        masks = ["causal"] if self.causal else []
        if self.window != (-1, -1):
            masks.append(f"window {self.window[0]},{self.window[1]}")
        length = self.label or (f"{len(self.lengths)}x{self.lengths[0]}")
        layout = "varlen " if self.packed else ""
        dim = f"d{self.head_dim}" if self.dim_v == self.head_dim else f"d{self.head_dim}/{self.dim_v}"
        return " ".join([f"{layout}{length}", heads, dim, *(masks or ["full"]), *self.options])

    def flops(self) -> float:
        """4 * heads * head_dim for every pair of query and key; of a causal square half counts, as in the papers.

        Where v has a head dim of its own, the mean of both.
        """
        pairs = sum(self._pairs(n) for n in self.lengths)
        return 2.0 * self.nheads * (self.head_dim + self.dim_v) * pairs

    def _pairs(self, n: int) -> float:
        left, right = self.window
        if self.window == (-1, -1):
            return n * n * (0.5 if self.causal else 1.0)
        rows = np.arange(n, dtype=np.int64)
        last = rows if self.causal else np.minimum(n - 1, rows + right if right >= 0 else n)
        first = np.maximum(0, rows - left) if left >= 0 else 0
        return float((last - first + 1).sum())

    def bytes(self) -> int:
        """q, k, v, out and lse, each once."""
        rows = sum(self.lengths)
        return rows * (2 * (self.head_dim + self.dim_v) * (self.nheads + self.nheads_k) + 4 * self.nheads)

    def as_record(self) -> dict[str, Any]:
        """For JSON; long lists of lengths shortened to what they sum up to."""
        record = asdict(self)
        if len(set(self.lengths)) > 1:
            record["lengths"] = (
                f"{len(self.lengths)} sequences, {sum(self.lengths)} tokens, longest {max(self.lengths)}"
            )
        else:
            record["lengths"] = f"{len(self.lengths)} x {self.lengths[0]}"
        return record


def _paper(dims: tuple[int, ...], seqlens: tuple[int, ...]) -> list[Shape]:
    return [
        Shape((n,) * (TOKENS // n), WIDTH // d, WIDTH // d, d, causal)
        for d, causal, n in itertools.product(dims, (False, True), seqlens)
    ]


def _extra() -> list[Shape]:
    # 2048 is no multiple of 96 and 192, so the number of heads is the nearest one.
    return [
        Shape((n,) * (TOKENS // n), round(WIDTH / d), round(WIDTH / d), d, causal)
        for d, causal, n in itertools.product((96, 192), (False, True), (2048, 16_384))
    ]


def _ragged(label: str, lengths: Any, nheads: int = 16) -> Shape:
    values = tuple(int(n) for n in lengths)
    return Shape(values, nheads, nheads, 128, True, packed=True, label=label)


def _varlen() -> list[Shape]:
    rng = np.random.default_rng(0)
    short = rng.integers(16, 129, 1024)
    prefill = rng.integers(64, 4097, 16)
    mixed = [16_384, *rng.integers(16, 129, 128)]
    return [
        _ragged("1024 of 16 to 128", short),
        _ragged("16 of 64 to 4096", prefill),
        _ragged("16384 beside 128 short", mixed),
        _ragged("8192x34", [34] * 8192, nheads=12),
        Shape((34,) * 8192, 12, 12, 128, True),  # the same tokens in a dense call
    ]


def _options() -> list[Shape]:
    plain = (16_384,)
    return [
        Shape(plain, 16, 16, 128, True, window=(1024, 0)),
        Shape(plain, 16, 16, 128, True),
        *(Shape(plain, 16, 16, 128, True, options=(name,)) for name in ("softcap", "alibi", "sinks")),
    ]


def _wide() -> list[Shape]:
    d_512 = [Shape((n,) * (TOKENS // n), 8, 4, 512, True) for n in (4096, 16_384)]
    return [*d_512, Shape((8192,) * 2, 16, 16, 192, True, head_dim_v=128)]


def grids() -> dict[str, list[Any]]:
    """All grids by name: lists of Shape, or of CacheShape for decode, few and mla."""
    dims = (64, 128, 256)
    return {
        "paper": _paper(dims, (512, 1024, 2048, 4096, 8192, 16_384)),
        "smoke": _paper(dims, (512, 4096)),
        "extra": _extra(),
        "serving": [Shape((n,) * 128, 32, 8, 128, True) for n in (128, 1024, 2048, 8192)],
        "varlen": _varlen(),
        "options": _options(),
        "small": [Shape((n,), 8, 8, 128, causal) for causal in (False, True) for n in (512, 1024, 2048, 4096)],
        "decode": decode(),
        "few": few(),
        "wide": _wide(),
        "mla": mla(),
    }
