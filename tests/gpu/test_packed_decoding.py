"""Decoding with packed queries, as an engine has them that batches sequences continuously. It says how many queries the
longest sequence has, and may be wrong.
"""

from __future__ import annotations

import numpy as np
import pytest

import pyflash3
from tests.gpu.kvcache_problem import call, check, check_same_bits, on_device
from tests.gpu.machine import get, put, wait
from tests.gpu.test_bad_lengths import WRONG, wrong_entry
from tests.host.kvcache_cases import CacheCase

pytestmark = pytest.mark.usefixtures("cuda")  # the host engine has no kernels of its own for them

ONES = (1, 1, 1, 1, 1, 1, 1)
SOME = (1, 0, 1, 1, 0, 1, 0)
MORE = (0, 3, 0, 1, 0, 1, 2)
FILLED = (300, 1, 0, 64, 65, 129, 257)
HEADS = ((4, 1), (8, 2), (8, 8), (32, 1), (9, 1), (64, 1))
DIMS = ((128, 128), (64, 64), (96, 96), (192, 192), (256, 256), (72, 104), (192, 128), (64, 256))


@pytest.mark.parametrize("queries", [ONES, SOME, MORE], ids=["one", "one or none", "more"])
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_every_head_dim(dims: tuple[int, int], heads: tuple[int, int], queries: tuple[int, ...]) -> None:
    """With one query in each sequence at most, as the caller says, or more."""
    index = DIMS.index(dims) + HEADS.index(heads)
    case = CacheCase(
        9, 400, (None, 64, 16, 1)[index % 4], ("bfloat16", "float16")[index // 2 % 2], batch=len(queries),
        nheads=heads[0], nheads_k=heads[1], head_dim=dims[0], head_dim_v=dims[1], filled=FILLED, queries=queries,
        causal=index % 3 > 0, sinks=index % 5 == 0,
    )  # fmt: skip
    check(case, max_seqlen_q=1)


@pytest.mark.parametrize("hint", [None, 1, 2, 3, 4, 7])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("page_size", [None, 1, 64])
@pytest.mark.parametrize(("nheads", "nheads_k", "head_dim"), [(8, 2, 128), (32, 1, 128), (16, 8, 64), (8, 1, 256)])
def test_several_queries(
    nheads: int, nheads_k: int, head_dim: int, page_size: int | None, causal: bool, hint: int | None
) -> None:
    """Of some sequences more than the caller says."""
    queries = (4, 0, 3, 0, 1) if hint == 2 else (4, 1, 7, 0, 2)
    case = CacheCase(
        7, 1000, page_size, "bfloat16", batch=5, nheads=nheads, nheads_k=nheads_k, head_dim=head_dim,
        filled=(1000, 70, 5, 999, 0), queries=queries, causal=causal, sinks=page_size == 64,
    )  # fmt: skip
    check(case, max_seqlen_q=hint)


@pytest.mark.parametrize("room", [0, 30_000])
@pytest.mark.parametrize(("batch", "keys"), [(1, 9000), (2, 3000), (40, 700), (150, 150), (700, 40)])
@pytest.mark.parametrize(("nheads", "nheads_k"), [(8, 2), (32, 1), (4, 4)])
def test_many_and_few_sequences(nheads: int, nheads_k: int, batch: int, keys: int, room: int) -> None:
    """In clusters, with tiles cut alike, or along the line; one sequence in five has no query."""
    if room * batch > 100_000:
        pytest.skip("such a cache takes too long to make")
    rng = np.random.default_rng(batch)
    case = CacheCase(
        1, max(room, keys), 16 if batch == 40 else None, "bfloat16", batch=batch, nheads=nheads, nheads_k=nheads_k,
        head_dim=128, filled=tuple(int(n) for n in keys - rng.integers(0, 40, batch)),
        queries=tuple(int(n) for n in (rng.integers(0, 5, batch) > 0) | (np.arange(batch) == 0)), causal=True,
    )  # fmt: skip
    check(case, max_seqlen_q=1)


@pytest.mark.parametrize("told", [1, 100, 3000, 100_000])
@pytest.mark.parametrize(("seqlen_q", "batch"), [(1, 1), (1, 3), (4, 2), (100, 2)])
def test_a_hint_of_keys(seqlen_q: int, batch: int, told: int) -> None:
    """Of fewer keys than there are, or more, in a cache with room for many."""
    case = CacheCase(
        seqlen_q, 20_000, 64, "bfloat16", batch=batch, nheads=16, nheads_k=4, head_dim=128,
        filled=(2900, 700, 0)[:batch], causal=True,
    )  # fmt: skip
    check(case, max_seqlen_k=told)


MIXED = ((1,) * 9 + (100,), (1,) * 16 + (40, 0, 70, 1, 2), (200, *(1,) * 8, 0, 150), (0,) * 20 + (33, 1))


@pytest.mark.parametrize("queries", MIXED, ids=str)
@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("nheads", "nheads_k", "head_dim"), [(8, 2, 128), (32, 1, 128), (16, 16, 64), (8, 4, 256)])
def test_prompts_beside_single_queries(
    nheads: int, nheads_k: int, head_dim: int, causal: bool, page_size: int, queries: tuple[int, ...]
) -> None:
    """In one call: computed as two (core/two_steps.h)."""
    rng = np.random.default_rng(len(queries))
    filled = tuple(max(n, int(keys)) for n, keys in zip(queries, rng.integers(0, 700, len(queries)), strict=True))
    case = CacheCase(
        1, 700, page_size, ("bfloat16", "float16")[page_size == 16], batch=len(queries), nheads=nheads,
        nheads_k=nheads_k, head_dim=head_dim, filled=filled, queries=queries, causal=causal, sinks=page_size == 1,
    )  # fmt: skip
    check(case, max_seqlen_q=max(queries) + (page_size == 64))


@pytest.mark.parametrize("told", [70, 90, 5000])
def test_no_single_query_where_most_should_be(told: int) -> None:
    queries = (0, 20, 0, 0, 3, 0, 2, 0, 0, 0, 90, 0)
    case = CacheCase(
        1, 500, 64, "bfloat16", batch=len(queries), nheads=8, nheads_k=2, head_dim=128, queries=queries, causal=True,
        filled=tuple(100 + n for n in queries),
    )  # fmt: skip
    check(case, max_seqlen_q=told)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize(
    ("queries", "keys"), [((1,) * 40, 300), ((1,) * 20 + (30, 1, 25, 1), 300), ((40, 30, 50, 20), 2300)],
    ids=["decoding", "two steps", "pieces"],
)  # fmt: skip
def test_wrong_cu_seqlens_q(queries: tuple[int, ...], keys: int, place: str, wrong: str) -> None:
    """Sequences whose own entries are right, and whose rows no wrong one claims, stay what they are."""
    batch = len(queries)
    case = CacheCase(
        1, keys, 16, "bfloat16", batch=batch, nheads=8, nheads_k=2, head_dim=128, filled=(keys,) * batch,
        queries=queries, causal=True,
    )  # fmt: skip
    arguments = on_device(case.arguments())
    want = [get(x).astype(np.float32) for x in call(arguments, max_seqlen_q=max(queries))]
    right = get(arguments["cu_seqlens_q"])
    at = {"first": 0, "middle": batch // 2, "last": batch}[place]
    cu_seqlens, unclaimed = wrong_entry(right, at, wrong)
    arguments["cu_seqlens_q"] = put(cu_seqlens)
    found = [get(x).astype(np.float32) for x in call(arguments, max_seqlen_q=max(queries))]
    wait()
    for b in unclaimed:
        rows = slice(right[b], right[b + 1])
        assert np.abs(found[0][rows] - want[0][rows]).max() < 4e-3, f"sequence {b} has changed"
        assert np.abs(found[1][:, rows] - want[1][:, rows]).max() < 1e-4, f"lse of sequence {b} has changed"


def test_nan_of_a_later_token_stays_there() -> None:
    """A query that the caller did not announce sees the keys up to its own, and no NaN behind them."""
    case = CacheCase(
        3, 200, None, "bfloat16", batch=3, nheads=8, nheads_k=2, filled=(150, 3, 3), queries=(3, 0, 0), causal=True
    )
    arguments = case.arguments()
    arguments["v_cache"][0, 149, 0, 5] = np.nan  # of the last query alone
    arguments["v_cache"][0, 148, 1, 7] = np.nan  # of the last two
    out = get(pyflash3.flash_attn_with_kvcache(**on_device(arguments), max_seqlen_q=1)).astype(np.float32)
    wait()
    hit = np.zeros(out.shape, bool)
    hit[2, :4, 5] = True
    hit[1:, 4:, 7] = True
    assert (np.isnan(out) == hit).all()


def test_the_varlen_function_does_the_same() -> None:
    case = CacheCase(1, 500, 64, "float16", batch=7, nheads=8, nheads_k=2, head_dim=128, filled=FILLED, queries=SOME,
                     causal=True)  # fmt: skip
    arguments = on_device(case.arguments())
    a = pyflash3.flash_attn_with_kvcache(**arguments, max_seqlen_q=1, max_seqlen_k=512, return_lse=True)
    b = pyflash3.flash_attn_varlen_func(
        arguments["q"], arguments["k_cache"], arguments["v_cache"], arguments["cu_seqlens_q"], None, 1, 512,
        seqused_k=arguments["cache_seqlens"], page_table=arguments["page_table"], causal=True, return_lse=True,
    )  # fmt: skip
    wait()
    for x, y in zip(a, b, strict=True):
        assert (get(x) == get(y)).all()


@pytest.mark.parametrize(("nheads_k", "batch"), [(1, 64), (8, 8), (8, 1)])
def test_every_run_gives_the_same_bits(nheads_k: int, batch: int) -> None:
    check_same_bits(
        CacheCase(1, 1100, None, "float16", batch=batch, nheads=32, nheads_k=nheads_k, head_dim=128,
                  filled=(1100,) * batch, queries=(1,) * batch)
    )  # fmt: skip
