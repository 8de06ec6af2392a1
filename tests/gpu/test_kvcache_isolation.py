"""What a cache holds elsewhere, right or wrong, never shows: NaN, shared pages, indices and lengths out of range."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from pyflash3 import flash_attn_with_kvcache
from tests.gpu.kvcache_problem import Arguments, call, check, on_device, packed, want
from tests.gpu.machine import HOST, bits, fill, get, int32, poisoned, put, same_bits, wait
from tests.gpu.problem import judge
from tests.host.kvcache_cases import CacheCase

BAD = [float("nan"), float("inf"), float("-inf")]
DIMS = (40, 64, 128, 256)
PAGE_SIZES = (None, 1, 16, 64, 100)
SPLITS = (0, 1, 3)

every_dim = pytest.mark.parametrize("dim", DIMS)
every_page_size = pytest.mark.parametrize("page_size", PAGE_SIZES)
every_split = pytest.mark.parametrize("num_splits", SPLITS)


def finite(arguments: Arguments) -> Arguments:
    """The same with 1 where the caches hold NaN."""
    for name in ("k_cache", "v_cache"):
        x = arguments[name]
        arguments[name] = np.where(np.isnan(x.astype(np.float32)), np.ones((), x.dtype), x)
    return arguments


@every_split
@every_page_size
@every_dim
def test_unused_rows_never_change_a_bit(dim: int, page_size: int | None, num_splits: int) -> None:
    """Finite, NaN and infinite numbers in every slot that holds no key."""
    case = CacheCase(
        3, 400, page_size, "bfloat16", head_dim=dim, new="equal", causal=True, leftpad=True, batch_idx=True, full=True
    )  # fmt: skip
    arguments = case.arguments()
    unused = {name: np.isnan(arguments[name].astype(np.float32)) for name in ("k_cache", "v_cache")}
    results = []
    for value in (1.0, *BAD):
        for name, where in unused.items():
            arguments[name][where] = value
        results.append(call(on_device(arguments), num_splits=num_splits))
    wait()
    for out, lse in results[1:]:
        assert same_bits(out, results[0][0])
        assert same_bits(lse, results[0][1])


def place(arguments: Arguments, b: int, row: int) -> tuple[int, int]:
    """(entry or page, row) of row `row` of sequence b."""
    if "page_table" not in arguments:
        return b, row
    size = arguments["k_cache"].shape[1]
    return int(arguments["page_table"][b, row // size]), row % size


# Rows that see key KEY of 300, of 16 query rows: the diagonal of row i is key 284 + i.
SEEN: list[tuple[dict[str, Any], int, list[int]]] = [
    ({"causal": True}, 299, [15]),
    ({"causal": True}, 290, [*range(6, 16)]),
    ({"causal": True}, 284, [*range(16)]),
    ({"causal": True, "window": (40, -1)}, 250, [*range(7)]),
    ({"causal": True, "window": (40, -1)}, 200, []),
    ({"window": (20, 5)}, 264, [0]),
    ({"window": (20, 5)}, 294, [*range(5, 16)]),
    ({"window": (20, 5)}, 270, [*range(7)]),
]


@pytest.mark.parametrize("page_size", [None, 16, 64])
@pytest.mark.parametrize("at", range(len(SEEN)), ids=lambda i: f"{SEEN[i][1]}-{'-'.join(SEEN[i][0])}")
@pytest.mark.parametrize(("dim", "heads"), [(64, (4, 4)), (128, (8, 2)), (256, (16, 1))])
def test_a_bad_key_shows_where_it_is_seen(dim: int, heads: tuple[int, int], at: int, page_size: int | None) -> None:
    """Rows of one tile: 0 * NaN must not happen to a row in front of a key that only later rows see."""
    options, key, rows = SEEN[at]
    case = CacheCase(16, 300, page_size, "bfloat16", nheads=heads[0], nheads_k=heads[1], head_dim=dim, **options)
    arguments = finite(case.arguments())
    arguments["cache_seqlens"][:] = 300
    if page_size is not None:
        columns = arguments["page_table"].shape[1]
        arguments["page_table"][:] = np.random.default_rng(1).permutation(3 * columns).reshape(3, columns)
    num_splits = SPLITS[(at + dim // 64) % 3]
    right = want(arguments)
    clean = call(on_device(arguments), num_splits=num_splits)
    sees = np.isin(np.arange(16), rows)
    for name, bad in itertools.product(("v_cache", "k_cache"), BAD):
        dirty = on_device(arguments)
        fill(dirty[name][place(arguments, 1, key)], bad)
        out, lse = call(dirty, num_splits=num_splits)
        wait()
        for b in (0, 2):
            assert same_bits(out[b], clean[0][b]), f"{bad} in {name} shows in another sequence"
            assert same_bits(lse[b], clean[1][b])
        if name == "v_cache":
            assert same_bits(lse[1], clean[1][1])
        if name == "v_cache" or np.isnan(bad):  # a score of -inf is an ordinary way to hide a key
            assert not np.isfinite(get(out[1]).astype(np.float32)[sees]).any(), f"{bad} in {name} must show"
        # The other rows by the error rule only: beside such a key the work may be done in another order.
        out[1] = put(np.where(sees[:, None, None], get(clean[0][1]), get(out[1])))
        lse[1] = put(np.where(sees, get(clean[1][1]), get(lse[1])))
        judge(right.problem, *packed(out, lse), right.result)


@every_page_size
def test_sequences_may_share_pages(page_size: int | None) -> None:
    """A common start, as of a system prompt, and two sequences that are the same throughout."""
    case = CacheCase(2, 300, page_size, "bfloat16", batch=4, nheads=8, nheads_k=2, head_dim=128, causal=True)
    arguments = finite(case.arguments())
    rng = np.random.default_rng(0)
    arguments["cache_seqlens"] = np.array([300, 250, 250, 130], np.int32)
    if page_size is None:
        arguments["cache_batch_idx"] = np.array([2, 0, 0, 2], np.int32)
    else:
        columns = -(-300 // page_size)
        table = rng.permutation(4 * columns).reshape(4, columns).astype(np.int32)
        table[1:, : 128 // page_size] = table[0, : 128 // page_size]
        table[2] = table[1]
        arguments["page_table"] = table
    right = want(arguments)
    device = on_device(arguments)
    if page_size is not None:
        arguments["q"][2] = arguments["q"][1]
        device["q"][2] = device["q"][1]
        right = want(arguments)
    out, lse = call(device)
    wait()
    judge(right.problem, *packed(out, lse), right.result)
    if page_size is not None:
        # Where the keys of a sequence are cut is the library's choice with 0 splits.
        out, lse = call(device, num_splits=2)
        wait()
        assert same_bits(out[1], out[2])


WRONG: list[dict[str, Any]] = [
    {"page_table": 10**6}, {"page_table": -1}, {"page_table": -(2**31)}, {"page_table": 2**31 - 1},
    {"cache_batch_idx": 50}, {"cache_batch_idx": -3}, {"cache_batch_idx": 2**31 - 1},
    {"cache_seqlens": 10**9}, {"cache_seqlens": -5}, {"cache_seqlens": 2**31 - 1}, {"cache_seqlens": -(2**31)},
    {"cache_leftpad": 10**9}, {"cache_leftpad": -7}, {"cache_leftpad": -(2**31)}, {"cache_leftpad": 2**31 - 1},
    {"cu_seqlens_k_new": 10**9}, {"cu_seqlens_k_new": -9}, {"cu_seqlens_q": 10**9},
    {"rotary_seqlens": 2**31 - 1}, {"rotary_seqlens": -(2**31)},
]  # fmt: skip


def _wrong_case(page_size: int | None, dim: int) -> CacheCase:
    return CacheCase(
        4, 200, page_size, "bfloat16", head_dim=dim, new="ragged", batch_idx=True, leftpad=True, rotary_dim=32,
        rotary_seqlens=True, causal=True, packed_q=True, seed=9,
    )  # fmt: skip


def _spoilt(arguments: Arguments, name: str, value: int) -> int:
    """Puts the value in; returns the sequence that is now wrong."""
    last = name.startswith("cu_")
    if name == "page_table":
        arguments[name][arguments["cache_batch_idx"][1]] = value
    else:
        arguments[name][-1 if last else 1] = value
    return 2 if last else 1


@pytest.mark.parametrize("num_splits", [1, 3])  # with 0 the lengths of all sequences decide where keys are cut
@pytest.mark.parametrize(
    ("wrong", "page_size"),
    [(x, size) for size in (None, 1, 8, 64) for x in WRONG if size or "page_table" not in x], ids=str,
)  # fmt: skip
def test_wrong_contents_hit_their_sequence_alone(wrong: dict[str, int], page_size: int | None, num_splits: int) -> None:
    """No fault, no hang; caches in a frame: nothing is written around them, nor into pages of the other sequences."""
    ((name, value),) = wrong.items()
    case = _wrong_case(page_size, 128 if page_size in (None, 8) else 64)
    clean = case.arguments()
    dirty = {key: x.copy() if isinstance(x, np.ndarray) else x for key, x in clean.items()}
    bad = _spoilt(dirty, name, value)
    first, second = on_device(clean), on_device(dirty)
    frames = {}
    for cache in ("k_cache", "v_cache"):
        entries, *row = second[cache].shape
        frames[cache] = poisoned((entries + 4, *row), "bfloat16")
        frames[cache][2:-2] = second[cache]
        second[cache] = frames[cache][2:-2]
    right, right_lse = call(first, num_splits=num_splits)
    out, lse = call(second, num_splits=num_splits)
    wait()
    starts = clean["cu_seqlens_q"]
    for b in {0, 1, 2} - {bad}:
        rows = slice(int(starts[b]), int(starts[b + 1]))
        assert same_bits(out[rows], right[rows]), f"sequence {b}"
        assert same_bits(lse[:, rows], right_lse[:, rows]), f"lse of sequence {b}"
    poison = get(bits(poisoned((1,), "bfloat16")))[0]
    own = clean["cache_batch_idx"][[b for b in range(3) if b != bad]]
    for cache, frame in frames.items():
        after = get(bits(frame))
        assert (after[:2] == poison).all()
        assert (after[-2:] == poison).all()
        pages = own if page_size is None else np.unique(clean["page_table"][own])
        pages = pages[pages < len(after) - 4]
        assert (after[2:-2][pages] == get(bits(first[cache]))[pages]).all(), "rows of another sequence"


@pytest.mark.parametrize(
    ("wrong", "page_size"),
    [(x, size) for size in (None, 16) for x in WRONG if size or "page_table" not in x], ids=str,
)  # fmt: skip
def test_wrong_contents_are_named_when_asked(
    wrong: dict[str, int], page_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((name, value),) = wrong.items()
    arguments = _wrong_case(page_size, 64).arguments()
    monkeypatch.setenv("PYFLASH3_CHECK", "1")
    call(on_device(arguments))
    _spoilt(arguments, name, value)
    device = on_device(arguments)
    out = poisoned(device["q"].shape, "bfloat16")
    with pytest.raises(ValueError, match=name):
        flash_attn_with_kvcache(**device, out=out)
    wait()
    assert same_bits(out, poisoned(out.shape, "bfloat16")), "a refused call wrote into out"
    for cache in ("k_cache", "v_cache"):
        assert same_bits(device[cache], put(arguments[cache])), f"a refused call wrote into {cache}"


@pytest.mark.parametrize("seed", range(6 if HOST else 30))
def test_noise_in_every_index(seed: int) -> None:
    """It ends, and everything that follows is right."""
    rng = np.random.default_rng(seed)
    case = _wrong_case((None, 1, 8, 64, 100)[seed % 5], (64, 128, 256)[seed % 3])
    device = on_device(case.arguments())
    for x in device.values():
        if getattr(x, "dtype", None) == np.int32:
            x[...] = int32(rng.integers(-1000, 2000, x.shape))
    call(device, num_splits=seed % 4)
    wait()
    check(CacheCase(1, 90, 4, "bfloat16", new="equal", causal=True, seed=seed))
