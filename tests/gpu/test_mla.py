"""Decoding with a latent cache (MLA): head dim 576, of which the first 512 columns are the values, v_cache=None."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from pyflash3 import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache
from tests.gpu.kvcache_problem import Arguments, call, check, on_device, on_host, packed, right_or_refused, want
from tests.gpu.machine import HOST, fill, get, int32, normal, poisoned, put, same_bits, wait
from tests.gpu.problem import judge
from tests.gpu.repeats import other_work, same_every_time
from tests.gpu.test_kvcache_graphs import captured
from tests.host.kvcache_cases import CacheCase

HEADS = (16, 128) if HOST else (16, 32, 64, 128)
SEQLENS_Q = (1, 4) if HOST else (1, 2, 3, 4)
SPLITS = (0, 1, 3, 37)
CAPACITY = 100 if HOST else 320
DTYPES = ("bfloat16", "float16")
MASKS: tuple[dict[str, Any], ...] = (
    {"window": (70, 9)},
    {"causal": True, "window": (100, -1)},
    {"causal": True, "softcap": 3.0},
    {"causal": True, "alibi": True},
    {"causal": True, "sinks": True},
    {"window": (30, 40), "softcap": 60.0, "alibi": True, "sinks": True},
)


def mla(seqlen_q: int, page_size: int | None, nheads: int = 16, **more: Any) -> CacheCase:
    """Sequences of 0, 1 and other numbers of keys, up to as many as the cache holds."""
    n = CAPACITY - (seqlen_q if more.get("new", "none") != "none" else 0)
    common: dict[str, Any] = {"batch": 5, "filled": (n, 0, 1, n // 2 + 1, 64), "dtype": "bfloat16"} | more
    return CacheCase(
        seqlen_q, CAPACITY, page_size, nheads=nheads, nheads_k=1, head_dim=576, head_dim_v=512, latent=True, **common
    )


def _cases() -> list[tuple[CacheCase, int]]:
    """Each number of heads with each number of queries and page size; splits, dtypes and new rows take turns."""
    cases = []
    for i, (nheads, seqlen_q, page_size) in enumerate(itertools.product(HEADS, SEQLENS_Q, (None, 64))):
        turn = i // 2 + i // 8 + 2 * (i % 2)
        case = mla(
            seqlen_q, page_size, nheads, dtype=DTYPES[(i // 2 + i // 16) % 2], new=("none", "equal")[(i // 4) % 2],
            causal=i % 3 > 0, seed=i,
        )  # fmt: skip
        cases.append((case, SPLITS[turn % 4]))
    return cases


def _title(value: Any) -> str:
    if not isinstance(value, CacheCase):
        return str(value)
    page = "dense" if value.page_size is None else f"page{value.page_size}"
    dims = f"d{value.head_dim}v{value.head_dim_v}-h{value.nheads}-{value.seqlen_q}x{value.seqlen_k}"
    return f"{value.dtype}-{dims}-{page}-new_{value.new}" + "-leftpad" * value.leftpad + "-causal" * value.causal


@pytest.mark.parametrize(("case", "num_splits"), _cases(), ids=_title)
def test_heads_queries_and_pages(case: CacheCase, num_splits: int) -> None:
    check(case, num_splits=num_splits)


@pytest.mark.parametrize("options", MASKS, ids=str)
@pytest.mark.parametrize("page_size", [None, 64])
def test_every_option(page_size: int | None, options: dict[str, Any]) -> None:
    index = MASKS.index(options)
    check(mla(3, page_size, HEADS[index % len(HEADS)], **options), num_splits=SPLITS[index % 4])


@pytest.mark.parametrize("page_size", [8, 16, 128, 256])
def test_page_sizes(page_size: int) -> None:
    check(mla(2, page_size, 32, new="equal", causal=True))


@pytest.mark.parametrize("page_size", [None, 64])
def test_the_rest_of_a_cache(page_size: int | None) -> None:
    """Entries by number, packed queries, ragged new rows, rotary embedding; in the dense one left padding."""
    case = mla(
        4, page_size, 16, new="ragged", batch_idx=True, packed_q=True, rotary_dim=64, interleaved=False, causal=True,
        leftpad=page_size is None, filled=(), full=True,
    )  # fmt: skip
    check(case)


def test_many_keys_and_many_sequences() -> None:
    seqlen_k, batch = (700, 20) if HOST else (6000, 150)
    for num_splits in (0, 5):
        case = CacheCase(
            1, seqlen_k, None, "bfloat16", batch=2, nheads=128, nheads_k=1, head_dim=576, head_dim_v=512, latent=True,
            full=True,
        )  # fmt: skip
        check(case, num_splits=num_splits)
    check(mla(1, 64, 16, batch=batch, filled=(), full=True))


@pytest.mark.parametrize("nheads", [16, 128])
def test_the_dense_and_varlen_functions(nheads: int) -> None:
    """The same bits as flash_attn_with_kvcache of the same arrays."""
    case = mla(3, 64, nheads, packed_q=True, causal=True)
    device = on_device(case.arguments())
    want_out, want_lse = call(device, num_splits=1)
    out, lse = flash_attn_varlen_func(
        device["q"], device["k_cache"], None, device["cu_seqlens_q"], None, 3, CAPACITY,
        seqused_k=device["cache_seqlens"], causal=True, page_table=device["page_table"], d_v=512, num_splits=1,
        out=poisoned((*device["q"].shape[:-1], 512), "bfloat16"), return_lse=True,
    )  # fmt: skip
    wait()
    assert same_bits(out, want_out)
    assert same_bits(lse, want_lse)
    q, k = normal((2, 3, nheads, 576), "bfloat16", 1), normal((2, CAPACITY, 1, 576), "bfloat16", 2)
    out, lse = flash_attn_func(q, k, None, causal=True, num_splits=1, d_v=512, return_lse=True)
    whole: Arguments = {"q": q, "k_cache": k, "v_cache": None, "d_v": 512, "causal": True}
    want_out, want_lse = call(whole, num_splits=1)
    wait()
    assert same_bits(out, want_out)
    assert same_bits(lse, want_lse)


@pytest.mark.parametrize("num_splits", [0, 1, 3])
@pytest.mark.parametrize("page_size", [None, 64])
def test_unused_rows_never_change_a_bit(page_size: int | None, num_splits: int) -> None:
    """Finite, NaN and infinite numbers in every slot and page that holds no key."""
    arguments = mla(2, page_size, 128, new="equal", causal=True).arguments()
    unused = np.isnan(arguments["k_cache"].astype(np.float32))
    results = []
    for value in (1.0, np.nan, np.inf, -np.inf):
        arguments["k_cache"][unused] = value
        results.append(call(on_device(arguments), num_splits=num_splits))
    wait()
    for out, lse in results[1:]:
        assert same_bits(out, results[0][0])
        assert same_bits(lse, results[0][1])


@pytest.mark.parametrize("column", [300, 575], ids=["value", "key_alone"])
@pytest.mark.parametrize(("nheads", "num_splits"), [(16, 0), (128, 1), (64, 3)])
def test_a_bad_latent_row_shows_where_it_is_seen(nheads: int, num_splits: int, column: int) -> None:
    """NaN in one column of a key that the last two of four queries of sequence 0 see."""
    arguments = mla(4, 64, nheads, causal=True).arguments()
    clean = call(on_device(arguments), num_splits=num_splits)
    right = want(arguments)
    dirty = on_device(arguments)
    key = int(arguments["cache_seqlens"][0]) - 2
    page = int(arguments["page_table"][0, key // 64])
    fill(dirty["k_cache"][page, key % 64, :, column], np.nan)
    out, lse = call(dirty, num_splits=num_splits)
    wait()
    assert same_bits(out[1:], clean[0][1:])
    assert same_bits(lse[1:], clean[1][1:])
    assert np.isnan(get(out[0, 2:]).astype(np.float32)).all()
    # The other rows by the error rule only: beside such a key the work may be done in another order.
    out[0, 2:], lse[0, :, 2:] = clean[0][0, 2:], clean[1][0, :, 2:]
    judge(right.problem, *packed(out, lse), right.result)


@pytest.mark.parametrize("num_splits", [0, 3])
@pytest.mark.parametrize(("nheads", "page_size"), [(16, None), (128, 64)])
def test_every_run_gives_the_same_bits(nheads: int, page_size: int | None, num_splits: int) -> None:
    device = on_device(mla(2, page_size, nheads, causal=True).arguments())
    noise = other_work()
    same_every_time(
        lambda: call(device, num_splits=num_splits), 2 if HOST else 60, lambda i: noise() if i % 2 else None
    )


WRONG: list[dict[str, int]] = [
    {"page_table": 10**6}, {"page_table": -(2**31)}, {"cache_seqlens": 10**9}, {"cache_seqlens": -(2**31)},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_wrong_contents_hit_their_sequence_alone(wrong: dict[str, int]) -> None:
    """No fault, no hang, and nothing is written around the cache."""
    ((name, value),) = wrong.items()
    clean = mla(2, 64, 16, new="equal", causal=True).arguments()
    dirty = clean | {name: clean[name].copy()}
    dirty[name][3] = value
    first, second = on_device(clean), on_device(dirty)
    frame = poisoned((second["k_cache"].shape[0] + 4, *second["k_cache"].shape[1:]), "bfloat16")
    frame[2:-2] = second["k_cache"]
    second["k_cache"] = frame[2:-2]
    right, right_lse = call(first, num_splits=3)
    out, lse = call(second, num_splits=3)
    wait()
    for b in (0, 1, 2, 4):
        assert same_bits(out[b], right[b]), f"sequence {b}"
        assert same_bits(lse[b], right_lse[b]), f"lse of sequence {b}"
    for edge in (frame[:2], frame[-2:]):
        assert same_bits(edge, poisoned(edge.shape, "bfloat16"))


REFUSABLE = [
    mla(2, 1, causal=True),
    mla(2, 12, new="equal", causal=True),
    mla(2, 64, leftpad=True, filled=(), full=True, causal=True),
    CacheCase(2, 100, None, "bfloat16", nheads=8, head_dim=64, head_dim_v=64, latent=True, new="equal", causal=True),
    CacheCase(2, 100, 16, "bfloat16", nheads=8, head_dim=576, head_dim_v=256, latent=True, causal=True),
    CacheCase(2, 100, None, "bfloat16", nheads=8, head_dim=576, head_dim_v=512, new="equal", causal=True),
]


@pytest.mark.parametrize("case", REFUSABLE, ids=_title)
def test_other_shapes_are_right_or_refused(case: CacheCase) -> None:
    right_or_refused(case)


@pytest.mark.parametrize("dims", [(64, 64), (256, 128), (512, 512), (576, 256)], ids=str)
def test_other_head_dims_of_the_dense_function_are_right_or_refused(dims: tuple[int, int]) -> None:
    q, k = normal((2, 70, 4, dims[0]), "bfloat16", 1), normal((2, 300, 2, dims[0]), "bfloat16", 2)
    out = poisoned((2, 70, 4, dims[1]), "bfloat16")
    refusal = None
    try:
        flash_attn_func(q, k, None, causal=True, out=out, d_v=dims[1])
    except NotImplementedError as error:
        refusal = str(error)
    wait()
    if refusal is not None:
        assert not HOST, "the host engine computes everything"
        assert "head_dim" in refusal
        assert same_bits(out, poisoned(out.shape, "bfloat16")), "a refused call wrote into out"
        return
    copied = flash_attn_func(q, k, put(np.ascontiguousarray(get(k)[..., : dims[1]])), causal=True)
    wait()
    assert same_bits(out, copied)


@pytest.mark.parametrize("keys", [0, 1])
def test_nothing_to_do(keys: int) -> None:
    """No sequence, and sequences without a key in a cache with and without rows."""
    cases: list[Arguments] = [
        {"q": normal((batch, 2, 16, 576), "bfloat16", 1), "k_cache": poisoned((batch, keys, 1, 576), "bfloat16"),
         "v_cache": None, "d_v": 512, "cache_seqlens": int32([0] * batch)}
        for batch in (0, 3)
    ]  # fmt: skip
    for arguments in cases:
        out, lse = call(arguments)
        wait()
        assert not get(out).astype(np.float32).any()
        assert np.isneginf(get(lse)).all()


@pytest.mark.parametrize(("page_size", "nheads", "num_splits"), [(64, 128, 0), (None, 16, 0), (64, 16, 3)])
def test_steps_through_one_graph(cuda: Any, page_size: int | None, nheads: int, num_splits: int) -> None:
    """The cache grows and its pages change places, the graph stays: the bits of an eager call, and the formula's."""
    numbers = mla(1, page_size, nheads, new="equal", causal=True, filled=(250, 0, 1, 100, 64)).arguments()
    numbers["k_cache"][np.isnan(numbers["k_cache"].astype(np.float32))] = 1
    if page_size is not None:
        columns = numbers["page_table"].shape[1]
        numbers["page_table"] = np.random.default_rng(0).permutation(5 * columns).reshape(5, columns).astype(np.int32)
    arguments = on_device(numbers)
    eager = {name: x.copy() if hasattr(x, "copy") else x for name, x in arguments.items()}
    wait()
    stream = cuda.cuda.Stream(non_blocking=True)
    with stream:
        out = poisoned((5, 1, nheads, 512), "bfloat16")
        graph, (_, lse) = captured(
            cuda, stream,
            lambda: flash_attn_with_kvcache(**arguments, num_splits=num_splits, out=out, return_lse=True),
        )  # fmt: skip
        for step in range(12):
            for x in (arguments, eager):
                for seed, name in enumerate(("q", "k")):
                    x[name][...] = normal(x[name].shape, "bfloat16", 50 + 2 * step + seed)
                if page_size is not None and step == 6:  # other pages take over, with what they hold
                    x["page_table"][...] = x["page_table"][::-1].copy()
            before = on_host(eager) if step % 5 == 1 else None
            fill(out, np.nan)
            graph.launch(stream)
            want_out, want_lse = flash_attn_with_kvcache(**eager, num_splits=num_splits, return_lse=True)
            wait(stream)
            assert same_bits(out, want_out), f"step {step}"
            assert same_bits(lse, want_lse), f"lse of step {step}"
            if before is not None:
                right = want(before)
                judge(right.problem, *packed(out, lse), right.result)
            arguments["cache_seqlens"] += 5
            eager["cache_seqlens"] += 5
        wait(stream)
    assert same_bits(arguments["k_cache"], eager["k_cache"])
