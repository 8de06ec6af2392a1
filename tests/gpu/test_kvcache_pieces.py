"""Few tiles over many keys: the forward kernel computes the keys of a tile in pieces, and tiles of the rows of several
query heads, where that is quicker (core/cache_choice.h). That it does is asserted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pyflash3 import flash_attn_func
from tests.core.split_surface import Pieces, pieces_of
from tests.gpu import kvcache_checks
from tests.gpu.kvcache_problem import call, check, on_device
from tests.gpu.machine import HOST, same_bits, wait
from tests.gpu.test_kvcache_chunks import every_dim, every_page_size, finite_chunk, kernel_params, title
from tests.host.kvcache_cases import CacheCase

Note = Callable[[str, object], None]

PAGE_SIZES = (None, 1, 12, 16, 64, 256)
MASKS: tuple[dict[str, Any], ...] = (
    {"causal": True},
    {},
    {"window": (2500, 9)},
    {"causal": True, "sinks": True},
    {"causal": True, "window": (2100, -1), "sinks": True},
)
FEATURES: tuple[dict[str, Any], ...] = (
    {"batch_idx": True, "full": True},
    {"new": "ragged", "rotary": True, "packed_q": True, "leftpad": True},
    {"new": "equal", "rotary": True},
    {"packed_q": True, "batch_idx": True},
)
# Query rows and heads of a KV head: tiles of one head, of two, of 16; a tile that none fills; heads that share none.
GROUPS = ((200, 1), (200, 2), (24, 16), (40, 4), (70, 3))
ROWS, KEYS = (40, 150) if HOST else (90, 5000)


def cases() -> list[CacheCase]:
    dims = (128, 64, 96, 192, 256, 40, 72)
    out = []
    for seed, (page_size, features) in enumerate(itertools.product(PAGE_SIZES, FEATURES)):
        for number in (2 * seed, 2 * seed + 1):
            rows, group = GROUPS[number % len(GROUPS)]
            options = dict(features) | MASKS[(number + seed // 4) % len(MASKS)]
            dim = dims[number % len(dims)]
            if options.pop("rotary", False):
                options |= {"rotary_dim": dim // 32 * 16, "interleaved": seed % 2 == 0}
            if options.get("packed_q"):
                rows *= 2  # lengths are drawn, and half as long on average
            dtype = ("bfloat16", "float16")[(number + seed) % 2]
            sizes = (rows // 4, 150) if HOST else (rows, 6000)
            out.append(CacheCase(*sizes, page_size, dtype, nheads=2 * group, nheads_k=2, head_dim=dim, seed=number,
                                 **options))  # fmt: skip
    return out


def pieces(arguments: dict[str, Any]) -> Pieces:
    return pieces_of(kernel_params(arguments))


@pytest.mark.parametrize("case", cases(), ids=title)
def test_pieces(case: CacheCase, record_property: Note) -> None:
    if not HOST:
        found = pieces(case.arguments())
        assert found.pieces > 1
        assert found.pack in (1, case.nheads // case.nheads_k)
    for name, value in check(case).items():
        record_property(name, value)


def test_the_cases_are_of_both_kinds() -> None:
    """Tiles of one head, and of several."""
    assert HOST or {pieces(case.arguments()).pack for case in cases()} >= {1, 2, 4, 16}


def few_tiles(page_size: int | None, dim: int = 128, **options: Any) -> dict[str, Any]:
    arguments = finite_chunk(page_size, dim, ROWS, KEYS, nheads=8, **options)
    if not HOST:
        found = pieces(arguments)
        assert found.pieces > 1
        assert found.pack == 4
    return arguments


@every_page_size
@every_dim
@pytest.mark.parametrize("name", ["v_cache", "k_cache"])
@pytest.mark.parametrize("behind", [ROWS // 3, KEYS // 2])
def test_a_bad_key_shows_where_it_is_seen(name: str, dim: int, page_size: int | None, behind: int) -> None:
    """In the last piece, where some rows of a tile see the key, and in one before it, where all do."""
    kvcache_checks.check_a_bad_key(few_tiles(page_size, dim, causal=True), name, KEYS - behind)


@every_page_size
@every_dim
def test_scores_that_jump(dim: int, page_size: int | None) -> None:
    """Scores far above all before are computed again from the cache, for the right query and head."""
    arguments = few_tiles(page_size, dim, causal=True)
    arguments["q"][..., 0] = 1 + np.arange(8) / 8
    for b in range(3):
        for key in range(0, KEYS, 97):
            height = 40.0 * (1 + (KEYS - key) / KEYS)
            arguments["k_cache"][kvcache_checks.place(arguments, b, key)][:, 0] = height * np.sqrt(dim)
    kvcache_checks.check_result(arguments)


@every_page_size
def test_wrong_pages_and_entries_hit_their_sequence_alone(page_size: int | None) -> None:
    arguments = few_tiles(page_size, causal=True, batch_idx=page_size is None)
    if page_size is None:
        arguments["cache_batch_idx"][:] = [4, 2, 0]
    kvcache_checks.check_wrong_places(arguments)


@every_page_size
@pytest.mark.parametrize("sinks", [False, True])
def test_sequences_without_keys_or_queries(page_size: int | None, sinks: bool) -> None:
    """And with so few keys that there is one piece of them."""
    arguments = few_tiles(page_size, causal=True, sinks=sinks)
    for lengths in ([0, KEYS, 1], [ROWS, KEYS // 2, 0]):
        arguments["cache_seqlens"][:] = lengths
        kvcache_checks.check_result(arguments)
    kvcache_checks.check_packed_with_an_empty_one(arguments)


@every_page_size
def test_one_tile_in_many_pieces(page_size: int | None) -> None:
    """Four queries under 32 heads that share their keys."""
    case = CacheCase(4, 600 if HOST else 20_000, page_size, "bfloat16", batch=1, nheads=32, nheads_k=1, head_dim=128,
                     causal=True, full=True)  # fmt: skip
    assert HOST or pieces(case.arguments()).pieces > 32
    check(case)


@every_page_size
def test_many_tiles_of_several_heads(page_size: int | None) -> None:
    """More tiles than multiprocessors, with all of their keys: nothing is merged."""
    case = CacheCase(40, 300 if HOST else 700, page_size, "bfloat16", batch=8 if HOST else 40, nheads=64, nheads_k=8,
                     head_dim=128, causal=True, sinks=True, packed_q=page_size == 16)  # fmt: skip
    assert HOST or pieces(case.arguments())[1:] == (1, 8)
    check(case)


@every_page_size
def test_a_graph_stays_right_while_the_cache_changes(page_size: int | None, cuda: Any) -> None:
    """Chunk after chunk through one captured graph: what pieces there are is decided on the device."""
    lengths = [[KEYS, ROWS, 7], [ROWS, 0, KEYS], [KEYS // 2, KEYS // 3, KEYS // 5]]
    kvcache_checks.check_replays(few_tiles(page_size, causal=True), cuda, lengths)


@pytest.mark.parametrize("causal", [False, True])
def test_dense_calls(causal: bool) -> None:
    """flash_attn_func of few queries over many keys: the bits of the cache that it is."""
    arguments = few_tiles(None, causal=causal)
    device = on_device(arguments)
    want_out, want_lse = call(device)
    out, lse = flash_attn_func(device["q"], device["k_cache"], device["v_cache"], causal=causal, return_lse=True)
    wait()
    assert same_bits(out, want_out)
    assert same_bits(lse, want_lse)
