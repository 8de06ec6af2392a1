"""Order of work: the caller's stream and no other, several streams and threads at once, captured graphs."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from tests.gpu.machine import int32, normal, poisoned, same_bits, spin, wait
from tests.gpu.problem import Inputs, Lengths, Problem, expected, judge, make, starts

SMALL = Problem(lengths=((300, 300),), nheads=4, nheads_k=2, head_dim=128, causal=True)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "varlen"])
def test_r05_a_slow_producer_on_a_non_blocking_stream(cuda: Any, packed: bool) -> None:
    problem = SMALL.with_options({"packed": packed})
    inputs = make(problem)
    want, _ = inputs.call()
    true_q = inputs.q.copy()
    inputs.q[...] = 0
    wait()
    stream = cuda.cuda.Stream(non_blocking=True)
    with stream:
        spin(50)
        inputs.q[...] = true_q  # the work of the producer
        out, lse = inputs.call()
        result = out.copy()
        inputs.q[...] = 0  # the next work on the stream may reuse the inputs at once
        out[...] = 0
        wait(stream)
    assert same_bits(result, want)
    judge(problem, result, lse, expected(make(problem)))


def test_r05_the_default_stream_is_neither_used_nor_waited_for(cuda: Any) -> None:
    inputs = make(SMALL)
    inputs.call()
    wait()
    stream = cuda.cuda.Stream(non_blocking=True)
    with stream:
        want, _ = inputs.call()  # warms up the memory pool of this stream
        wait(stream)
    null = cuda.cuda.Stream.null
    with null:
        spin(300)
        busy = null.record()
    with stream:
        out, _ = inputs.call()
        wait(stream)
        still_busy = not busy.done
    wait(null)
    assert still_busy, "the call waited for the default stream"
    assert same_bits(out, want)


def test_two_threads_with_streams_of_their_own(cuda: Any) -> None:
    problems = [
        Problem(lengths=((257, 300),) * 2, nheads_k=2, head_dim=64, causal=True),
        Problem(
            "float16", ((100, 90), (1, 700), (333, 333)), packed=True, nheads_k=1, head_dim=128, causal=True, seed=1
        ),
    ]
    inputs = [make(p) for p in problems]
    wants = [x.call() for x in inputs]
    wait()
    wrong = [-1, -1]
    together = threading.Barrier(2)

    def work(i: int) -> None:
        stream = cuda.cuda.Stream(non_blocking=True)
        with stream:
            differing = cuda.zeros((), np.int64)
            together.wait()
            for _ in range(200):
                out, lse = inputs[i].call()
                differing += (out.view(np.uint16) != wants[i][0].view(np.uint16)).sum()
                differing += (lse != wants[i][1]).sum()
            stream.synchronize()
            wrong[i] = int(differing)

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [0, 0]


def _capture(cuda: Any, stream: Any, call: Any) -> tuple[Any, Any]:
    """(graph, result) of a call. Any work of this thread on the default stream would break the capture."""
    call()  # kernels get loaded, and the memory pool filled
    stream.synchronize()
    stream.begin_capture(mode=cuda.cuda.runtime.streamCaptureModeThreadLocal)
    try:
        result = call()
    finally:
        graph = stream.end_capture()
    return graph, result


GRAPH_LENGTHS: list[Lengths] = [
    ((200, 300), (50, 20), (129, 128), (1, 500)),
    ((1, 948), (0, 0), (378, 0), (1, 0)),
    ((95, 237), (95, 237), (95, 237), (95, 237)),
    ((380, 948), (0, 0), (0, 0), (0, 0)),
]
MASKS: list[dict[str, Any]] = [
    {},
    {"causal": True},
    {"window": (60, 10)},
    {"causal": True, "alibi": True, "sinks": True},
]


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_a_graph_is_right_after_cu_seqlens_have_changed(cuda: Any, dim: int, mask: dict[str, Any]) -> None:
    first = Problem(lengths=GRAPH_LENGTHS[0], packed=True, nheads_k=2, head_dim=dim, **mask)
    inputs = make(first)
    out = poisoned(inputs.out_shape(), "bfloat16")
    options = inputs.options()
    wait()  # another stream takes over
    stream = cuda.cuda.Stream(non_blocking=True)
    with stream:

        def call() -> Any:
            return inputs.function()(
                inputs.q, inputs.k, inputs.v, **inputs.lengths, **options, out=out, return_lse=True
            )

        graph, (_, lse) = _capture(cuda, stream, call)
        for lengths in [*GRAPH_LENGTHS[1:], GRAPH_LENGTHS[0]]:
            problem = first.with_options({"lengths": lengths})
            for i, side in enumerate("qk"):
                inputs.lengths[f"cu_seqlens_{side}"][...] = int32(starts(lengths, i))
            out.view(np.uint16)[...] = 0x7FFF
            lse[...] = np.nan
            graph.launch(stream)
            wait(stream)
            judge(
                problem,
                out,
                lse,
                expected(Inputs(problem, inputs.q, inputs.k, inputs.v, {}, inputs.slopes, inputs.sinks)),
            )


def test_a_graph_is_right_after_seqused_has_changed(cuda: Any) -> None:
    lengths = GRAPH_LENGTHS[0]
    first = Problem(lengths=lengths, packed=True, nheads_k=1, head_dim=128, causal=True, used=lengths)
    inputs = make(first)
    out = poisoned(inputs.out_shape(), "bfloat16")
    wait()
    stream = cuda.cuda.Stream(non_blocking=True)
    with stream:

        def call() -> Any:
            return inputs.function()(
                inputs.q, inputs.k, inputs.v, **inputs.lengths, causal=True, out=out, return_lse=True
            )

        graph, (_, lse) = _capture(cuda, stream, call)
        for used in [((20, 300), (50, 1), (0, 128), (1, 400)), ((200, 0), (1, 20), (128, 64), (0, 0)), lengths]:
            problem = first.with_options({"used": used})
            for i, side in enumerate("qk"):
                inputs.lengths[f"seqused_{side}"][...] = int32([pair[i] for pair in used])
            graph.launch(stream)
            wait(stream)
            judge(problem, out, lse, expected(Inputs(problem, inputs.q, inputs.k, inputs.v)))


@pytest.mark.parametrize("own_out", [False, True], ids=["new_out", "out="])
def test_a_dense_graph_replayed_with_other_inputs(cuda: Any, own_out: bool) -> None:
    inputs = make(SMALL)
    given = poisoned(inputs.out_shape(), "bfloat16") if own_out else None
    wait()
    stream = cuda.cuda.Stream(non_blocking=True)
    with stream:

        def call() -> Any:
            return inputs.function()(inputs.q, inputs.k, inputs.v, causal=True, out=given, return_lse=True)

        graph, (out, lse) = _capture(cuda, stream, call)
        for seed in range(5, 9):
            inputs.q[...] = normal(inputs.q.shape, "bfloat16", seed)
            others = [call() for _ in range(3)]  # eager calls in between must not disturb the graph's memory
            out.view(np.uint16)[...] = 0x7FFF
            for _ in range(3):
                graph.launch(stream)
            wait(stream)
            judge(SMALL, out, lse, expected(inputs))
            assert own_out or same_bits(others[0][0], out)


def test_lengths_cannot_be_checked_in_a_capture(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make(SMALL.with_options({"packed": True}))
    wait()
    stream = cuda.cuda.Stream(non_blocking=True)
    monkeypatch.setenv("PYFLASH3_CHECK", "1")
    with stream, pytest.raises(RuntimeError, match="lengths cannot be read while a graph is captured"):
        _capture(cuda, stream, inputs.call)
    inputs.call()  # the stream's owner goes on as before
    wait()
