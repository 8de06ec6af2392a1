"""The rows R1 to R13 of the contract: known defects of this library's closest relative, each a named test.

R14 (the build) is not a matter of the GPU. R1, R5, R8 and R12 stand in test_memory.py, test_streams.py and
test_wide_heads.py, beside what else belongs to them.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from pyflash3 import _abi
from pyflash3._lib import library
from tests.gpu.machine import HOST, bits, get, same_bits, wait
from tests.gpu.problem import Lengths, Problem, check, expected, judge, make

DIMS = (64, 128, 256)
BAD_WORKSPACE = 4


@pytest.mark.parametrize(
    "options",
    [{"causal": True}, {"window": (100, 30)}, {"causal": True, "packed": True}, {"window": (77, 0), "packed": True}],
    ids=str,
)
def test_r02_more_tiles_than_multiprocessors(options: dict[str, Any]) -> None:
    # Every multiprocessor must take several tiles from the counter, also on the largest GPUs.
    size = (1, 4, 300) if HOST else (4, 16, 2500)
    check(Problem(lengths=((size[2], size[2]),) * size[0], nheads=size[1], nheads_k=2, **options))


def _parameters(q: Any, out: Any) -> _abi.Params:
    """A causal call of one batch entry, without a workspace."""
    _, rows, nheads, dim = q.shape
    params = _abi.Params(
        struct_size=ctypes.sizeof(_abi.Params),
        abi_version=_abi.ABI_VERSION,
        backend=_abi.BACKEND_CUDA,
        device=-1,
        dtype=_abi.BFLOAT16,
        nheads=nheads,
        nheads_k=nheads,
        head_dim=dim,
        head_dim_v=dim,
        batch=1,
        seqlen_q=rows,
        seqlen_k=rows,
        softmax_scale=dim**-0.5,
        window_left=-1,
        window_right=0,
    )
    for name, x in (("q", q), ("k", q), ("v", q), ("out", out)):
        setattr(params, name, x.data.ptr)
        setattr(params, f"{name}_batch_stride", rows * nheads * dim)
        setattr(params, f"{name}_row_stride", nheads * dim)
        setattr(params, f"{name}_head_stride", dim)
    return params


def test_r02_workspace_missing_or_too_small(cuda: Any) -> None:
    lib = library()
    inputs = make(Problem(lengths=((300, 300),), causal=True))
    q = inputs.q
    out = cuda.zeros(q.shape, q.dtype)
    params = _parameters(q, out)
    size = lib.workspace_size(params)
    assert size > 0
    workspace = cuda.full(size + 512, 0xFF, np.uint8)
    aligned = -(-workspace.data.ptr // 256) * 256
    stream = cuda.cuda.get_current_stream().ptr
    for address, given, word in (
        (None, size, "workspace is NULL"),
        (aligned, size - 1, "workspace_bytes is"),
        (aligned + 16, size, "workspace is"),
    ):
        params.workspace, params.workspace_bytes = address, given
        assert lib.cdll.run_mha_v3(params, stream) == BAD_WORKSPACE
        assert word in lib.cdll.flash3_last_error().decode()
    wait()
    assert not bits(out).any(), "a refused call wrote something"
    params.workspace, params.workspace_bytes = aligned, size
    lib.check(lib.cdll.run_mha_v3(params, stream))
    wait()
    inputs.k = inputs.v = q
    want, _ = inputs.call()
    assert same_bits(out, want)


VARLEN_MASKS = [{"causal": True}, {"window": (3, 1)}, {"window": (0, 0)}, {"causal": True, "window": (64, -1)}]


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("mask", VARLEN_MASKS, ids=str)
@pytest.mark.parametrize("lengths", [(2, 4, 9), (9,), (1743, 1559), (130, 1, 4097, 2)], ids=str)
def test_r03_varlen_masks(lengths: tuple[int, ...], mask: dict[str, Any], dim: int) -> None:
    if HOST:
        lengths = tuple(min(n, 300) for n in lengths)
    check(Problem(lengths=tuple((n, n) for n in lengths), packed=True, head_dim=dim, nheads_k=2, **mask))


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_r04_ragged_varlen_causal_ends(dtype: str, dim: int) -> None:
    # cu_seqlens [0, 1743, 3302], the very input that hung. test_repeats.py has the 1000 random ones.
    lengths: Lengths = ((1743, 1743), (1559, 1559)) if not HOST else ((174, 174), (155, 155))
    check(Problem(dtype, lengths, packed=True, causal=True, nheads=16, nheads_k=16, head_dim=dim))


@pytest.mark.parametrize("nheads_k", [3, 1])
@pytest.mark.parametrize("pack_gqa", [None, True, False])
@pytest.mark.parametrize("causal", [False, True])
def test_r06_gqa_in_varlen(causal: bool, pack_gqa: bool | None, nheads_k: int) -> None:
    lengths = ((1, 70), (33, 33), (200, 150), (5, 300), (129, 128))
    problem = Problem(lengths=lengths, packed=True, causal=causal, nheads=12, nheads_k=nheads_k, head_dim=128)
    check(problem, pack_gqa=pack_gqa)


RATIOS = [(64, 64 >> i) for i in range(7)] + [(12, 4), (12, 2), (10, 2), (14, 2), (9, 1), (48, 1)]


@pytest.mark.parametrize(("nheads", "nheads_k"), RATIOS)
def test_r07_ratios_of_heads(nheads: int, nheads_k: int) -> None:
    common: dict[str, Any] = {"nheads": nheads, "nheads_k": nheads_k, "causal": True, "head_dim": 64}
    check(Problem(lengths=((70, 140),) * 2, **common))
    check(Problem(lengths=((70, 140), (3, 200)), packed=True, **common))


LAYOUTS = [pytest.param(False, id="dense"), pytest.param(True, id="varlen")]
R9_WINDOWS = [(20, -1), (-1, 20), (20, 20), (0, 0), (0, -1), (-1, 0)]


@pytest.mark.parametrize("packed", LAYOUTS)
@pytest.mark.parametrize("window", R9_WINDOWS, ids=str)
def test_r09_windows_matter(window: tuple[int, int], packed: bool) -> None:
    lengths: Lengths = ((150, 203), (90, 80)) if packed else ((150, 203),) * 2
    _differs_and_is_right(Problem(lengths=lengths, packed=packed, nheads_k=2), {"window": window})


@pytest.mark.parametrize("packed", LAYOUTS)
@pytest.mark.parametrize("seed", [0, 1], ids=["per_sequence", "per_head"])
@pytest.mark.parametrize("causal", [False, True])
def test_r10_alibi_slopes_matter(causal: bool, seed: int, packed: bool) -> None:
    lengths: Lengths = ((150, 203), (90, 80)) if packed else ((150, 203),) * 2
    plain = Problem(lengths=lengths, packed=packed, nheads_k=2, causal=causal, seed=seed)
    _differs_and_is_right(plain, {"alibi": True})


def _differs_and_is_right(plain: Problem, options: dict[str, Any]) -> None:
    """With the options the result is the formula's, and every sequence's is another than without them."""
    changed = plain.with_options(options)
    inputs = make(changed)
    out, lse = inputs.call()
    wait()
    judge(changed, out, lse, expected(inputs))
    without, _ = make(plain).call()
    wait()
    begin = 0
    for rows, _ in plain.lengths if plain.packed else ((1, 1),) * len(plain.lengths):
        assert not same_bits(out[begin : begin + rows], without[begin : begin + rows])
        begin += rows


@pytest.mark.parametrize("packed", LAYOUTS)
@pytest.mark.parametrize("causal", [False, True])
def test_r11_lse_is_returned(causal: bool, packed: bool) -> None:
    problem = Problem(lengths=((150, 90),) * 2, packed=packed, causal=causal, nheads_k=2)
    inputs = make(problem)
    out, lse = inputs.call()  # checks shape and dtype of lse
    alone = inputs.function()(inputs.q, inputs.k, inputs.v, **inputs.lengths, **inputs.options())
    wait()
    assert same_bits(out, alone), "the result depends on return_lse"
    judge(problem, out, lse, expected(inputs))


EMPTY: list[Lengths] = [((0, 5),), ((5, 0),), ((0, 0),), ((0, 5), (5, 0), (7, 7), (0, 0)), ((1, 300), (300, 1), (0, 9))]
MASKS: list[dict[str, Any]] = [{}, {"causal": True}, {"window": (3, 0)}, {"softcap": 5.0}, {"alibi": True}]


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("lengths", EMPTY, ids=str)
def test_r13_zero_lengths(lengths: Lengths, mask: dict[str, Any], sinks: bool) -> None:
    common: dict[str, Any] = {"sinks": sinks, "nheads_k": 2, "head_dim": 128, **mask}
    check(Problem(lengths=lengths, packed=True, **common))
    for pair in lengths:
        check(Problem(lengths=(pair,) * 2, **common))


@pytest.mark.parametrize("packed", LAYOUTS)
def test_r13_empty_batch(packed: bool) -> None:
    inputs = make(Problem(lengths=((0, 0),), packed=packed))
    if packed:
        inputs.lengths = {name: x[:1] for name, x in inputs.lengths.items()}
    else:
        inputs.q, inputs.k, inputs.v = (x[:0] for x in (inputs.q, inputs.k, inputs.v))
    out, lse = inputs.call()
    wait()
    assert out.size == 0
    assert lse.size == 0


@pytest.mark.parametrize("sinks", [False, True])
def test_r13_rows_without_keys_follow_one_convention(sinks: bool) -> None:
    # More queries than keys under a causal mask: the first rows see nothing. Dense and varlen must agree in every bit.
    problem = Problem(lengths=((300, 40),), causal=True, sinks=sinks, head_dim=128)
    dense, packed = make(problem), make(problem.with_options({"packed": True}))
    out, lse = dense.call()
    packed_out, packed_lse = packed.call()
    wait()
    assert same_bits(out[0], packed_out)
    assert same_bits(lse[0], packed_lse)
    assert not out[0, :260].astype(np.float32).any()
    empty_row = dense.sinks[:, None] if sinks else np.full((6, 1), -np.inf, np.float32)
    np.testing.assert_allclose(get(lse[0, :, :260]), np.broadcast_to(empty_row, (6, 260)), rtol=1e-6, atol=1e-6)
