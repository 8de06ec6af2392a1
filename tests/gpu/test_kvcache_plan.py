"""Plans of flash_attn_with_kvcache: the bits of the function, one plan for all layers of a decoder, captured graphs."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

import pyflash3
from tests.gpu.kvcache_problem import Arguments, call, on_device
from tests.gpu.machine import DTYPES, bits, fill, int32, normal, poisoned, put, same_bits, wait
from tests.host.kvcache_cases import CacheCase

LAYERS, STEPS = 3, 20
CASES: dict[str, CacheCase] = {
    "dense": CacheCase(1, 300, None, "bfloat16", causal=True),
    "paged": CacheCase(4, 500, 16, "float16", leftpad=True, causal=True, window=(200, 0), softcap=5.0),
    "append": CacheCase(2, 400, 64, "bfloat16", head_dim=128, new="equal", rotary_dim=64, causal=True, batch_idx=True),
    "ragged": CacheCase(4, 200, 1, "bfloat16", new="ragged", packed_q=True, rotary_dim=32, alibi=True, sinks=True),
}


def planned(arguments: Arguments, **more: Any) -> pyflash3.KVCachePlan:
    """The plan of a call, with a log-sum-exp."""
    return pyflash3.plan_with_kvcache(**arguments, return_lse=True, **more)


@pytest.mark.parametrize("num_splits", [0, 1, 5])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_same_bits_as_the_function(case: CacheCase, num_splits: int) -> None:
    arguments = case.arguments()
    mine, wanted = on_device(arguments), on_device(arguments)
    want, want_lse = call(wanted, num_splits=num_splits)
    step = planned(mine, num_splits=num_splits)
    for _ in range(2):  # appending the same rows again changes nothing
        fill(step.out, np.nan)
        fill(step.lse, np.nan)
        out, lse = step()
        wait()
        assert same_bits(out, want)
        assert same_bits(lse, want_lse)
        for name in ("k_cache", "v_cache"):
            assert same_bits(mine[name], wanted[name])


def layers(page_size: int | None) -> tuple[Arguments, list[Arguments]]:
    """A decoding step, and the arrays of its layers: q, new rows, caches and out."""
    batch, heads, dim, capacity = 4, (8, 2), 64, 128
    rows = (batch, capacity) if page_size is None else (2 * batch * capacity // page_size, page_size)
    angle = np.arange(capacity)[:, None] / 10000 ** np.linspace(0, 1, dim // 2, endpoint=False)
    tables = {"rotary_cos": np.cos(angle), "rotary_sin": np.sin(angle)}
    shared: Arguments = {name: put(x.astype(DTYPES["bfloat16"])) for name, x in tables.items()}
    shared |= {"cache_seqlens": int32([0, 17, 63, 100]), "causal": True}
    if page_size is not None:
        order = np.random.default_rng(page_size).permutation(rows[0])[: batch * capacity // page_size]
        shared["page_table"] = int32(order.reshape(batch, -1))
    own = [
        {
            "q": normal((batch, 1, heads[0], dim), "bfloat16", 10 * i),
            "k": normal((batch, 1, heads[1], dim), "bfloat16", 10 * i + 1),
            "v": normal((batch, 1, heads[1], dim), "bfloat16", 10 * i + 2),
            "k_cache": normal((*rows, heads[1], dim), "bfloat16", 10 * i + 3),
            "v_cache": normal((*rows, heads[1], dim), "bfloat16", 10 * i + 4),
            "out": poisoned((batch, 1, heads[0], dim), "bfloat16"),
        }
        for i in range(LAYERS)
    ]
    return shared, own


def copied(arrays: Arguments) -> Arguments:
    return {name: x.copy() for name, x in arrays.items()}


def next_inputs(own: list[Arguments], turn: int) -> None:
    for i, layer in enumerate(own):
        for j, name in enumerate(("q", "k", "v")):
            layer[name][...] = normal(layer[name].shape, "bfloat16", 100 * turn + 10 * i + j)


@pytest.mark.parametrize("page_size", [None, 1, 16])
def test_one_plan_for_all_layers(page_size: int | None) -> None:
    shared, own = layers(page_size)
    spare = copied(own[0])
    untouched = copied(spare)
    step = planned({**shared, **spare})
    for turn in range(5):
        next_inputs(own, turn)
        for layer in own:
            same = copied(layer)
            want, want_lse = pyflash3.flash_attn_with_kvcache(**shared, **same, return_lse=True)
            out, lse = step(**layer)
            assert out is layer["out"]
            wait()
            assert same_bits(out, want)
            assert same_bits(lse, want_lse)
            for name in ("k_cache", "v_cache"):
                assert same_bits(layer[name], same[name])
        shared["cache_seqlens"] += 1
    assert all(bool((bits(spare[name]) == bits(x)).all()) for name, x in untouched.items())


@pytest.mark.parametrize("page_size", [None, 16])
def test_all_layers_in_one_graph_while_the_cache_grows(cuda: Any, page_size: int | None) -> None:
    """The plan has gone by the time of the replays; eager calls between them do not disturb them."""
    shared, own = layers(page_size)
    eager = [copied(layer) for layer in own]
    pyflash3.flash_attn_with_kvcache(**shared, **copied(own[0]))  # kernels get loaded
    lses = [cuda.empty((4, 8, 1), np.float32) for _ in own]
    wait()
    stream = cuda.cuda.Stream(non_blocking=True)
    with stream:
        step = planned({**shared, **copied(own[0])})
        stream.synchronize()
        stream.begin_capture(mode=cuda.cuda.runtime.streamCaptureModeThreadLocal)
        try:
            for layer, lse in zip(own, lses, strict=True):
                step(**layer, lse=lse)
        finally:
            graph = stream.end_capture()
        del step
        gc.collect()
        rubbish = [cuda.full(size, 0xFF, np.uint8) for size in (1024, 16384, 1 << 18) for _ in range(20)]
        for turn in range(STEPS):
            next_inputs(own, turn)
            next_inputs(eager, turn)
            for layer, lse in zip(own, lses, strict=True):
                fill(layer["out"], np.nan)
                fill(lse, np.nan)
            graph.launch(stream)
            for layer, lse, same in zip(own, lses, eager, strict=True):
                want, want_lse = pyflash3.flash_attn_with_kvcache(**shared, **same, return_lse=True)
                wait(stream)
                assert same_bits(layer["out"], want), f"step {turn}"
                assert same_bits(lse, want_lse)
                assert same_bits(layer["k_cache"], same["k_cache"])
                assert same_bits(layer["v_cache"], same["v_cache"])
            shared["cache_seqlens"] += 1
        assert all(bool((x == 0xFF).all()) for x in rubbish)


def test_a_length_for_all_is_there_for_every_stream(cuda: Any) -> None:
    arguments = on_device(CASES["dense"].arguments())
    for name in ("k_cache", "v_cache"):
        fill(arguments[name], 0.5)
    arguments["cache_seqlens"] = 200
    want, _ = call(arguments)
    wait()
    step = planned(arguments)
    with cuda.cuda.Stream(non_blocking=True) as stream:
        out, _ = step()
        wait(stream)
    assert same_bits(out, want)
