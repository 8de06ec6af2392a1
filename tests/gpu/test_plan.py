"""Plans on the GPU: the bits of the functions, streams, captured graphs, and what a call costs the host."""

from __future__ import annotations

import gc
import statistics
import time
from typing import Any

import numpy as np
import pytest

import pyflash3
from tests.gpu.machine import fill, int32, normal, poisoned, same_bits, spin, wait
from tests.gpu.problem import Inputs, Lengths, Problem, expected, judge, make, starts

SMALL = Problem(lengths=((300, 300),), nheads=4, nheads_k=2, head_dim=128, causal=True)
RAGGED: Lengths = ((200, 300), (50, 20), (129, 128), (1, 500))
OPTIONS: list[dict[str, Any]] = [
    {},
    {"causal": True, "head_dim": 128},
    {"window": (60, 10), "softcap": 5.0},
    {"causal": True, "alibi": True, "sinks": True, "head_dim": 192, "head_dim_v": 128},
]


def planned(inputs: Inputs, **more: Any) -> pyflash3.Plan:
    """The plan of inputs.call()."""
    arguments = {**inputs.lengths, **inputs.options(), "return_lse": True, **more}
    return pyflash3.plan(inputs.q, inputs.k, inputs.v, **arguments)


def spoil(*arrays: Any) -> None:
    """NaN in all of them, so that what a call does not write shows."""
    for x in arrays:
        fill(x, np.nan)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("lengths", [((300, 300),) * 2, RAGGED], ids=["dense", "varlen"])
def test_same_bits_as_the_function(lengths: Lengths, options: dict[str, Any]) -> None:
    inputs = make(Problem(lengths=lengths, packed=lengths is RAGGED, nheads_k=2, **options))
    want, want_lse = inputs.call()
    step = planned(inputs)
    for _ in range(3):
        spoil(step.out, step.lse)
        out, lse = step()
        assert out is step.out
        assert lse is step.lse
        assert same_bits(out, want)
        assert same_bits(lse, want_lse)


def test_lengths_change_between_calls() -> None:
    first = Problem(lengths=RAGGED, packed=True, nheads_k=2, head_dim=128, causal=True)
    inputs = make(first)
    step = planned(inputs)
    others: list[Lengths] = [((1, 948), (0, 0), (378, 0), (1, 0)), ((95, 237),) * 4, RAGGED]
    for lengths in others:
        for i, side in enumerate("qk"):
            inputs.lengths[f"cu_seqlens_{side}"][...] = int32(starts(lengths, i))
        spoil(step.out, step.lse)
        step()
        wait()
        problem = first.with_options({"lengths": lengths})
        judge(problem, step.out, step.lse, expected(Inputs(problem, inputs.q, inputs.k, inputs.v)))


def test_replacements_hold_for_one_call() -> None:
    inputs, other = make(SMALL), make(SMALL.with_options({"seed": 3}))
    want, other_want = inputs.call(), other.call()
    step = planned(inputs)
    out, lse = poisoned(inputs.out_shape(), "bfloat16"), step.lse.copy()
    result = step(q=other.q, k=other.k, v=other.v, out=out, lse=lse)
    assert result[0] is out
    assert result[1] is lse
    assert all(same_bits(a, b) for a, b in zip(result, other_want, strict=True))
    assert all(same_bits(a, b) for a, b in zip(step(), want, strict=True))
    with pytest.raises(ValueError, match=r"q has shape \(1, 299, 4, 128\); this plan was made for \(1, 300, 4, 128\)"):
        step(q=inputs.q[:, 1:])


def test_a_slow_producer_on_each_of_two_streams(cuda: Any) -> None:
    inputs = make(SMALL)
    want, _ = inputs.call()
    true_q = inputs.q.copy()
    step = planned(inputs)
    wait()
    for _ in range(3):
        for stream in [cuda.cuda.Stream(non_blocking=True) for _ in range(2)]:
            inputs.q[...] = 0
            spoil(step.out, step.lse)
            wait()
            with stream:
                spin(20)
                inputs.q[...] = true_q
                step()
                result = step.out.copy()
                wait(stream)
            assert same_bits(result, want)


def test_calls_on_two_streams_at_once_with_outputs_of_their_own(cuda: Any) -> None:
    # Enough tiles for the calls to overlap: a shared tile counter would leave tiles out.
    problem = Problem(lengths=((2048, 2048),) * 4, nheads=16, nheads_k=16, head_dim=128, causal=True)
    inputs = make(problem)
    want, _ = inputs.call()
    step = planned(inputs)
    outs = [poisoned(inputs.out_shape(), "bfloat16") for _ in range(2)]
    lses = [step.lse.copy() for _ in range(2)]
    wait()
    streams = [cuda.cuda.Stream(non_blocking=True) for _ in range(2)]
    for _ in range(20):
        for out, lse, stream in zip(outs, lses, streams, strict=True):
            with stream:
                step(out=out, lse=lse)
    for out, stream in zip(outs, streams, strict=True):
        wait(stream)
        assert same_bits(out, want)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "varlen"])
def test_captured_and_replayed_after_the_plan_has_gone(cuda: Any, packed: bool) -> None:
    problem = SMALL.with_options({"packed": packed})
    inputs = make(problem)
    inputs.call()  # kernels get loaded
    wait()
    stream = cuda.cuda.Stream(non_blocking=True)
    with stream:
        step = planned(inputs)
        stream.synchronize()
        stream.begin_capture(mode=cuda.cuda.runtime.streamCaptureModeThreadLocal)
        try:
            out, lse = step()  # the first call of all: it must not allocate
            step()
        finally:
            graph = stream.end_capture()
        del step
        gc.collect()
        # Whatever the pool hands out next, were the workspace free, is spoilt.
        rubbish = [cuda.full(size, 0xFF, np.uint8) for size in (512, 1024, 4096, 16384) for _ in range(50)]
        for seed in range(5, 8):
            inputs.q[...] = normal(inputs.q.shape, "bfloat16", seed)
            spoil(out, lse)
            for _ in range(3):
                graph.launch(stream)
            wait(stream)
            judge(problem, out, lse, expected(inputs))
        assert all(bool((x == 0xFF).all()) for x in rubbish)


def test_eager_calls_between_replays(cuda: Any) -> None:
    inputs = make(SMALL)
    want, _ = inputs.call()
    step = planned(inputs)
    wait()
    stream = cuda.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture(mode=cuda.cuda.runtime.streamCaptureModeThreadLocal)
        try:
            step()
        finally:
            graph = stream.end_capture()
        for _ in range(5):
            for replay in (False, True):
                spoil(step.out)
                if replay:
                    graph.launch(stream)
                else:
                    step()
                wait(stream)
                assert same_bits(step.out, want)


def test_host_cost(cuda: Any, record_property: Any) -> None:
    q = normal((1, 64, 4, 64), "bfloat16", 0)
    step = pyflash3.plan(q, q, q, causal=True)
    times = []
    for i in range(2200):
        begin = time.perf_counter_ns()
        step()
        times.append(1e-3 * (time.perf_counter_ns() - begin))
        if i % 200 == 199:
            cuda.cuda.get_current_stream().synchronize()
    median = statistics.median(times[200:])
    record_property("host_us", round(median, 2))
    assert median < 30.0, "far above what scripts/bench.py --host-cost measures: something is done anew at each call"
