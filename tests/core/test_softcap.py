"""The polynomials of a softcap against the hyperbolic tangent."""

from __future__ import annotations

import functools
import math
from ctypes import POINTER, byref, c_float, c_int32
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.surface import surface_function

LOG2E = math.log2(math.e)
scales = st.floats(1e-3, 10) | st.floats(-10, -1e-3)
caps = st.floats(0.5, 1000)
parts = st.floats(-1, 1)  # of the range


@functools.cache
def _function() -> Any:
    return surface_function("softcap", c_float, [*[c_float] * 4, c_int32, POINTER(c_float)])


class Softcap(NamedTuple):
    value: float
    few_limit: float


def softcap(inner: float, outer: float, score: float, subtracted: float, few: bool) -> Softcap:
    """outer * tanh(inner * score) - subtracted by the polynomial of few terms or of all; how far the former goes."""
    limit = c_float()
    value = _function()(inner, outer, score, subtracted, few, byref(limit))
    return Softcap(value, limit.value)


def exact(inner: float, outer: float, score: float) -> float:
    return float(np.float32(outer)) * math.tanh(float(np.float32(inner)) * float(np.float32(score)))


@given(scales, caps, parts)
def test_few_terms_within_their_range(scale: float, cap: float, part: float) -> None:
    inner, outer = scale / cap, cap * LOG2E
    score = part * softcap(inner, outer, 0, 0, True).few_limit
    assert softcap(inner, outer, score, 0, True).value == pytest.approx(exact(inner, outer, score), rel=3.5e-6)


@given(scales, caps, parts)
def test_all_terms_within_their_range(scale: float, cap: float, part: float) -> None:
    inner, outer = scale / cap, cap * LOG2E
    score = part / inner
    assert softcap(inner, outer, score, 0, False).value == pytest.approx(exact(inner, outer, score), rel=1.1e-6)


@given(scales, caps)
def test_the_range_of_few_terms(scale: float, cap: float) -> None:
    limit = softcap(scale / cap, cap * LOG2E, 0, 0, True).few_limit
    assert limit == pytest.approx(0.35 * cap / abs(scale), rel=1e-5)


@pytest.mark.parametrize("few", [True, False])
def test_the_reference_is_subtracted(few: bool) -> None:
    value = softcap(1 / 50, 50 * LOG2E, 7.0, 3.25, few).value
    assert value == pytest.approx(exact(1 / 50, 50 * LOG2E, 7.0) - 3.25, rel=1e-5)


@pytest.mark.parametrize("inner", [0.0, 1e-12, 1e12, math.inf])
def test_no_few_terms_where_float32_does_not_hold_them(inner: float) -> None:
    """The fifth power of 1e-12 is far below the smallest float32."""
    assert softcap(inner, 50.0, 0, 0, True).few_limit == 0
