"""The polynomial of a softcap without a factor of its own, against the hyperbolic tangent."""

from __future__ import annotations

import functools
import math
from ctypes import POINTER, c_float
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.core.surface import surface_function

LOG2E = math.log2(math.e)
WITHIN, BELOW = 6e-5, 2e-5  # of the log-sum-exp, in natural units
scales = st.floats(1e-2, 2)
caps = st.floats(10, 500)


@functools.cache
def _function() -> Any:
    return surface_function("monic_softcap", c_float, [*[c_float] * 3, POINTER(c_float)])


class Monic(NamedTuple):
    value: float  # in units of log2
    q_factor: float
    largest: float
    least_mean: float


def monic(scale: float, cap: float, score: float) -> Monic:
    """cap * tanh(scale * score / cap) by the polynomial, of a product before it is multiplied by q_factor."""
    facts = (c_float * 3)()
    of = functools.partial(_function(), scale / cap, cap * LOG2E)
    of(0.0, facts)
    return Monic(of(score * facts[0], facts), *facts)


def exact(scale: float, cap: float, score: float) -> float:
    return cap * math.tanh(scale * score / cap) * LOG2E


def rounding(value: float) -> float:
    """Of a few float32 operations, and of the two arguments that make up the cap, in units of log2."""
    return 1e-6 * abs(value) + 1e-9


@given(scales, caps, st.floats(-1, 1))
def test_the_error_where_it_does(scale: float, cap: float, part: float) -> None:
    top = monic(scale, cap, 0).largest
    assume(top > 0)
    score = part * math.log(top) * 1.05 / scale
    found = monic(scale, cap, score).value
    assume(abs(found) <= math.log2(top))
    want = exact(scale, cap, score)
    assert abs(found - want) <= WITHIN * LOG2E * 1.03 + rounding(want)


@given(scales, caps, st.floats(1.0, 1e4))
def test_a_score_beyond_the_range_comes_out_larger_than_all_within(scale: float, cap: float, times: float) -> None:
    at = monic(scale, cap, 0)
    assume(at.largest > 0)
    top = math.log2(at.largest)
    edge = cap / scale * math.atanh((top + 1e-3) / LOG2E / cap)
    found = monic(scale, cap, edge * times)
    assert found.value > top
    assert monic(scale, cap, -edge * times).value == -found.value


@given(scales, caps, st.floats(0.0, 1.0))
def test_the_error_of_probabilities_below_the_range(scale: float, cap: float, part: float) -> None:
    """It is less than BELOW even if all keys of a row have the worst of such scores and the least mean allowed."""
    at = monic(scale, cap, 0)
    assume(at.largest > 0)
    score = -(0.5 + 2 * part) * cap / scale  # up to arguments of 2.5, from within the range on
    found, want = monic(scale, cap, score).value, exact(scale, cap, score)
    if abs(found) > math.log2(at.largest):
        assert abs(2.0**found - 2.0**want) <= BELOW * at.least_mean * 1.01


@given(scales, caps)
def test_the_factor_is_a_power_of_two_that_bfloat16_has_room_for(scale: float, cap: float) -> None:
    at = monic(scale, cap, 0)
    assert math.frexp(at.q_factor)[0] == 0.5
    assert 2.0**-16 <= at.q_factor <= 1
    assert (at.largest > 0) or at.q_factor == 1


@pytest.mark.parametrize("head_dim", [96, 128, 192])
@pytest.mark.parametrize("cap", [30.0, 50.0, 60.0, 100.0])
def test_it_is_there_for_softcaps_as_they_are_used(head_dim: int, cap: float) -> None:
    """And of use for random scores: a few dozen probabilities may add up to 2^8, their mean may be less than 1 / 2."""
    at = monic(head_dim**-0.5, cap, 0)
    assert at.largest >= 2**8
    assert 0 < at.least_mean <= 0.5


@pytest.mark.parametrize(
    ("scale", "cap"), [(0.1, 2.0), (-0.1, 30.0), (0.0, 30.0), (0.1, 1e9), (1e-12, 30.0), (1e9, 30.0)]
)
def test_there_is_none_where_it_is_of_no_use(scale: float, cap: float) -> None:
    """Small caps, scales that turn larger products into smaller scores, and what float32 or bfloat16 do not hold."""
    at = monic(scale, cap, 0)
    assert (at.largest, at.q_factor) == (0, 1)


def test_nothing_is_lost_that_is_not_finite() -> None:
    """A product that is infinite or NaN must show in the sums."""
    assert monic(0.1, 30.0, math.inf).value == math.inf
    assert monic(0.1, 30.0, -math.inf).value == -math.inf
    assert np.isnan(monic(0.1, 30.0, math.nan).value)
