"""NaN and Inf stay in the rows that see them: nothing else of a result changes, where it matters not by a bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.gpu.formula import Result
from tests.gpu.machine import HOST, bits, fill, get, int32, normal, poisoned, put, same_bits, wait
from tests.gpu.problem import Inputs, Problem, check_inputs, expected, judge, make, starts

LENGTHS = ((100, 150), (130, 130), (1, 70), (64, 200), (0, 33), (200, 1), (77, 97))
DIMS = (40, 64, 96, 128, 192, 256)
MASKS: list[dict[str, Any]] = [
    {},
    {"causal": True},
    {"window": (17, 5)},
    {"causal": True, "softcap": 5.0, "alibi": True, "sinks": True},
]
DTYPES = ("float16", "bfloat16")
BAD = [float("nan"), float("inf"), float("-inf")]

every_dim = pytest.mark.parametrize("dim", DIMS)
every_mask = pytest.mark.parametrize("mask", MASKS, ids=lambda m: "-".join(m) or "plain")
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_bad = pytest.mark.parametrize("bad", BAD)


def _both(inputs: Inputs, changed: Inputs, **more: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """(out, lse) without and with the bad values."""
    results = inputs.call(**more), changed.call(**more)
    wait()
    return results


def _copy(inputs: Inputs) -> Inputs:
    return Inputs(
        inputs.problem, inputs.q.copy(), inputs.k.copy(), inputs.v.copy(), inputs.lengths, inputs.slopes, inputs.sinks
    )


@every_bad
@every_dtype
@every_mask
@every_dim
def test_neighbours_in_a_varlen_batch(dim: int, mask: dict[str, Any], dtype: str, bad: float) -> None:
    problem = Problem(dtype, LENGTHS, nheads_k=2, head_dim=dim, packed=True, **mask)
    inputs = make(problem)
    begin_q, begin_k = starts(LENGTHS, 0), starts(LENGTHS, 1)
    for parity in (0, 1):
        changed = _copy(inputs)
        for b in range(parity, len(LENGTHS), 2):
            fill(changed.q[begin_q[b] : begin_q[b + 1]], bad)
            fill(changed.k[begin_k[b] : begin_k[b + 1]], bad)
            fill(changed.v[begin_k[b] : begin_k[b + 1]], bad)
        (out, lse), (new_out, new_lse) = _both(inputs, changed)
        for b in range(1 - parity, len(LENGTHS), 2):
            rows = slice(int(begin_q[b]), int(begin_q[b + 1]))
            assert same_bits(out[rows], new_out[rows]), f"sequence {b} of {problem}"
            assert same_bits(lse[:, rows], new_lse[:, rows]), f"lse of sequence {b} of {problem}"


@every_dtype
@every_mask
@every_dim
def test_neighbours_in_a_dense_batch(dim: int, mask: dict[str, Any], dtype: str) -> None:
    inputs = make(Problem(dtype, ((130, 150),) * 3, nheads_k=2, head_dim=dim, **mask))
    changed = _copy(inputs)
    for x in (changed.q, changed.k, changed.v):
        fill(x[1], np.nan)
    (out, lse), (new_out, new_lse) = _both(inputs, changed)
    for b in (0, 2):
        assert same_bits(out[b], new_out[b])
        assert same_bits(lse[b], new_lse[b])
    assert np.isnan(get(new_out[1]).astype(np.float32)).any(), "NaN of the visible inputs must show"


@every_dtype
@every_mask
@every_dim
def test_unused_tails(dim: int, mask: dict[str, Any], dtype: str) -> None:
    used = ((70, 149), (130, 65), (1, 0), (0, 200), (0, 1), (129, 1), (64, 96))
    inputs = make(Problem(dtype, LENGTHS, nheads_k=2, head_dim=dim, packed=True, used=used, **mask))
    changed = _copy(inputs)
    for b, (used_q, used_k) in enumerate(used):
        fill(changed.q[starts(LENGTHS, 0)[b] + used_q : starts(LENGTHS, 0)[b + 1]], np.nan)
        for x in (changed.k, changed.v):
            fill(x[starts(LENGTHS, 1)[b] + used_k : starts(LENGTHS, 1)[b + 1]], np.nan)
    (out, lse), (new_out, new_lse) = _both(inputs, changed)
    assert same_bits(out, new_out)  # rows behind seqused_q hold the poison of both
    for b, (used_q, _) in enumerate(used):
        rows = slice(int(starts(LENGTHS, 0)[b]), int(starts(LENGTHS, 0)[b]) + used_q)
        assert same_bits(lse[:, rows], new_lse[:, rows])


@every_mask
@every_dim
def test_rows_outside_every_sequence(dim: int, mask: dict[str, Any]) -> None:
    before, behind = 5, 9
    inputs = make(Problem("bfloat16", LENGTHS, nheads_k=2, head_dim=dim, packed=True, **mask))
    want, want_lse = inputs.call()
    wider = _copy(inputs)
    for name in ("q", "k", "v"):
        x = getattr(inputs, name)
        wide = poisoned((before + x.shape[0] + behind, *x.shape[1:]), "bfloat16")
        wide[before:-behind] = x
        setattr(wider, name, wide)
    wider.lengths = {name: x + np.int32(before) for name, x in inputs.lengths.items()}
    out, lse = wider.call()
    wait()
    assert same_bits(out[before:-behind], want)
    assert same_bits(lse[:, before:-behind], want_lse)
    untouched = poisoned((1,), "bfloat16")
    assert bool((bits(out[:before]) == bits(untouched)).all())
    assert bool((bits(out[-behind:]) == bits(untouched)).all())


@every_dtype
@pytest.mark.parametrize("dim", [8, 40, 72, 104, 136, 200, 248])
def test_columns_beside_a_head(dim: int, dtype: str) -> None:
    # The tile is wider than the head, and the memory behind each head's columns holds NaN.
    inputs = make(Problem(dtype, ((70, 200),) * 2, nheads_k=2, head_dim=dim, causal=True))
    changed = _copy(inputs)
    for name in ("q", "k", "v"):
        x = getattr(inputs, name)
        wide = poisoned((*x.shape[:-1], 256 + 8), dtype)
        wide[..., :dim] = x
        setattr(changed, name, wide[..., :dim])
    (out, lse), (new_out, new_lse) = _both(inputs, changed)
    assert same_bits(out, new_out)
    assert same_bits(lse, new_lse)


@every_dtype
@every_dim
def test_other_heads(dim: int, dtype: str) -> None:
    inputs = make(Problem(dtype, ((130, 150),) * 2, nheads_k=2, head_dim=dim, causal=True))
    changed = _copy(inputs)
    fill(changed.k[:, :, 0], np.nan)
    fill(changed.v[:, :, 0], np.nan)
    (out, lse), (new_out, new_lse) = _both(inputs, changed)
    assert same_bits(out[:, :, 3:], new_out[:, :, 3:])
    assert same_bits(lse[:, 3:], new_lse[:, 3:])
    assert np.isnan(get(new_out[:, :, :3]).astype(np.float32)).all()


@every_bad
@every_dim
def test_other_rows_of_q(dim: int, bad: float) -> None:
    inputs = make(Problem("bfloat16", ((230, 150),), nheads_k=2, head_dim=dim, window=(60, 40)))
    changed = _copy(inputs)
    rows = [0, 7, 63, 64, 129, 229]
    for row in rows:
        fill(changed.q[0, row], bad)
    (out, lse), (new_out, new_lse) = _both(inputs, changed)
    for begin, end in zip([-1, *rows], [*rows, 230], strict=True):
        others = slice(begin + 1, end)
        assert same_bits(out[0, others], new_out[0, others])
        assert same_bits(lse[0, :, others], new_lse[0, :, others])


INSIDE = [{"causal": True}, {"window": (40, 25)}, {"causal": True, "window": (50, -1), "sinks": True}]
KEYS = (0, 1, 62, 63, 64, 79, 80, 95, 96, 127, 128, 160, 198, 199)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "varlen"])
@pytest.mark.parametrize(("dtype", "bad"), [("float16", BAD[0]), *(("bfloat16", bad) for bad in BAD)])
@pytest.mark.parametrize("mask", INSIDE, ids=str)
@every_dim
def test_invisible_keys_of_the_same_sequence(
    dim: int, mask: dict[str, Any], dtype: str, bad: float, packed: bool
) -> None:
    problem = Problem(dtype, ((210, 200),), nheads_k=2, head_dim=dim, packed=packed, **mask)
    inputs = make(problem)
    want = expected(inputs)
    for names in ("k", "v", "kv"):
        # Alone, and together with the keys at the far end, so that a block has good, bad and invisible keys.
        for keys in [[key] for key in (KEYS[::4] if HOST else KEYS)] + [list(range(150, 200))]:
            _check_hidden_keys(inputs, want, names, keys, bad)


def _check_hidden_keys(inputs: Inputs, want: Result, names: str, keys: list[int], bad: float) -> None:
    p = inputs.problem
    changed = _copy(inputs)
    for name in names:
        rows = getattr(changed, name) if p.packed else getattr(changed, name)[0]
        for key in keys:
            fill(rows[key], bad)
    out, lse = changed.call()
    wait()
    if p.packed:
        out, lse = out[None], lse[None]
    seeing = _rows_that_see(p, keys)
    blind, seen = put(np.flatnonzero(~seeing)), put(np.flatnonzero(seeing))
    out = out.astype(np.float64)
    dense = p.with_options({"packed": False, "lengths": ((len(blind), 200),)})
    try:
        judge(dense, out[:, blind], lse[:, :, blind], _at(want, blind))
    except AssertionError as wrong:
        raise AssertionError(f"{bad} in keys {keys} of {names} shows in rows that cannot see them") from wrong
    if np.isinf(bad) and "k" in names:
        return  # a score of -inf is an ordinary way to hide a key
    assert not bool(np.isfinite(get(out[:, seen])).any()), f"{bad} in keys {keys} of {names} must show where it is seen"


@every_dtype
@pytest.mark.parametrize("dim", [64, 96, 128, 192, 256])
def test_what_is_repaired_leaves_the_next_tile_alone(dim: int, dtype: str) -> None:
    """More tiles than multiprocessors: the scores of the next one are computed while rows are repaired."""
    rows, batch, heads = (90, 1, 2) if HOST else (512, 24, 16)
    key = rows * 3 // 5
    inputs = make(Problem(dtype, ((rows, rows),) * batch, nheads=heads, nheads_k=heads, head_dim=dim, causal=True))
    changed = _copy(inputs)
    fill(changed.v[:, key], np.nan)
    (out, lse), (new_out, new_lse) = _both(inputs, changed)
    assert same_bits(lse, new_lse)
    blind, seeing = (get(x[:, rows_of]) for x, rows_of in ((new_out, slice(key)), (new_out, slice(key, None))))
    assert np.abs(blind.astype(np.float32) - get(out[:, :key]).astype(np.float32)).max() < 0.03
    assert np.isnan(seeing.astype(np.float32)).all()


def _at(want: Result, rows: Any) -> Result:
    return Result(want.out[:, rows], want.lse[:, :, rows], want.lowp[:, rows])


def _rows_that_see(p: Problem, keys: list[int]) -> Any:
    seqlen_q, seqlen_k = p.lengths[0]
    diagonal = np.arange(seqlen_q)[:, None] + seqlen_k - seqlen_q
    left, right = (p.window[0], 0) if p.causal else p.window
    visible = np.ones((seqlen_q, len(keys)), bool)
    if left >= 0:
        visible &= np.array(keys) >= diagonal - left
    if right >= 0:
        visible &= np.array(keys) <= diagonal + right
    return visible.any(axis=1)


def test_the_tail_of_the_tensors() -> None:
    # The last sequence ends where the tensor does; what lies behind belongs to nobody and may be NaN.
    dim, rows = 128, 100
    store = {name: poisoned((300, 6, dim), "bfloat16") for name in "qkv"}
    for i, name in enumerate("qkv"):
        store[name][:rows] = normal((rows, 6, dim), "bfloat16", i)
    problem = Problem(lengths=((rows, rows),), packed=True, head_dim=dim, causal=True)
    cu_seqlens = {"cu_seqlens_q": int32([0, rows]), "cu_seqlens_k": int32([0, rows])}
    q, k, v = (store[name][:rows] for name in "qkv")
    check_inputs(Inputs(problem, q, k, v, cu_seqlens))
