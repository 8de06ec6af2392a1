"""Wrong contents of cu_seqlens and seqused: no hang, nothing outside the arrays, and right sequences stay right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.gpu.machine import bits, int32, poisoned, same_bits, wait, xp
from tests.gpu.problem import Inputs, Problem, make, starts

LENGTHS = ((100, 150), (130, 130), (64, 200), (1, 33), (200, 90), (77, 97))
GUARD = 300  # rows before and behind every tensor
WRONG: dict[str, Callable[[int], int]] = {
    "falls": lambda right: right - 90,
    "negative": lambda _: -5,
    "most_negative": lambda _: -(2**31),
    "beyond_the_total": lambda _: 100_000,
    "largest": lambda _: 2**31 - 1,
}
MASKS: list[dict[str, Any]] = [{}, {"causal": True}, {"window": (40, 10)}]


def _guarded(x: Any) -> tuple[Any, Any]:
    """(the whole, the middle): x with rows of NaN around it."""
    whole = poisoned((x.shape[0] + 2 * GUARD, *x.shape[1:]), "bfloat16")
    middle = whole[GUARD:-GUARD]
    middle[...] = x
    return whole, middle


def _guarded_inputs(dim: int, mask: dict[str, Any]) -> Inputs:
    inputs = make(Problem(lengths=LENGTHS, packed=True, nheads_k=2, head_dim=dim, **mask))
    inputs.q, inputs.k, inputs.v = (_guarded(x)[1] for x in (inputs.q, inputs.k, inputs.v))
    return inputs


def _call_into_guarded(inputs: Inputs, **options: Any) -> tuple[Any, Any]:
    """out and lse of a call; fails when it wrote around out."""
    whole = poisoned((inputs.q.shape[0] + 2 * GUARD, *inputs.out_shape()[1:]), "bfloat16")
    before = whole.copy()
    out, lse = inputs.call(out=whole[GUARD:-GUARD], **options)
    wait()
    assert same_bits(whole[:GUARD], before[:GUARD]), "rows before out are written"
    assert same_bits(whole[-GUARD:], before[-GUARD:]), "rows behind out are written"
    return out, lse


every_wrong = pytest.mark.parametrize("wrong", WRONG)
every_mask = pytest.mark.parametrize("mask", MASKS, ids=str)
every_dim = pytest.mark.parametrize("dim", [64, 128, 256])


def _assert_right_sequences(changed: Inputs, want: tuple[Any, Any], sequences: list[int], **options: Any) -> None:
    out, lse = _call_into_guarded(changed, **options)
    begin = starts(LENGTHS, 0)
    for b in sequences:
        rows = slice(int(begin[b]), int(begin[b + 1]))
        assert same_bits(out[rows], want[0][rows]), f"sequence {b} has changed"
        assert same_bits(lse[:, rows], want[1][:, rows]), f"lse of sequence {b} has changed"


@every_wrong
@every_mask
@every_dim
@pytest.mark.parametrize("at", [0, 3, 6], ids=["first", "middle", "last"])
def test_wrong_cu_seqlens_k(at: int, dim: int, mask: dict[str, Any], wrong: str) -> None:
    inputs = _guarded_inputs(dim, mask)
    want = _call_into_guarded(inputs)
    cu_seqlens = starts(LENGTHS, 1)
    cu_seqlens[at] = WRONG[wrong](int(cu_seqlens[at]))
    inputs.lengths["cu_seqlens_k"] = int32(cu_seqlens)
    # An entry is the end of one sequence and the start of the next.
    _assert_right_sequences(inputs, want, [b for b in range(len(LENGTHS)) if b not in (at - 1, at)])


@every_wrong
@every_mask
@every_dim
@pytest.mark.parametrize("at", [0, 3, 6], ids=["first", "middle", "last"])
def test_wrong_cu_seqlens_q(at: int, dim: int, mask: dict[str, Any], wrong: str) -> None:
    _wrong_cu_seqlens_q(at, dim, mask, wrong)


def _wrong_cu_seqlens_q(at: int, dim: int, mask: dict[str, Any], wrong: str, **options: Any) -> None:
    inputs = _guarded_inputs(dim, mask)
    want = _call_into_guarded(inputs, **options)
    cu_seqlens, unclaimed = wrong_entry(starts(LENGTHS, 0), at, wrong)
    inputs.lengths["cu_seqlens_q"] = int32(cu_seqlens)
    _assert_right_sequences(inputs, want, unclaimed, **options)


def wrong_entry(right: Any, at: int, wrong: str) -> tuple[Any, list[int]]:
    """cu_seqlens_q with a wrong entry `at`, and the sequences that must stay what they are.

    A wrong sequence may write the rows that it claims, so those of others that it covers are lost.
    """
    cu_seqlens = right.copy()
    cu_seqlens[at] = WRONG[wrong](int(right[at]))
    total, batch = int(right[-1]), len(right) - 1
    claimed = np.zeros(total, bool)
    for b in (at - 1, at):
        if 0 <= b < batch:
            begin = min(max(int(cu_seqlens[b]), 0), total)
            claimed[begin : max(begin, min(int(cu_seqlens[b + 1]), total))] = True
    others = [b for b in range(batch) if b not in (at - 1, at)]
    return cu_seqlens, [b for b in others if not claimed[right[b] : right[b + 1]].any()]


@pytest.mark.parametrize("side", ["q", "k"])
@pytest.mark.parametrize("value", [-1, -(2**31), 1000, 2**31 - 1])
@every_mask
@every_dim
def test_wrong_seqused(dim: int, mask: dict[str, Any], value: int, side: str) -> None:
    inputs = _guarded_inputs(dim, mask)
    want = _call_into_guarded(inputs)
    used = [pair["qk".index(side)] for pair in LENGTHS]
    used[2] = value
    inputs.lengths[f"seqused_{side}"] = int32(used)
    _assert_right_sequences(inputs, want, [0, 1, 3, 4, 5])


@pytest.mark.parametrize("seed", range(40))
def test_noise_in_both_cu_seqlens(seed: int) -> None:
    rng = np.random.default_rng(seed)
    inputs = _guarded_inputs(int(rng.choice([64, 128, 256])), MASKS[seed % 3])
    for side in "qk":
        inputs.lengths[f"cu_seqlens_{side}"] = int32(rng.integers(-1000, 2000, len(LENGTHS) + 1))
    _call_into_guarded(inputs)  # ends, and stays inside


class _Guarded:
    """CuPy's allocator with bytes behind every allocation that nobody may write."""

    def __init__(self) -> None:
        self.guards: list[Any] = []
        self._pool = xp.cuda.MemoryPool()

    def __call__(self, size: int) -> Any:
        pointer = self._pool.malloc(size + _GUARD_BYTES)
        guard = xp.ndarray(_GUARD_BYTES, xp.uint8, pointer + size)
        guard[...] = 0xA5
        self.guards.append(guard)
        return pointer


_GUARD_BYTES = 1 << 20


@pytest.mark.parametrize(
    "starts_q", [[0, 500, 0, 500, 0, 500], [500, 0, 500, 3, 400, 500], [0, 100, 50, 450, 440, 500]]
)
@pytest.mark.parametrize("num_splits", [0, 2, 3, 37, 256])
def test_overlapping_sequences_with_splits(cuda: Any, num_splits: int, starts_q: list[int]) -> None:
    """More tiles than rows of q have: nothing is written behind what a call has allocated, its workspace included."""
    inputs = make(Problem(lengths=((100, 300),) * 5, nheads_k=2, head_dim=64, packed=True, causal=True))
    inputs.lengths["cu_seqlens_q"] = int32(starts_q)
    allocator = _Guarded()
    with cuda.cuda.using_allocator(allocator):
        result = inputs.function()(
            inputs.q, inputs.k, inputs.v, **inputs.lengths, causal=True, num_splits=num_splits, return_lse=True
        )
        wait()
    del result
    assert allocator.guards  # small results and the workspace behind them are one allocation
    for guard in allocator.guards:
        assert bool((guard == 0xA5).all()), "bytes behind an allocation are written"


@pytest.mark.parametrize("num_splits", [2, 37])
@every_wrong
@pytest.mark.parametrize("at", [0, 3, 6], ids=["first", "middle", "last"])
def test_wrong_cu_seqlens_q_with_splits(at: int, wrong: str, num_splits: int) -> None:
    _wrong_cu_seqlens_q(at, 128, {"causal": True}, wrong, num_splits=num_splits)


def test_the_library_does_not_write_its_inputs() -> None:
    inputs = _guarded_inputs(128, {"causal": True})
    copies = [x.copy() for x in (inputs.q, inputs.k, inputs.v, *inputs.lengths.values())]
    _call_into_guarded(inputs)
    for x, copy in zip((inputs.q, inputs.k, inputs.v, *inputs.lengths.values()), copies, strict=True):
        assert bool((bits(x) == bits(copy)).all())
