"""The polynomials of a softcap against the hyperbolic tangent."""

from __future__ import annotations

import functools
import math
from ctypes import POINTER, c_float, c_int32
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
    few_top: float
    reaches: bool


def softcap(inner: float, outer: float, score: float, subtracted: float, few: bool) -> Softcap:
    """outer * tanh(inner * score) - subtracted by the polynomial of few terms or of all.

    And how far the former goes: its last score and the value there, and whether it does in a row whose reference is
    `subtracted`.
    """
    few_range = (c_float * 3)()
    value = _function()(inner, outer, score, subtracted, few, few_range)
    return Softcap(value, few_range[0], few_range[1], few_range[2] != 0)


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
    few = softcap(scale / cap, cap * LOG2E, 0, 0, True)
    assert few.few_top == pytest.approx(math.tanh(0.35) * cap * LOG2E, rel=1e-5)
    if few.few_top > 6:
        assert few.few_limit == pytest.approx(0.35 * cap / abs(scale), rel=1e-5)
    else:
        assert few.few_limit == 0


@given(scales, caps, st.floats(1.01, 50))
def test_what_few_terms_are_not_made_for_shows_in_what_they_give(scale: float, cap: float, part: float) -> None:
    """A larger score comes out above few_top, one below the negative of it below: no check of scores is needed."""
    inner, outer = scale / cap, cap * LOG2E
    score = math.copysign(part * 0.35 * cap / abs(scale), scale)
    few = softcap(inner, outer, score, 0, True)
    assert few.value > few.few_top
    below = softcap(inner, outer, -score, 0, True).value
    assert below == -few.value < -few.few_top


@given(caps.filter(lambda cap: cap > 13), st.floats(-50, 50))
def test_few_terms_need_a_reference_that_lets_small_scores_vanish(cap: float, reference: float) -> None:
    """The exact probability of what is below the range, relative to the reference, is at most 2^-12."""
    few = softcap(1 / cap, cap * LOG2E, 0, reference, True)
    largest_below = -math.tanh(0.35) * cap * LOG2E - reference
    assert few.reaches == (largest_below <= -12) or abs(largest_below + 12) < 1e-3


@pytest.mark.parametrize("few", [True, False])
def test_the_reference_is_subtracted(few: bool) -> None:
    value = softcap(1 / 50, 50 * LOG2E, 7.0, 3.25, few).value
    assert value == pytest.approx(exact(1 / 50, 50 * LOG2E, 7.0) - 3.25, rel=1e-5)


@pytest.mark.parametrize("inner", [0.0, 1e-12, 1e12, math.inf])
def test_no_few_terms_where_float32_does_not_hold_them(inner: float) -> None:
    """The fifth power of 1e-12 is far below the smallest float32."""
    assert softcap(inner, 50.0, 0, 0, True).few_limit == 0
