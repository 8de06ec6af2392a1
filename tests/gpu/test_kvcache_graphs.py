"""Decoding through captured graphs: the cache grows and the page table changes, the graph stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pyflash3
from pyflash3 import flash_attn_with_kvcache
from tests.gpu.kvcache_problem import call, on_device, on_host, packed, want
from tests.gpu.machine import int32, normal, poisoned, put, same_bits, spin, wait
from tests.gpu.problem import judge
from tests.host.kvcache_cases import CacheCase

STEPS = 200
CAPACITY = 512
MIB = 2**20
FIRST = np.array([0, 17, 130, 311], np.int32)  # rows in the cache before the first step: 311 + 200 fill it but for one


ROOM = 64 << 20  # bytes


def captured(cuda: Any, stream: Any, run: Callable[[], Any]) -> tuple[Any, Any]:
    """(graph, result) of a call; an earlier one has loaded the kernels, and the memory pool has room for the result and
    scratch in any order.
    """
    run()
    cuda.empty(ROOM, np.int8)
    stream.synchronize()
    stream.begin_capture(mode=cuda.cuda.runtime.streamCaptureModeThreadLocal)
    try:
        result = run()
    finally:
        graph = stream.end_capture()
    return graph, result


def _decoder(page_size: int | None, dim: int, heads: tuple[int, int]) -> dict[str, Any]:
    """Device arguments of a step: empty caches are NaN."""
    batch, (nheads, nheads_k) = len(FIRST), heads
    angle = np.arange(CAPACITY)[:, None] / 10000 ** np.linspace(0, 1, dim // 4, endpoint=False)
    lead = (batch, CAPACITY) if page_size is None else (batch * CAPACITY // page_size + 3, page_size)
    arguments: dict[str, Any] = {
        name: poisoned((*lead, nheads_k, dim), "bfloat16") for name in ("k_cache", "v_cache")
    } | {name: normal((batch, 1, nheads_k, dim), "bfloat16", 0) for name in ("k", "v")}
    if page_size is not None:
        table = np.random.default_rng(page_size).permutation(batch * CAPACITY // page_size)
        arguments["page_table"] = int32(table.reshape(batch, -1))
    for b, length in enumerate(FIRST.tolist()):
        for name in ("k_cache", "v_cache"):
            rows = normal((length, nheads_k, dim), "bfloat16", 7 + b)
            if page_size is None:
                arguments[name][b, :length] = rows
                continue
            for begin in range(0, length, page_size):
                page = int(arguments["page_table"][b, begin // page_size])
                arguments[name][page, : length - begin] = rows[begin : begin + page_size]
    for name, table in (("rotary_cos", np.cos(angle)), ("rotary_sin", np.sin(angle))):
        arguments[name] = put(table.astype(arguments["k"].dtype))
    return arguments | {
        "q": normal((batch, 1, nheads, dim), "bfloat16", 1), "cache_seqlens": int32(FIRST.tolist()), "causal": True,
        "window_size": (-1, -1), "rotary_interleaved": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("page_size", "dim", "heads", "num_splits"),
    [(None, 128, (8, 2), 0), (1, 64, (8, 8), 0), (16, 128, (8, 1), 3), (64, 128, (8, 2), 0), (256, 256, (4, 2), 1)],
)
def test_200_steps_through_one_graph(
    cuda: Any, page_size: int | None, dim: int, heads: tuple[int, int], num_splits: int
) -> None:
    """Append, rotary embedding, attention: each step has the bits of an eager call; some are held to the formula."""
    arguments = _decoder(page_size, dim, heads)
    eager = {name: x.copy() if hasattr(x, "copy") else x for name, x in arguments.items()}
    wait()
    stream = cuda.cuda.Stream(non_blocking=True)
    with stream:
        out = poisoned(arguments["q"].shape, "bfloat16")
        graph, (_, lse) = captured(
            cuda, stream,
            lambda: flash_attn_with_kvcache(**arguments, num_splits=num_splits, out=out, return_lse=True),
        )  # fmt: skip
        for step in range(STEPS):
            for seed, name in enumerate(("q", "k", "v")):
                fresh = normal(arguments[name].shape, "bfloat16", 100 + 3 * step + seed)
                arguments[name][...] = fresh
                eager[name][...] = fresh
            before = on_host(eager) if step % 40 == 0 or step == STEPS - 1 else None
            out.view(np.uint16)[...] = 0x7FFF
            graph.launch(stream)
            want_out, want_lse = flash_attn_with_kvcache(**eager, num_splits=num_splits, return_lse=True)
            wait(stream)
            assert same_bits(out, want_out), f"step {step}"
            assert same_bits(lse, want_lse), f"lse of step {step}"
            if before is not None:
                right = want(before)
                judge(right.problem, *packed(out, lse), right.result, lse_more=0.05)
            arguments["cache_seqlens"] += 1
            eager["cache_seqlens"] += 1
        wait(stream)
    for name in ("k_cache", "v_cache"):
        assert same_bits(arguments[name], eager[name]), name


@pytest.mark.parametrize("own_out", [False, True], ids=["new_out", "out="])
@pytest.mark.parametrize("page_size", [None, 4, 64])
def test_anything_may_change_between_replays(cuda: Any, page_size: int | None, own_out: bool) -> None:
    """Lengths, left padding, entries, pages and ragged new rows; memory that others use in between."""
    cases = [
        CacheCase(
            5, 700, page_size, "bfloat16", nheads=8, nheads_k=2, head_dim=128, new="ragged", leftpad=True,
            batch_idx=True, rotary_dim=64, rotary_seqlens=True, causal=True, seed=seed,
        )
        for seed in range(6)
    ]  # fmt: skip
    # Packed arrays of all cases have room for the most rows; what lies behind the last sequence is nobody's.
    every = [case.arguments() for case in cases]
    most = max(len(x["k"]) for x in every)
    for x in every:
        for name in ("k", "v"):
            x[name] = np.concatenate(
                [x[name], np.full((most - len(x[name]), *x[name].shape[1:]), np.nan, x[name].dtype)]
            )
    arguments = on_device(every[0])
    given = {"out": poisoned(arguments["q"].shape, "bfloat16")} if own_out else {}
    wait()
    stream = cuda.cuda.Stream(non_blocking=True)
    with stream:
        graph, (out, lse) = captured(
            cuda, stream,
            lambda: flash_attn_with_kvcache(**arguments, **given, num_splits=5, return_lse=True),
        )  # fmt: skip
        rubbish = [cuda.full(size * MIB // 2, 0xFF, np.uint8) for size in (1, 2, 4, 8, 16, 32) for _ in range(4)]
        for numbers in every[1:]:
            others = on_device(numbers)
            for name, x in others.items():
                if hasattr(x, "dtype"):
                    arguments[name][...] = x
            out.view(np.uint16)[...] = 0x7FFF
            want_out, want_lse = call(others, num_splits=5)
            graph.launch(stream)
            wait(stream)
            assert same_bits(out, want_out)
            assert same_bits(lse, want_lse)
            for name in ("k_cache", "v_cache"):
                assert same_bits(arguments[name], others[name])
        assert all(bool((x == 0xFF).all()) for x in rubbish), "the graph wrote into memory that is not its own"


def test_a_slow_producer_of_lengths_and_rows(cuda: Any) -> None:
    """All of a call, the append too, waits for the work in front of it on its stream, and for nothing else."""
    case = CacheCase(
        2, 900, 16, "bfloat16", nheads=8, nheads_k=2, head_dim=128, new="equal", causal=True, rotary_dim=64
    )
    arguments = case.arguments()
    right = on_device(arguments)
    want_out, want_lse = call(right, num_splits=4)
    device = on_device(arguments)
    late = {name: device[name].copy() for name in ("q", "k", "v", "cache_seqlens", "page_table")}
    for name in late:
        device[name][...] = 0
    wait()
    stream = cuda.cuda.Stream(non_blocking=True)
    with stream:
        spin(50)
        for name, x in late.items():
            device[name][...] = x
        out, lse = flash_attn_with_kvcache(**device, num_splits=4, return_lse=True)
        result, result_lse = out.copy(), lse.copy()
        out[...] = 0
        for name in late:
            device[name][...] = 0
        wait(stream)
    assert same_bits(result, want_out)
    assert same_bits(result_lse, want_lse)
    assert same_bits(device["k_cache"], right["k_cache"])


def test_calls_on_two_streams_at_once(cuda: Any) -> None:
    """Each has partial results of its own."""
    cases = [CacheCase(1, 3000, None, "bfloat16", nheads=32, nheads_k=8, head_dim=128, seed=seed) for seed in (1, 2)]
    arguments = [on_device(case.arguments()) for case in cases]
    right = [call(x, num_splits=16) for x in arguments]
    wait()
    streams = [cuda.cuda.Stream(non_blocking=True) for _ in cases]
    for _ in range(30):
        results = []
        for x, stream in zip(arguments, streams, strict=True):
            with stream:
                results.append(flash_attn_with_kvcache(**x, num_splits=16, return_lse=True))
        for (out, lse), (want_out, want_lse), stream in zip(results, right, streams, strict=True):
            wait(stream)
            assert same_bits(out, want_out)
            assert same_bits(lse, want_lse)


def test_a_torch_cache(cuda: Any) -> None:
    """Through DLPack the caches are written in place."""
    torch = pytest.importorskip("torch", reason="the test is about torch tensors")
    case = CacheCase(1, 300, 16, "bfloat16", new="equal", causal=True)
    device = on_device(case.arguments())
    tensors = {name: torch.from_dlpack(x).clone() if hasattr(x, "dtype") else x for name, x in device.items()}
    torch.cuda.synchronize()
    want_out, _ = call(device)
    out = pyflash3.flash_attn_with_kvcache(**tensors)
    wait()
    assert same_bits(cuda.ascontiguousarray(out), want_out)
    assert same_bits(cuda.from_dlpack(tensors["k_cache"]), device["k_cache"])
