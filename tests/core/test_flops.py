"""Counts of floating-point operations, on which every figure in FLOP/s rests, against counting pairs one by one."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pyflash3.tools.cases import Case
from scripts.benchlib.shapes import Shape, grids
from tests.core.surface import MaskCase

sides = st.one_of(st.just(-1), st.integers(0, 40))
windows = st.tuples(sides, sides)
lengths = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=4).map(tuple)
heads = st.integers(1, 5)
dims = st.sampled_from([8, 64, 256])


def pairs(n_q: int, n_k: int, causal: bool, window: tuple[int, int]) -> int:
    mask = MaskCase(window[0], 0 if causal else window[1], n_q, n_k)
    return sum(mask.sees(i, j) for i in range(n_q) for j in range(n_k))


@given(lengths, windows, st.booleans(), heads, dims, dims)
def test_of_the_demo(lengths: Any, window: tuple[int, int], causal: bool, nheads: int, d: int, d_v: int) -> None:
    case = Case("float32", lengths, nheads, 1, d, d_v, packed=True, causal=causal, window=window)
    visible = sum(pairs(n_q, n_k, causal, window) for n_q, n_k in lengths)
    # A product and a sum for each of d columns of Q K^T and each of d_v columns of P V.
    assert case.flops() == visible * nheads * (2 * d + 2 * d_v)


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=4).map(tuple),
    windows,
    st.booleans(),
    heads,
    dims,
    st.none() | dims,
)
def test_of_the_benchmark(
    lengths: tuple[int, ...], window: tuple[int, int], causal: bool, nheads: int, d: int, d_v: int | None
) -> None:
    shape = Shape(lengths, nheads, 1, d, causal, packed=True, window=window, head_dim_v=d_v)
    if window == (-1, -1):  # the papers count half of the square for causal, diagonal or not
        visible = sum(n * n * (0.5 if causal else 1.0) for n in lengths)
    else:
        visible = sum(pairs(n, n, causal, window) for n in lengths)
    assert shape.flops() == visible * nheads * (2 * d + 2 * (d_v or d))


def test_the_papers_grid() -> None:
    shapes = grids()["paper"]
    assert len(shapes) == len({str(shape) for shape in shapes}) == 36
    for shape in shapes:
        assert sum(shape.lengths) == 16_384
        assert shape.nheads * shape.head_dim == 2048
        assert shape.flops() == 4 * 16_384 * shape.lengths[0] * 2048 * (0.5 if shape.causal else 1.0)
