"""Division by a prepared divisor against division."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.surface import quotient

LARGEST = 2**31 - 1
numbers = st.integers(0, LARGEST)
divisors = st.integers(1, LARGEST) | st.integers(1, 300) | st.integers(0, 30).map(lambda bits: 2**bits)


@given(numbers, divisors)
def test_quotients(n: int, divisor: int) -> None:
    assert quotient(n, divisor) == n // divisor


@given(divisors, st.integers(0, LARGEST), st.integers(-1, 1))
def test_around_multiples(divisor: int, factor: int, offset: int) -> None:
    n = factor % (LARGEST // divisor + 1) * divisor + offset
    if 0 <= n <= LARGEST:
        assert quotient(n, divisor) == n // divisor


@pytest.mark.parametrize("divisor", [1, 2, 3, 7, 2**16 + 1, 2**30 - 1, 2**30 + 1, LARGEST - 1, LARGEST])
def test_the_largest_number(divisor: int) -> None:
    assert quotient(LARGEST, divisor) == LARGEST // divisor
