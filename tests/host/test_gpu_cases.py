"""What the selection of the GPU tests' cache cases covers."""

from __future__ import annotations

import itertools

from tests.gpu.kvcache_protocol import DIMENSIONS, PAGE_SIZES, PAIRS, protocol


def test_every_pair_of_values_meets_in_a_case() -> None:
    cases = list(protocol())
    assert len(cases) <= 110, "they must all run within a minute and a half"
    values = {"page_size": PAGE_SIZES, **DIMENSIONS}
    for a, b in itertools.combinations(values, 2):
        met = {(case.choices[a], case.choices[b]) for case in cases}
        missing = set(itertools.product(range(len(values[a])), range(len(values[b])))) - met
        assert len(missing) <= 1, f"{a} and {b}: {missing}"
    lengths = {(case.cache.seqlen_q, case.cache.seqlen_k, case.num_splits) for case in cases}
    assert lengths == {(*pair, n) for pair in PAIRS for n in DIMENSIONS["splits"]}


def test_the_cases_are_the_same_every_time() -> None:
    assert list(protocol()) == list(protocol())
