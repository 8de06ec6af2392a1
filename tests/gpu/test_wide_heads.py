"""Head dims above 256, and values that are wider or narrower than the keys. Regression row R8: head dim 512.

What the CUDA backend has no kernel for must be refused with a reason, before anything is written.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.gpu import test_isolation, test_streams
from tests.gpu.kvcache_problem import right_or_refused
from tests.gpu.machine import HOST, fill, get, poisoned, put, same_bits, wait
from tests.gpu.problem import Inputs, Lengths, Problem, check, expected, judge, make, starts
from tests.gpu.protocol_cases import OPTIONS, title
from tests.gpu.repeats import other_work, same_every_time
from tests.host.kvcache_cases import CacheCase

DTYPES = ("bfloat16", "float16")
ALL_OPTIONS: list[dict[str, Any]] = [{}, {"causal": True}, *OPTIONS]
# Every way that a pair can lie in the tiles: wider keys, wider values, and columns that are left over on either side.
PAIRS = [
    (192, 128),
    (64, 256),
    (512, 64),
    (64, 512),
    (128, 320),
    (320, 136),
    (264, 8),
    (8, 264),
    (384, 512),
    (512, 392),
]
LENGTHS: list[Lengths] = [
    ((113, 203),), ((256, 256),), ((1, 1), (64, 128)), ((239, 1),), ((300, 3), (3, 300)), ((128, 217),), ((640, 128),),
]  # fmt: skip
RAGGED: Lengths = ((130, 261), (0, 40), (2, 2), (70, 0), (1, 300), (129, 64))
USED: Lengths = ((129, 260), (0, 13), (1, 2), (70, 0), (1, 0), (64, 63))
if HOST:
    ALL_OPTIONS, PAIRS, LENGTHS = ALL_OPTIONS[::5], PAIRS[::3], [((30, 70),), ((70, 30),)]
    RAGGED = ((33, 70), (0, 40), (2, 2), (20, 0), (1, 90), (30, 64))
    USED = ((29, 60), (0, 13), (1, 2), (20, 0), (1, 0), (14, 63))
LAYOUTS = [pytest.param(False, id="dense"), pytest.param(True, id="varlen")]


def _name(options: dict[str, Any]) -> str:
    return "-".join(f"{name}{value}" for name, value in options.items()) or "plain"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("rows", [(2, 4, 9), (2,), (4,), (9,), (2, 4, 9, 90 if HOST else 700)], ids=str)
def test_r08_head_dim_512(rows: tuple[int, ...], causal: bool, dtype: str) -> None:
    common: dict[str, Any] = {"nheads": 8, "nheads_k": 4, "head_dim": 512, "causal": causal}
    check(Problem(dtype, tuple((n, n) for n in rows), packed=True, **common))
    check(Problem(dtype, ((rows[-1], rows[-1]),) * 2, **common))


def _every_option() -> Iterator[Problem]:
    """Both layouts of three pairs with every option; lengths, heads and dtypes take turns."""
    dims = ((512, 512), (192, 128), (320, 320))
    for (dim, dim_v), (index, options), packed in itertools.product(dims, enumerate(ALL_OPTIONS), (False, True)):
        lengths = LENGTHS[index % len(LENGTHS)]
        third = (lengths[0][1] // 3,) * 2
        yield Problem(
            DTYPES[(index + packed) % 2], RAGGED if packed else lengths[:1] * 2, 8, (4, 8, 1)[index % 3], head_dim=dim,
            head_dim_v=dim_v, packed=packed, seed=index,
            **(options | ({"window": third} if options.get("window") == "third" else {})),
        )  # fmt: skip


def _title(problem: Problem) -> str:
    return f"{'varlen' if problem.packed else 'dense'}-{title(problem)}"


@pytest.mark.parametrize("problem", [*_every_option()], ids=_title)
def test_every_option(problem: Problem) -> None:
    check(problem)


EQUAL = (264, 512) if HOST else (264, 320, 384, 392, 448, 504, 512)
DIMS_AND_DTYPES = [*zip([*((d, d) for d in EQUAL), *PAIRS], itertools.cycle(DTYPES), strict=False)]


@pytest.mark.parametrize(("dims", "dtype"), DIMS_AND_DTYPES, ids=str)
def test_head_dims(dims: tuple[int, int], dtype: str) -> None:
    common: dict[str, Any] = {"nheads": 6, "nheads_k": 2, "head_dim": dims[0], "head_dim_v": dims[1], "seed": dims[1]}
    for lengths in LENGTHS:
        check(Problem(dtype, lengths[:1] * 2, causal=dims[0] % 16 == 0, **common))
    check(Problem(dtype, RAGGED, packed=True, used=USED, causal=True, **common))
    check(Problem(dtype, RAGGED, packed=True, used=USED, window=(50, 20), sinks=True, **common))


@pytest.mark.parametrize("dims", [(512, 512), (264, 512), (192, 128)], ids=str)
@pytest.mark.parametrize("seqlen_q", [1, 3])
def test_few_queries_and_many_keys(seqlen_q: int, dims: tuple[int, int]) -> None:
    """The shapes that other head dims decode in another kernel for."""
    common: dict[str, Any] = {"head_dim": dims[0], "head_dim_v": dims[1], "causal": True, "nheads": 8}
    check(Problem(lengths=((seqlen_q, 700),) * 3, nheads_k=4, **common))
    check(Problem(lengths=((seqlen_q, 900), (1, 300), (2, 1)), packed=True, nheads_k=1, **common), num_splits=1)


@pytest.mark.parametrize("dims", [(512, 512), (192, 128)], ids=str)
def test_more_tiles_than_multiprocessors(dims: tuple[int, int]) -> None:
    batch, rows = (1, 150) if HOST else (4, 1300)
    problem = Problem(lengths=((rows, rows),) * batch, nheads=8, nheads_k=4, head_dim=dims[0], head_dim_v=dims[1])
    check(problem.with_options({"causal": True}))
    check(problem.with_options({"packed": True, "window": (300, 100)}))


@pytest.mark.parametrize("packed", LAYOUTS)
@pytest.mark.parametrize("mask", [{}, {"causal": True}, {"window": (17, 5), "softcap": 5.0, "sinks": True}], ids=_name)
@pytest.mark.parametrize("dims", [(512, 512), (320, 320), (192, 128), (64, 512), (512, 64)], ids=str)
def test_what_belongs_to_others_never_changes_a_bit(dims: tuple[int, int], mask: dict[str, Any], packed: bool) -> None:
    """NaN in every second sequence, behind the rows in use, and in the columns beside each head."""
    lengths = RAGGED if packed else ((130, 150),) * 4
    common: dict[str, Any] = {"head_dim": dims[0], "head_dim_v": dims[1], "nheads": 4, "nheads_k": 2}
    inputs = make(Problem("bfloat16", lengths, packed=packed, used=USED if packed else None, **common, **mask))
    want, want_lse = inputs.call()
    changed = Inputs(inputs.problem, inputs.q, inputs.k, inputs.v, inputs.lengths, inputs.slopes, inputs.sinks)
    for name in "qkv":
        x = getattr(inputs, name)
        wide = poisoned((*x.shape[:-1], 512 + 8), "bfloat16")
        wide[..., : x.shape[-1]] = x
        setattr(changed, name, wide[..., : x.shape[-1]])
    begins = [starts(lengths, side) for side in (0, 1)]
    for b, (rows, used) in enumerate(zip(lengths, USED if packed else lengths, strict=True)):
        for name, side in (("q", 0), ("k", 1), ("v", 1)):
            x, first = getattr(changed, name), used[side] if b % 2 else 0
            at = int(begins[side][b])
            fill(x[at + first : at + rows[side]] if packed else x[b, first:], np.nan)
    out, lse = changed.call()
    wait()
    for b in range(1, len(lengths), 2):
        at = int(begins[0][b])
        rows_q = slice(at, at + USED[b][0]) if packed else b
        assert same_bits(out[rows_q], want[rows_q]), f"sequence {b}"
        rows_of_lse = (slice(None), rows_q) if packed else b
        assert same_bits(lse[rows_of_lse], want_lse[rows_of_lse]), f"lse of sequence {b}"


@pytest.mark.parametrize("packed", LAYOUTS)
@pytest.mark.parametrize("dim", [512, 320])
def test_keys_that_rows_do_not_see(dim: int, packed: bool) -> None:
    for mask, bad in (({"causal": True}, np.nan), ({"window": (40, 25)}, np.inf)):
        test_isolation.test_invisible_keys_of_the_same_sequence(dim, mask, "bfloat16", bad, packed)


@pytest.mark.parametrize("dim", [512, 264])
def test_rows_and_heads_of_others(dim: int) -> None:
    test_isolation.test_other_rows_of_q(dim, np.nan)
    test_isolation.test_other_heads(dim, "float16")
    test_isolation.test_rows_outside_every_sequence(dim, {"causal": True})


@pytest.mark.parametrize("dims", [(512, 512), (264, 320), (192, 128), (64, 512)], ids=str)
def test_views_need_no_copy(dims: tuple[int, int]) -> None:
    """Heads in front of rows, and an out among other columns."""
    inputs = make(Problem(lengths=((70, 140),) * 2, nheads=6, nheads_k=2, head_dim=dims[0], head_dim_v=dims[1]))
    want, want_lse = inputs.call()
    for name in "qkv":
        setattr(inputs, name, put(np.ascontiguousarray(get(getattr(inputs, name)).swapaxes(1, 2))).swapaxes(1, 2))
    wide = poisoned((2, 6, 70, dims[1] + 24), "bfloat16")
    out, lse = inputs.call(out=wide[..., 8 : dims[1] + 8].swapaxes(1, 2))
    wait()
    assert (get(out).view(np.uint16) == get(want).view(np.uint16)).all()
    assert same_bits(lse, want_lse)
    beside = get(wide).view(np.uint16)
    assert (beside[..., :8] == 0x7FFF).all()
    assert (beside[..., dims[1] + 8 :] == 0x7FFF).all()


SAME: list[dict[str, Any]] = [
    {"lengths": ((700, 1024),) * 2, "causal": True, "head_dim": 512},
    {"lengths": ((743, 743), (559, 559), (3, 900)), "packed": True, "window": (200, 50), "head_dim": 328},
    {"lengths": ((513, 700),) * 3, "causal": True, "head_dim": 192, "head_dim_v": 128},
]
SAME = [x | {"lengths": RAGGED if "packed" in x else ((30, 70),) * 2} for x in SAME] if HOST else SAME


@pytest.mark.parametrize("options", SAME, ids=["d512", "varlen-d328", "d192v128"])
def test_every_run_gives_the_same_bits(options: dict[str, Any]) -> None:
    inputs = make(Problem(nheads=8, nheads_k=4, **options))
    noise = other_work()
    arguments = {**inputs.lengths, **inputs.options(), "return_lse": True}
    out, lse = same_every_time(
        lambda: inputs.function()(inputs.q, inputs.k, inputs.v, **arguments),
        2 if HOST else 100,
        lambda i: noise() if i % 2 else None,
    )
    judge(inputs.problem, out, lse, expected(inputs))


@pytest.mark.parametrize("mask", [{"causal": True}, {"window": (60, 10)}], ids=_name)
def test_a_graph_is_right_after_cu_seqlens_have_changed(cuda: Any, mask: dict[str, Any]) -> None:
    test_streams.test_a_graph_is_right_after_cu_seqlens_have_changed(cuda, 512, mask)


@pytest.mark.parametrize("num_splits", [0, 3])
@pytest.mark.parametrize("page_size", [None, 16, 64])
@pytest.mark.parametrize("dims", [(512, 512), (264, 128), (192, 128), (128, 256)], ids=str)
def test_caches_are_right_or_refused(dims: tuple[int, int], page_size: int | None, num_splits: int) -> None:
    case = CacheCase(
        3, 200, page_size, "bfloat16", nheads=8, nheads_k=4, head_dim=dims[0], head_dim_v=dims[1], new="equal",
        causal=True, rotary_dim=64, full=True,
    )  # fmt: skip
    right = right_or_refused(case, num_splits=num_splits)
    assert right or max(dims) > 256, "head dims up to 256 have a kernel"
