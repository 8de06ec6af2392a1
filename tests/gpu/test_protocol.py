"""FlashAttention-3's own protocol: its lengths, heads and head dims, dense and varlen, under its error rule."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.gpu.problem import Problem, check
from tests.gpu.protocol_cases import selection, title

Note = Callable[[str, object], None]


@pytest.mark.parametrize("problem", selection(packed=False), ids=title)
def test_dense(problem: Problem, record_property: Note) -> None:
    for name, value in check(problem).items():
        record_property(name, value)


@pytest.mark.parametrize("problem", selection(packed=True), ids=title)
def test_varlen(problem: Problem, record_property: Note) -> None:
    for name, value in check(problem).items():
        record_property(name, value)
