"""The problems with a KV cache that are timed: the grids `decode`, `few` and `mla`."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

CONTEXTS = ((1, 131_072), (8, 32_768), (64, 8192), (128, 2048), (256, 512))
PAGE_SIZES = (None, 1, 16, 64, 256)
PAGES_OF_OTHERS = (None, 64)
# Few tiles on many keys, and tiles that the queries of one head do not fill: lengths, queries, heads, KV heads.
CHUNKS: tuple[tuple[tuple[int, ...], int, int, int], ...] = (
    ((100_000,), 512, 8, 2),
    ((100_000,), 64, 32, 8),
    ((8192,) * 16, 64, 32, 8),
    ((2048,) * 64, 32, 32, 8),
)
FEW = ((1, 512), (1, 2048), (1, 8192), (2, 2048), (3, 4096), (4, 1024), (8, 512))  # batch and context
PACKED = ((8, 512), (8, 2048), (64, 8192), (1, 2048), (256, 512))
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
    captured: bool = False  # the call is replayed from a captured graph; timed beside the same call launched directly
    label: str = field(default="", compare=False)  # instead of the lengths
    latent_dim_v: int | None = None  # the values are so many columns of the keys; None: an array of their own
    room: int = 0  # rows of each sequence in the cache, where these are more than its keys
    told: bool = False  # the call is told how long the longest sequence is
    packed: bool = False  # queries are packed, in a call of flash_attn_varlen_func

    @property
    def dim_v(self) -> int:
        """Head dim of v and out."""
        return self.latent_dim_v or self.head_dim

    @property
    def causal(self) -> bool:
        """A single query sees all keys in any case."""
        return self.seqlen_q > 1

    @property
    def capacity(self) -> int:
        """Rows of each sequence in the cache: whole pages of the largest size."""
        return -(-max(self.room, *self.lengths) // 256) * 256

    def __str__(self) -> str:
        """One line that tells it from every other shape of all grids."""
        length = self.label or f"{len(self.lengths)}x{self.lengths[0]}"
        heads = f"h{self.nheads}" if self.nheads == self.nheads_k else f"h{self.nheads}/{self.nheads_k}"
        cache = "dense" if self.page_size is None else f"pages of {self.page_size}"
        queries = [] if self.seqlen_q == 1 else [f"q{self.seqlen_q}"]
        dim = f"d{self.head_dim}" if self.latent_dim_v is None else f"latent d{self.head_dim}/{self.latent_dim_v}"
        marks = [f"room for {self.room}"] * (self.room > 0) + ["told"] * self.told
        marks += ["packed"] * self.packed + ["append"] * self.append + ["captured"] * self.captured
        return " ".join([f"cache {length}", *queries, heads, dim, cache, *marks])

    def flops(self) -> float:
        """2 * heads * (head_dim + head_dim_v) for every pair of a query and a key that it sees."""
        hidden = self.seqlen_q * (self.seqlen_q - 1) // 2
        pairs = sum(self.seqlen_q * n - hidden for n in self.lengths)
        return 2.0 * self.nheads * (self.head_dim + self.dim_v) * pairs

    def kv_bytes(self) -> int:
        """K and V, each key once; of a latent cache K alone."""
        columns = self.head_dim if self.latent_dim_v is not None else self.head_dim + self.dim_v
        return 2 * sum(self.lengths) * self.nheads_k * columns

    def bytes(self) -> int:
        """That, and q, out and lse."""
        rows = len(self.lengths) * self.seqlen_q
        return self.kv_bytes() + rows * self.nheads * (2 * (self.head_dim + self.dim_v) + 4)

    def as_record(self) -> dict[str, Any]:
        """For JSON, with the fields that charts ask of every shape."""
        batch, total, longest = len(self.lengths), sum(self.lengths), max(self.lengths)
        ragged = f"{batch} sequences, {total} keys, longest {longest}"
        lengths = ragged if len(set(self.lengths)) > 1 else f"{batch} x {longest}"
        return asdict(self) | {
            "lengths": lengths, "causal": self.causal, "packed": False, "window": (-1, -1), "options": (),
        }  # fmt: skip


def few() -> list[CacheShape]:
    """Decoding with so few keys that what counts is how a call begins and ends, and with packed queries."""
    return [
        *(CacheShape((n,) * b, page_size=size) for b, n in FEW for size in PAGES_OF_OTHERS),
        *(CacheShape((2048,) * b, page_size=64, room=32_768, told=told) for b in (1, 2) for told in (False, True)),
        *(CacheShape((n,) * b, page_size=64, packed=True) for b, n in PACKED),
        *(CacheShape((n,) * b, 1, 32, 1, page_size=64, packed=True) for b, n in PACKED[:3]),
        *(CacheShape((2048,) * b, 4, page_size=64, packed=True) for b in (1, 8)),
        *(CacheShape((2048,) * b, head_dim=d) for d in (64, 96, 256) for b in (1, 2)),
        *(CacheShape((n,) * b, 4) for b, n in ((1, 2048), (2, 2048), (3, 4096))),
        *(CacheShape((n,) * b, 1, 32, 1) for b, n in ((8, 2048), (16, 1024), (16, 4096), (64, 512))),
    ]


def mla() -> list[CacheShape]:
    """Multi-head latent attention: 128 query heads, and the 16 of each of 8 GPUs that share them."""
    return [
        CacheShape((n,) * 128, seqlen_q, nheads, 1, 576, page_size, latent_dim_v=512)
        for nheads, seqlen_q, n, page_size in itertools.product((128, 16), (1, 2), (4096, 8192), (None, 64))
    ]


def decode() -> list[CacheShape]:
    """The caches of the other models."""
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
        *(CacheShape((n,) * b, 4, nheads_k=heads) for heads in (8, 1) for b, n in (CONTEXTS[0], CONTEXTS[-1])),
        *(CacheShape((16_384 + 512,) * 4, 512, page_size=size) for size in (1, 16, 64, 256)),
        *(
            CacheShape(x, seqlen_q, nheads, nheads_k, page_size=size)
            for x, seqlen_q, nheads, nheads_k in CHUNKS
            for size in PAGES_OF_OTHERS
        ),
        *(CacheShape(usual, page_size=size, append=True) for size in PAGES_OF_OTHERS),
        *(CacheShape(x, page_size=64, append=new, captured=True) for x in (usual, usual[:1]) for new in (False, True)),
    ]
