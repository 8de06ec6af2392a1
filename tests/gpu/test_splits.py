"""Split-KV in every function: right for any number of splits, the same bits every time, isolated, and what it takes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import pyflash3
from tests.gpu.kvcache_problem import call, on_device
from tests.gpu.machine import HOST, bits, fill, get, normal, same_bits, wait, xp
from tests.gpu.problem import Problem, check, make
from tests.gpu.repeats import other_work, same_every_time
from tests.host.kvcache_cases import CacheCase

SPLITS = (2, 3, 5, 37, 256)
MASKS: tuple[dict[str, Any], ...] = (
    {},
    {"causal": True},
    {"window": (70, 9)},
    {"causal": True, "window": (100, -1), "sinks": True},
    {"causal": True, "softcap": 5.0, "alibi": True},
    {"sinks": True},
)
DIMS = ((64, 64), (96, 96), (128, 128), (192, 128), (256, 256), (40, 72))
RAGGED = ((1, 700), (3, 0), (0, 40), (5, 64), (130, 129), (16, 1), (2, 333))
REPEATS = 20 if HOST else 200


@pytest.mark.parametrize("num_splits", SPLITS)
@pytest.mark.parametrize(("dims", "mask"), [(DIMS[i % 6], MASKS[(i + i // 6) % 6]) for i in range(12)], ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "varlen"])
def test_any_number_of_splits(packed: bool, dims: tuple[int, int], mask: dict[str, Any], num_splits: int) -> None:
    index = DIMS.index(dims)
    problem = Problem(
        ("bfloat16", "float16")[index % 2], RAGGED if packed else ((3, 500),) * 2, nheads=8,
        nheads_k=(8, 2, 1)[index % 3], head_dim=dims[0], head_dim_v=dims[1], packed=packed,
        seed=num_splits + index, **mask,
    )  # fmt: skip
    check(problem, num_splits=num_splits)


@pytest.mark.parametrize("num_splits", [2, 16])
def test_splits_of_long_queries(num_splits: int) -> None:
    """More than a tile of rows, where nobody would split; and more splits than blocks of keys."""
    check(Problem(lengths=((700, 900),) * 2, nheads_k=2, head_dim=128, causal=True), num_splits=num_splits)
    check(Problem(lengths=((300, 5), (1, 1), (65, 130)), packed=True, nheads_k=1), num_splits=num_splits)


def test_seqused_with_splits() -> None:
    problem = Problem(
        lengths=((9, 500), (4, 600), (1, 300)), used=((5, 499), (0, 70), (1, 0)), packed=True, nheads_k=2, causal=True
    )  # fmt: skip
    check(problem, num_splits=4)


@pytest.mark.parametrize("seqlen_k", [1000, 1003 if HOST else 40_001])
@pytest.mark.parametrize("seqlen_q", [1, 2, 7])
@pytest.mark.parametrize(("nheads", "nheads_k", "dim"), [(32, 8, 128), (8, 8, 64), (16, 1, 256), (12, 4, 72)])
@pytest.mark.parametrize("batch", [1, 5])
def test_decode_through_the_dense_function(
    batch: int, nheads: int, nheads_k: int, dim: int, seqlen_q: int, seqlen_k: int
) -> None:
    problem = Problem(
        lengths=((seqlen_q, seqlen_k),) * batch, nheads=nheads, nheads_k=nheads_k, head_dim=dim, causal=True
    )  # fmt: skip
    check(problem)


@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize(
    ("batch", "keys", "nheads", "nheads_k"),
    [(128, 700, 32, 1), (132, 90, 8, 1), (33, 300, 32, 4), (16, 1000, 16, 8), (1, 9000, 32, 1), (2, 3000, 32, 8)],
)
def test_decoding_by_one_thread_block_a_multiprocessor(
    batch: int, keys: int, nheads: int, nheads_k: int, head_dim: int
) -> None:
    """About as many tiles as multiprocessors, which stay whole, and few short ones, cut into half as many pieces."""
    dtype = "bfloat16" if batch % 2 else "float16"
    check(Problem(dtype, ((1, keys),) * batch, nheads=nheads, nheads_k=nheads_k, head_dim=head_dim, seed=batch))


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("batch", [1, 2, 4, 8])
def test_rows_whose_pieces_are_merged_by_one_warp_or_several(batch: int, head_dim: int) -> None:
    """32 rows a sequence, each in many pieces: the fewer sequences, the more warps share a row."""
    keys = 1003 if HOST else 12_003
    check(Problem(lengths=((1, keys),) * batch, nheads=32, nheads_k=1, head_dim=head_dim, sinks=True, seed=batch))


def test_large_scores_of_one_split_outweigh_all_others() -> None:
    """Each row is the value of the one key that is parallel to it, wherever that lies."""
    dim, seqlen_k, rows = 128, 1000 if HOST else 20_000, 4
    q, k, v = (normal((1, n, 1, dim), "bfloat16", seed) for n, seed in ((rows, 1), (seqlen_k, 2), (seqlen_k, 3)))
    places = [0, seqlen_k // 3, seqlen_k // 2 + 11, seqlen_k - 1]
    for i, place in enumerate(places):
        k[0, place] = (q[0, i].astype(np.float32) * 6).astype(k.dtype)
    for num_splits in (0, 1, 2, 7, 100):
        out = pyflash3.flash_attn_func(q, k, v, num_splits=num_splits)
        wait()
        for i, place in enumerate(places):
            difference = np.abs(get(out[0, i]).astype(np.float32) - get(v[0, place]).astype(np.float32))
            assert difference.max() < 0.02, f"{num_splits} splits: query {i} does not find its key {place}"


@pytest.mark.parametrize("num_splits", [0, 3])
def test_a_single_query_sees_all_keys_under_a_causal_mask(num_splits: int) -> None:
    q, k, v = (normal((2, n, heads, 128), "bfloat16", n) for n, heads in ((1, 8), (3001, 2), (3001, 2)))
    plain, causal = (
        pyflash3.flash_attn_func(q, k, v, causal=x, num_splits=num_splits, return_lse=True) for x in (False, True)
    )
    wait()
    for x, y in zip(plain, causal, strict=True):
        assert same_bits(x, y)


CASES: dict[str, CacheCase] = {
    "decode": CacheCase(1, 3000, None, "bfloat16", nheads=8, nheads_k=2, head_dim=128, full=True),
    "pages of 1": CacheCase(1, 900, 1, "bfloat16", nheads=8, nheads_k=2, head_dim=128, full=True),
    "pages of 64": CacheCase(4, 2000, 64, "float16", nheads=16, nheads_k=1, head_dim=64, causal=True, full=True),
    "append": CacheCase(
        3, 1500, 16, "bfloat16", new="ragged", rotary_dim=64, causal=True, packed_q=True, leftpad=True, full=True
    ),
    "d 256": CacheCase(1, 2500, 256, "bfloat16", nheads=4, nheads_k=4, head_dim=256, full=True),
}


@pytest.mark.parametrize("num_splits", [0, 1, 3, 37])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("busy", [False, True], ids=["alone", "beside_other_work"])
def test_every_run_gives_the_same_bits(busy: bool, name: str, num_splits: int) -> None:
    # The appended rows are written again each time, with the same bytes.
    device = on_device(CASES[name].arguments())
    noise = other_work() if busy else lambda: None
    first = call(device, num_splits=num_splits)
    caches = {cache: device[cache].copy() for cache in ("k_cache", "v_cache")}
    repeats = REPEATS // (5 if busy else 1)
    out, lse = same_every_time(lambda: call(device, num_splits=num_splits), repeats, lambda _: noise())
    assert same_bits(out, first[0])
    assert same_bits(lse, first[1])
    for cache, x in caches.items():
        assert same_bits(device[cache], x), cache


@pytest.mark.parametrize("num_splits", [0, 3])
@pytest.mark.parametrize("name", CASES)
def test_hints_change_no_bit(name: str, num_splits: int) -> None:
    case = CASES[name]
    want = call(on_device(case.arguments()), num_splits=num_splits)
    changes: list[dict[str, Any]] = [{"pack_gqa": True}, {"pack_gqa": False}]
    if num_splits or HOST:  # with 0 splits these may choose other ones
        changes += [{"sm_margin": 100}, {"sm_margin": 10**6}, {"max_seqlen_q": 1}, {"max_seqlen_q": 10**6}]
    for more in changes:
        out, lse = call(on_device(case.arguments()), num_splits=num_splits, **more)
        wait()
        assert same_bits(out, want[0]), more
        assert same_bits(lse, want[1]), more


@pytest.mark.parametrize("num_splits", [2, 5])
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_nan_stays_where_it_is_seen(dim: int, num_splits: int) -> None:
    """In the keys of a neighbour, and in a key that only the last rows see."""
    inputs = make(Problem(lengths=((6, 400),) * 3, nheads=8, nheads_k=2, head_dim=dim, causal=True))
    want, want_lse = inputs.call(num_splits=num_splits)
    fill(inputs.v[0], np.nan)
    fill(inputs.k[0], np.nan)
    fill(inputs.v[2, 397], np.nan)  # rows 3, 4 and 5
    out, lse = inputs.call(num_splits=num_splits)
    wait()
    assert same_bits(out[1], want[1])
    assert same_bits(lse[1:], want_lse[1:])
    assert np.isnan(get(out[0]).astype(np.float32)).all()
    assert np.isnan(get(out[2, 3:]).astype(np.float32)).all()
    before, clean = (get(x[2, :3]).astype(np.float32) for x in (out, want))
    assert np.abs(before - clean).max() <= 2.0**-7 * np.abs(clean).max()


def test_a_strided_out_and_no_lse() -> None:
    inputs = make(Problem(lengths=((2, 900),) * 3, nheads=8, nheads_k=2, head_dim=128, causal=True))
    for num_splits, causal in itertools.product((0, 3), (False, True)):
        want = pyflash3.flash_attn_func(inputs.q, inputs.k, inputs.v, causal=causal, num_splits=num_splits)
        wide = xp.zeros((3, 8, 2, 136), want.dtype)
        view = wide[..., :128].swapaxes(1, 2)
        pyflash3.flash_attn_func(inputs.q, inputs.k, inputs.v, causal=causal, num_splits=num_splits, out=view)
        wait()
        assert same_bits(xp.ascontiguousarray(view), want)
        assert not get(bits(wide)[..., 128:]).any(), "columns beside out are written"
