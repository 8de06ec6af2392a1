"""Plans of flash_attn_with_kvcache: the bits of the function, and one plan for all layers and steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pyflash3
from pyflash3 import flash_attn_varlen_func, flash_attn_with_kvcache, plan_with_kvcache
from pyflash3._prepared import prepared
from tests.host.kvcache_cases import CacheCase, copied, equal

F32 = np.float32
CASES: dict[str, CacheCase] = {
    "dense": CacheCase(2, 40, None, "float32", causal=True),
    "paged": CacheCase(1, 64, 16, "bfloat16", leftpad=True, window=(9, 3), softcap=2.0),
    "append": CacheCase(3, 50, 4, "float16", new="equal", rotary_dim=16, causal=True, batch_idx=True, alibi=True),
    "latent": CacheCase(
        2, 40, 4, "float32", nheads_k=1, head_dim=72, head_dim_v=64, latent=True, new="equal", causal=True
    ),
    "ragged": CacheCase(
        4, 40, 1, "float32", new="ragged", packed_q=True, rotary_dim=32, rotary_seqlens=True, sinks=True
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_same_bits_as_the_function(case: CacheCase) -> None:
    arguments = case.arguments()
    wanted = copied(arguments)
    want, want_lse = flash_attn_with_kvcache(**wanted, return_lse=True)
    before = copied(arguments)
    step = plan_with_kvcache(**arguments, return_lse=True)
    for name, x in before.items():
        if isinstance(x, np.ndarray):
            equal(arguments[name], x)  # making a plan writes nothing
    step.out[...] = np.nan
    step.lse[...] = np.nan
    out, lse = step()
    assert out is step.out
    assert lse is step.lse
    equal(out, want)
    equal(lse, want_lse)
    for name in ("k_cache",) if case.latent else ("k_cache", "v_cache"):
        equal(arguments[name], wanted[name])


def test_one_plan_for_all_layers_and_steps() -> None:
    """Each layer has caches of its own, each step longer ones; the planned arrays stay as they are."""
    case = CacheCase(1, 60, 4, "float32", new="equal", rotary_dim=16, causal=True)
    first = case.arguments()
    step = plan_with_kvcache(**first, return_lse=True)
    rng = np.random.default_rng(3)
    layers = [copied(first) for _ in range(3)]
    planned = copied(first)
    first["cache_seqlens"][:] = [0, 7, 30]
    for _ in range(4):
        for layer in layers:
            for name in ("q", "k", "v"):
                layer[name] = rng.standard_normal(layer[name].shape, F32)
            layer["cache_seqlens"] = first["cache_seqlens"]
            layer["page_table"] = first["page_table"]
            same = copied(layer)
            want, want_lse = flash_attn_with_kvcache(**same, return_lse=True)
            changes = {name: layer[name] for name in ("q", "k", "v", "k_cache", "v_cache")}
            out, lse = np.full_like(want, np.nan), np.full_like(want_lse, np.nan)
            result = step(**changes, out=out, lse=lse)
            assert result[0] is out
            assert result[1] is lse
            equal(out, want)
            equal(lse, want_lse)
            for name in ("k_cache", "v_cache"):
                equal(layer[name], same[name])
        first["cache_seqlens"] += 1
        first["page_table"][:] = np.roll(first["page_table"], 1, axis=0)
    for name in ("q", "k", "v", "k_cache", "v_cache"):
        equal(first[name], planned[name])


@pytest.mark.parametrize("length", [5, np.int64(5)])
def test_a_length_for_all_is_a_constant(length: Any) -> None:
    arguments = CacheCase(2, 40, None, "float32").arguments()
    for name in ("k_cache", "v_cache"):
        arguments[name][:, :5] = 1.5
    arguments["cache_seqlens"] = length
    equal(plan_with_kvcache(**arguments)(), flash_attn_with_kvcache(**arguments))


def test_pages_of_packed_calls() -> None:
    arguments = CacheCase(3, 40, 4, "float32", packed_q=True).arguments()
    names = {"k": "k_cache", "v": "v_cache", "seqused_k": "cache_seqlens"}
    varlen = {n: arguments[names.get(n, n)] for n in ("q", "k", "v", "cu_seqlens_q", "page_table", "seqused_k")}
    want = flash_attn_varlen_func(**varlen, cu_seqlens_k=None, causal=True)
    step = pyflash3.plan(**varlen, causal=True)
    equal(step(), want)
    # The same pages in another order, which the table follows.
    pages = len(varlen["k"])
    table = varlen["page_table"]
    table[table < pages] = pages - 1 - table[table < pages]
    step.out[...] = np.nan
    equal(step(k=varlen["k"][::-1].copy(), v=varlen["v"][::-1].copy()), want)


def test_lengths_are_checked_at_each_call_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYFLASH3_CHECK", "1")
    arguments = CacheCase(1, 40, 4, "float32", new="equal").arguments()
    step = plan_with_kvcache(**arguments)
    step()
    arguments["cache_seqlens"][1] = 40
    with pytest.raises(ValueError, match=r"cache_seqlens\[1\] is 40; it must be from 0 to 39, the rows"):
        step()


def test_a_hint_that_grows_with_the_cache_prepares_nothing_anew() -> None:
    """Three bits of it count."""
    arguments = CacheCase(1, 40, None, "float32").arguments()
    out = flash_attn_with_kvcache(**arguments, max_seqlen_k=1025)
    kinds = prepared.cache_info().misses
    for told in (1026, 1100, np.int64(1280)):
        equal(flash_attn_with_kvcache(**arguments, max_seqlen_k=told), out)
    assert prepared.cache_info().misses == kinds
    equal(flash_attn_with_kvcache(**arguments, max_seqlen_k=1281), out)
    assert prepared.cache_info().misses == kinds + 1


def test_the_same_of_packed_queries() -> None:
    arguments = CacheCase(3, 40, 4, "float32", packed_q=True).arguments()

    def call(told: int) -> Any:
        return flash_attn_varlen_func(
            arguments["q"], arguments["k_cache"], arguments["v_cache"], arguments["cu_seqlens_q"], None, 3, told,
            seqused_k=arguments["cache_seqlens"], page_table=arguments["page_table"],
        )  # fmt: skip

    out = call(1025)
    kinds = prepared.cache_info().misses
    for told in (1026, 1280):
        equal(call(told), out)
    assert prepared.cache_info().misses == kinds
