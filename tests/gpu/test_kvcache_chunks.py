"""Many new queries on a cache: the calls that the warp-specialised forward kernel computes, by every way of finding K
and V. Which kernel that is follows from the call's shapes (core/cache_choice.h), and is asserted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pyflash3 import flash_attn_varlen_func
from pyflash3._abi import BACKEND_CUDA, Params
from pyflash3._call import Cache, Options, prepare
from tests.core.split_surface import takes_split_kernel
from tests.gpu import kvcache_checks
from tests.gpu.kvcache_problem import call, check, on_device
from tests.gpu.machine import HOST, same_bits, wait
from tests.host.kvcache_cases import CacheCase

Note = Callable[[str, object], None]

# Of the copy engine: dense, whole key blocks, several boxes a block; asynchronous copies: the others.
PAGE_SIZES = (None, 1, 4, 12, 16, 48, 64, 100, 128, 256)
MASKS: tuple[dict[str, Any], ...] = (
    {"causal": True},
    {},
    {"causal": True, "softcap": 3.0},
    {"softcap": 60.0},
    {"window": (170, 9)},
    {"causal": True, "alibi": True},
    {"causal": True, "window": (100, -1), "sinks": True},
)
FEATURES: tuple[dict[str, Any], ...] = (
    {"new": "equal", "rotary": True},
    {"packed_q": True, "leftpad": True},
    {"batch_idx": True, "full": True},
    {"new": "ragged", "rotary": True, "packed_q": True, "batch_idx": True, "leftpad": True},
    {"leftpad": True, "new": "equal"},
)


def kernel_params(arguments: dict[str, Any], num_splits: int = 0) -> Params:
    """What a call of flash_attn_with_kvcache asks the CUDA backend for."""
    get_ = arguments.get
    options = Options(
        None, get_("causal"), get_("window_size", (-1, -1)), get_("softcap", 0.0), get_("alibi_slopes"), get_("sinks"),
        num_splits, None, 0,
    )  # fmt: skip
    lengths = (get_("cu_seqlens_q"), None, None, get_("cache_seqlens"), None, None)
    cache = Cache(
        get_("page_table"), get_("cache_batch_idx"), get_("cache_leftpad"), get_("k"), get_("v"),
        get_("cu_seqlens_k_new"), get_("rotary_cos"), get_("rotary_sin"), get_("rotary_seqlens"),
        get_("rotary_interleaved", True), kvcache=True,
    )  # fmt: skip
    kind, _ = prepare(arguments["q"], arguments["k_cache"], arguments["v_cache"], options, None, lengths, cache)
    params = Params.from_buffer_copy(kind.template)
    params.backend = BACKEND_CUDA
    return params


def takes_split(arguments: dict[str, Any], num_splits: int = 0) -> bool:
    """Whether the split-KV kernel computes a call of flash_attn_with_kvcache."""
    return takes_split_kernel(kernel_params(arguments, num_splits))


def chunk(page_size: int | None, dtype: str, dim: int, seed: int, **options: Any) -> CacheCase:
    if options.pop("rotary", False):
        options |= {"rotary_dim": dim // 32 * 16, "interleaved": seed % 2 == 0}
    rows = (70, 200) if HOST else (700, 1100)
    nheads = 48 if options.get("packed_q") else 16  # ragged lengths may be short
    nheads_k = (nheads, nheads // 4, 1)[seed % 3]
    return CacheCase(*rows, page_size, dtype, nheads=nheads, nheads_k=nheads_k, head_dim=dim, seed=seed, **options)


def cases() -> list[CacheCase]:
    dims = (64, 96, 128, 192, 256, 40, 72)
    out = []
    for seed, (page_size, features) in enumerate(itertools.product(PAGE_SIZES, FEATURES)):
        for i in range(2):
            number = 2 * seed + i
            dtype = ("bfloat16", "float16")[(number + seed) % 2]
            mask = MASKS[(number + seed // 3) % len(MASKS)]
            out.append(chunk(page_size, dtype, dims[number % len(dims)], number, **features, **mask))
    return out


def title(case: CacheCase) -> str:
    flags = [name for name in ("causal", "alibi", "sinks", "leftpad", "batch_idx", "packed_q") if getattr(case, name)]
    page = "dense" if case.page_size is None else f"page{case.page_size}"
    return "-".join([page, case.dtype, f"d{case.head_dim}", f"kv{case.nheads_k}", case.new, *flags, f"#{case.seed}"])


@pytest.mark.parametrize("case", cases(), ids=title)
def test_chunks(case: CacheCase, record_property: Note) -> None:
    # Ragged lengths count by their mean, which may be too short for a call without splits.
    num_splits = int(case.seed % 2 and not case.packed_q)
    if not HOST:
        assert not takes_split(case.arguments(), num_splits)
    for name, value in check(case, num_splits=num_splits).items():
        record_property(name, value)


ROWS, KEYS = (40, 150) if HOST else (300, 1000)
every_page_size = pytest.mark.parametrize("page_size", [None, 1, 16, 100, 128])
every_dim = pytest.mark.parametrize("dim", [64, 128, 256])


def finite_chunk(
    page_size: int | None, dim: int, rows: int = ROWS, keys: int = KEYS, nheads: int = 32, **options: Any
) -> dict[str, Any]:
    """Three sequences whose caches are full and free of NaN, by the forward kernel; a KV head for four heads."""
    case = CacheCase(rows, keys, page_size, "bfloat16", nheads=nheads, nheads_k=nheads // 4, head_dim=dim, **options)
    arguments = case.arguments()
    rng = np.random.default_rng(dim)
    for name in ("k_cache", "v_cache"):
        x = arguments[name]
        arguments[name] = np.resize(rng.standard_normal(65_537, np.float32).astype(x.dtype), x.shape)
    arguments["cache_seqlens"][:] = keys
    if page_size is not None:
        columns = arguments["page_table"].shape[1]
        arguments["page_table"][:] = rng.permutation(3 * columns).reshape(3, columns)
    assert HOST or not takes_split(arguments)
    return arguments


@every_page_size
@every_dim
@pytest.mark.parametrize("name", ["v_cache", "k_cache"])
def test_a_bad_key_shows_where_it_is_seen(name: str, dim: int, page_size: int | None) -> None:
    """Of the rows of a tile, only those behind the key see it: the others are computed again without it."""
    kvcache_checks.check_a_bad_key(finite_chunk(page_size, dim, causal=True), name, KEYS - ROWS // 3)


@every_page_size
@every_dim
def test_scores_that_jump(dim: int, page_size: int | None) -> None:
    """Scores far above all before are computed again from the cache."""
    arguments = finite_chunk(page_size, dim, causal=True)
    arguments["q"][..., 0] = 1
    for b in range(3):
        for key in range(KEYS):
            height = 40.0 * (1 + (KEYS - key) / 300) * (key % 97 == 3)
            arguments["k_cache"][kvcache_checks.place(arguments, b, key)][:, 0] = height * np.sqrt(dim)
    kvcache_checks.check_result(arguments)


@every_page_size
def test_wrong_pages_and_entries_hit_their_sequence_alone(page_size: int | None) -> None:
    arguments = finite_chunk(page_size, 128, causal=True, batch_idx=page_size is None)
    if page_size is None:
        arguments["cache_batch_idx"][:] = [4, 2, 0]
    kvcache_checks.check_wrong_places(arguments)


@every_page_size
def test_sequences_without_keys_or_queries(page_size: int | None) -> None:
    arguments = finite_chunk(page_size, 128, causal=True)
    arguments["cache_seqlens"][:] = [0, KEYS, 1]
    kvcache_checks.check_result(arguments)
    kvcache_checks.check_packed_with_an_empty_one(arguments)


@pytest.mark.parametrize("page_size", [1, 16, 128])
def test_varlen_with_a_page_table(page_size: int) -> None:
    """The same bits as flash_attn_with_kvcache of the same arrays."""
    case = chunk(page_size, "bfloat16", 128, 1, packed_q=True, causal=True, full=True)
    device = on_device(case.arguments())
    want_out, want_lse = call(device)
    out, lse = flash_attn_varlen_func(
        device["q"], device["k_cache"], device["v_cache"], device["cu_seqlens_q"], None, 1, 1,
        seqused_k=device["cache_seqlens"], causal=True, page_table=device["page_table"], return_lse=True,
    )  # fmt: skip
    wait()
    assert same_bits(out, want_out)
    assert same_bits(lse, want_lse)


@every_page_size
def test_a_graph_stays_right_while_the_cache_changes(page_size: int | None, cuda: Any) -> None:
    """Chunk after chunk through one captured graph: lengths and pages are read on the device."""
    kvcache_checks.check_replays(finite_chunk(page_size, 128, causal=True), cuda, [[KEYS, ROWS, 7], [ROWS, 0, KEYS]])
