"""The problems with a KV cache that are timed: the grid `decode`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

CONTEXTS = ((1, 131_072), (8, 32_768), (64, 8192), (128, 2048), (256, 512))
PAGE_SIZES = (None, 1, 16, 64, 256)
PAGES_OF_OTHERS = (None, 64)
OTHERS = ((32, 1, 128), (8, 8, 128), (32, 8, 64), (32, 8, 256))  # heads, KV heads, head dim


@dataclass(frozen=True)
class CacheShape:
    """seqlen_q queries per sequence over a cache of these lengths, which the new rows are part of."""

    lengths: tuple[int, ...]
    seqlen_q: int = 1
    nheads: int = 32
    nheads_k: int = 8
    head_dim: int = 128
    page_size: int | None = None
    append: bool = False  # one row per sequence is new, and rotated like q; timed beside the call without it
    label: str = field(default="", compare=False)  # instead of the lengths

    @property
    def causal(self) -> bool:
        """A single query sees all keys in any case."""
        return self.seqlen_q > 1

    @property
    def capacity(self) -> int:
        """Rows of each sequence in the cache: whole pages of the largest size."""
        return -(-max(self.lengths) // 256) * 256

    def __str__(self) -> str:
        """One line that tells it from every other shape of all grids."""
        length = self.label or f"{len(self.lengths)}x{self.lengths[0]}"
        heads = f"h{self.nheads}" if self.nheads == self.nheads_k else f"h{self.nheads}/{self.nheads_k}"
        cache = "dense" if self.page_size is None else f"pages of {self.page_size}"
        queries = [] if self.seqlen_q == 1 else [f"q{self.seqlen_q}"]
        return " ".join([f"cache {length}", *queries, heads, f"d{self.head_dim}", cache, *["append"] * self.append])

    def flops(self) -> float:
        """4 * heads * head_dim for every pair of a query and a key that it sees."""
        hidden = self.seqlen_q * (self.seqlen_q - 1) // 2
        pairs = sum(self.seqlen_q * n - hidden for n in self.lengths)
        return 4.0 * self.nheads * self.head_dim * pairs

    def kv_bytes(self) -> int:
        """K and V, each key once."""
        return 4 * sum(self.lengths) * self.nheads_k * self.head_dim

    def bytes(self) -> int:
        """That, and q, out and lse."""
        rows = len(self.lengths) * self.seqlen_q
        return self.kv_bytes() + rows * self.nheads * (4 * self.head_dim + 4)

    def as_record(self) -> dict[str, Any]:
        """For JSON, with the fields that charts ask of every shape."""
        batch, total, longest = len(self.lengths), sum(self.lengths), max(self.lengths)
        ragged = f"{batch} sequences, {total} keys, longest {longest}"
        lengths = ragged if len(set(self.lengths)) > 1 else f"{batch} x {longest}"
        return asdict(self) | {
            "lengths": lengths, "causal": self.causal, "packed": False, "window": (-1, -1), "options": (),
        }  # fmt: skip


def decode() -> list[CacheShape]:
    """All of the grid."""
    ragged = tuple(int(n) for n in np.random.default_rng(0).integers(1, 16_385, 128))
    lengths = [((n,) * batch, "") for batch, n in CONTEXTS] + [(ragged, "128 of 1 to 16384")]
    plain = [CacheShape(x, page_size=size, label=label) for x, label in lengths for size in PAGE_SIZES]
    others = [
        CacheShape(x, 1, *heads, page_size=size, label=label)
        for heads in OTHERS for x, label in lengths for size in PAGES_OF_OTHERS
    ]  # fmt: skip
    usual = (8192,) * 64
    return [
        *plain,
        *others,
        *(CacheShape(usual, 4, page_size=size) for size in PAGES_OF_OTHERS),
        *(CacheShape((16_384 + 512,) * 4, 512, page_size=size) for size in (1, 16, 64, 256)),
        *(CacheShape(usual, page_size=size, append=True) for size in PAGES_OF_OTHERS),
    ]
