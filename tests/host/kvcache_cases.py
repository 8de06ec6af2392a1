"""Problems with a KV cache: arrays whose unused rows, pages and table entries are all poisoned, and the check."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyflash3 import flash_attn_with_kvcache, reference
from pyflash3.tools import compare
from pyflash3.tools.backend import DTYPES

_MOST_DRAWN = 4_194_301
POISONED_PAGE = 2**31 - 1  # of table entries behind the last row; nothing may follow it


@dataclass(frozen=True)
class CacheCase:
    """batch sequences of lengths drawn from the seed, in a cache of seqlen_k rows each."""

    seqlen_q: int
    seqlen_k: int
    page_size: int | None
    dtype: str
    batch: int = 3
    nheads: int = 6
    nheads_k: int = 2
    head_dim: int = 64
    head_dim_v: int | None = None
    latent: bool = False  # the values are the first head_dim_v columns of the keys
    new: str = "none"  # "equal": as many as query rows at most, all the same; "ragged": packed, 0 and more
    leftpad: bool = False
    batch_idx: bool = False
    packed_q: bool = False
    queries: tuple[int, ...] = ()  # of each sequence, packed; empty: drawn, where they are packed
    rotary_dim: int = 0
    interleaved: bool = True
    rotary_seqlens: bool = False
    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    alibi: bool = False
    sinks: bool = False
    full: bool = False  # sequence 0 fills all rows of its cache
    filled: tuple[int, ...] = ()  # rows of each sequence before the call; empty: drawn
    seed: int = 0

    @property
    def caches(self) -> tuple[str, ...]:
        """The names of those that are arrays."""
        return ("k_cache",) if self.latent else ("k_cache", "v_cache")

    def arguments(self) -> dict[str, Any]:
        """Arguments of flash_attn_with_kvcache; the caches hold NaN wherever no key is."""
        rng = np.random.default_rng(self.seed)
        dtype = DTYPES[self.dtype]

        def normal(*shape: int) -> Any:
            # Large ones repeat themselves, with a prime period: drawing all of them would take longer than the test.
            drawn = rng.standard_normal(min(math.prod(shape), _MOST_DRAWN), np.float32)
            return np.resize(drawn.astype(dtype), shape)

        batch_cache = 2 * self.batch if self.batch_idx else self.batch
        entries = rng.permutation(batch_cache)[: self.batch].astype(np.int32)
        most_new = min(self.seqlen_q, self.seqlen_k) if self.new != "none" else 0
        new = np.full(self.batch, most_new)
        if self.new == "ragged":
            new = rng.integers(0, most_new + 1, self.batch)
        filled = self._filled(rng, most_new)
        if self.full:
            filled[0] = self.seqlen_k - new[0]
        leftpad = np.array([rng.integers(0, max(1, n)) for n in filled]) if self.leftpad else np.zeros_like(filled)
        arguments: dict[str, Any] = {
            "causal": self.causal, "window_size": self.window, "softcap": self.softcap,
            "cache_seqlens": filled.astype(np.int32),
            **({"v_cache": None, "d_v": self.head_dim_v} if self.latent else {}),
        }  # fmt: skip
        lengths_q = self._packed_queries(rng)
        if lengths_q is None:
            arguments["q"] = normal(self.batch, self.seqlen_q, self.nheads, self.head_dim)
        else:
            arguments["q"] = normal(int(lengths_q.sum()), self.nheads, self.head_dim)
            arguments["cu_seqlens_q"] = starts(lengths_q)
        for name in self.caches:
            dim = self.head_dim if name == "k_cache" else self.head_dim_v or self.head_dim
            filled_rows = normal(batch_cache, self.seqlen_k, self.nheads_k, dim)
            unused = np.ones((batch_cache, self.seqlen_k), bool)
            for b, entry in enumerate(entries if self.batch_idx else range(self.batch)):
                unused[entry, leftpad[b] : filled[b]] = False
            filled_rows[unused] = np.nan
            arguments[name] = filled_rows
            if self.new == "equal":
                arguments[name[0]] = normal(self.batch, most_new, self.nheads_k, dim)
            elif self.new == "ragged":
                arguments[name[0]] = normal(int(new.sum()), self.nheads_k, dim)
                arguments["cu_seqlens_k_new"] = starts(new)
        self._add_options(arguments, rng, entries, leftpad)
        if self.page_size is not None:
            self._make_pages(arguments, rng, filled + new, leftpad)
        return arguments

    def _packed_queries(self, rng: Any) -> Any:
        drawn = rng.integers(0, self.seqlen_q + 1, self.batch) if self.packed_q else None
        return np.array(self.queries) if self.queries else drawn

    def _filled(self, rng: Any, most_new: int) -> Any:
        drawn = rng.integers(0, self.seqlen_k - most_new + 1, self.batch)
        return np.array(self.filled, drawn.dtype) if self.filled else drawn

    def _add_options(self, arguments: dict[str, Any], rng: Any, entries: Any, leftpad: Any) -> None:
        if self.batch_idx:
            arguments["cache_batch_idx"] = entries
        if self.leftpad:
            arguments["cache_leftpad"] = leftpad.astype(np.int32)
        if self.rotary_dim and self.new != "none":
            angle = rng.uniform(0, 2 * np.pi, (self.seqlen_k + self.seqlen_q, self.rotary_dim // 2))
            dtype = DTYPES[self.dtype]
            arguments |= {"rotary_cos": np.cos(angle).astype(dtype), "rotary_sin": np.sin(angle).astype(dtype)}
            arguments["rotary_interleaved"] = self.interleaved
            if self.rotary_seqlens:
                arguments["rotary_seqlens"] = arguments["cache_seqlens"] // 2
        if self.alibi:
            arguments["alibi_slopes"] = rng.uniform(0.01, 0.5, (self.batch, self.nheads)).astype(np.float32)
        if self.sinks:
            arguments["sinks"] = rng.standard_normal(self.nheads, np.float32)

    def _make_pages(self, arguments: dict[str, Any], rng: Any, end: Any, leftpad: Any) -> None:
        """Moves the rows of the caches to pages in random order, among as many pages of NaN."""
        assert self.page_size is not None
        size, entries = self.page_size, arguments["k_cache"].shape[0]
        columns = -(-self.seqlen_k // size)
        table = rng.permutation(2 * entries * columns)[: entries * columns].reshape(entries, columns).astype(np.int32)
        for name in self.caches:
            dense = arguments[name]
            padded = np.full((entries, columns * size, *dense.shape[2:]), np.nan, dense.dtype)
            padded[:, : self.seqlen_k] = dense
            pages = np.full((2 * entries * columns, size, *dense.shape[2:]), np.nan, dense.dtype)
            pages[table] = padded.reshape(entries, columns, size, *dense.shape[2:])
            arguments[name] = pages
        unused = np.ones(table.shape, bool)
        for b in range(self.batch):
            entry = arguments["cache_batch_idx"][b] if self.batch_idx else b
            first = min(leftpad[b], arguments["cache_seqlens"][b])
            unused[entry, first // size : -(-end[b] // size)] = False
        arguments["page_table"] = np.where(unused, POISONED_PAGE, table).astype(np.int32)

    def run(self, arguments: dict[str, Any], **more: Any) -> Any:
        """(out, lse) of the library, which writes into the caches of the arguments."""
        return flash_attn_with_kvcache(**arguments, **more, return_lse=True)


def starts(lengths: Any) -> Any:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def copied(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: x.copy() if isinstance(x, np.ndarray) else x for name, x in arguments.items()}


def bits(x: Any) -> Any:
    return np.ascontiguousarray(x).view(np.uint8)


def equal(a: Any, b: Any) -> None:
    """Bit for bit, also where both are NaN."""
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    np.testing.assert_array_equal(bits(a), bits(b))


def check(case: CacheCase) -> None:
    """Result, LSE and every byte of the caches, under FlashAttention's error rule."""
    arguments = case.arguments()
    want, want_lse, want_k, want_v = reference.attention_with_kvcache(**arguments)
    lowp = reference.attention_with_kvcache(**arguments, rounding=DTYPES[case.dtype])[0]
    before = copied(arguments)
    out, lse = case.run(arguments)
    allowed = compare.bound(want, lowp)
    assert compare.mismatch(out, want, allowed) is None, compare.mismatch(out, want, allowed)
    allowed_lse = 1e-4 + turned_scores(case, arguments)
    assert compare.mismatch(lse, want_lse, allowed_lse) is None, compare.mismatch(lse, want_lse, allowed_lse)
    check_written(case, arguments, before, want_k, want_v)


def check_written(case: CacheCase, arguments: dict[str, Any], before: dict[str, Any], want_k: Any, want_v: Any) -> None:
    """The bytes of all arguments after a call: nothing but the new rows of the caches may differ from before."""
    if case.latent:
        assert want_v is arguments["v_cache"] is None
    else:
        assert (bits(arguments["v_cache"]) == bits(want_v)).all(), "v_cache"
    check_k_cache(arguments["k_cache"], before["k_cache"], want_k, case)
    for name, x in before.items():
        if name not in ("k_cache", "v_cache") and isinstance(x, np.ndarray):
            assert (bits(arguments[name]) == bits(x)).all(), f"{name} is an input"


UNITS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23}  # in the last place, relative


def turned_scores(case: CacheCase, arguments: dict[str, Any]) -> float:
    """What scores may be off by where turned columns are rounded the other way, in up to three of them."""
    if arguments.get("rotary_cos") is None:
        return 0.0
    q, k = (float(np.abs(arguments[name].astype(np.float64)).max(initial=0.0)) for name in ("q", "k"))
    # Turning makes a column larger by a factor of sqrt(2) at most.
    return 3 * UNITS[case.dtype] * 2 * q * k / float(np.sqrt(case.head_dim))


def check_k_cache(k_cache: Any, before: Any, want: Any, case: CacheCase) -> None:
    """Rows that were not appended, and columns that were not turned, keep their bytes; the rest may be rounded."""
    row_bytes = bits(want).reshape(*want.shape[:3], -1)
    changed = (row_bytes != bits(before).reshape(row_bytes.shape)).any(axis=(2, 3))
    assert (bits(k_cache).reshape(row_bytes.shape)[~changed] == row_bytes[~changed]).all(), "k_cache, other rows"
    turned = case.rotary_dim
    assert (bits(k_cache[..., turned:]) == bits(want[..., turned:])).all(), "k_cache, columns that are not turned"
    new, wanted = (x[..., :turned][changed].astype(np.float64) for x in (k_cache, want))
    # One unit in the last place, and what float32 loses where the two products cancel.
    assert (np.abs(new - wanted) <= UNITS[case.dtype] * np.abs(wanted) + 2.0**-20).all(), "k_cache, turned columns"
