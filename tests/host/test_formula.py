"""The host engine through the public functions, against the formula, under FlashAttention's error rule."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyflash3.tools import backend as backends
from pyflash3.tools.cases import MASKS, Case, all_cases
from pyflash3.tools.selftest import check

HOST = backends.Backend("host", "host engine", ("float16", "bfloat16", "float32"))

SEQLENS = [(1, 1), (64, 128), (128, 192), (256, 256), (239, 1), (799, 3), (113, 203), (108, 256), (1, 1000), (300, 257)]


@pytest.mark.parametrize("dtype", HOST.dtypes)
def test_selftest_cases(dtype: str) -> None:
    wrong = {str(case): check(case, HOST) for case in all_cases((dtype,), quick=False)}
    assert len(wrong) >= 90
    assert {case: text for case, text in wrong.items() if text} == {}


@pytest.mark.parametrize("head_dim", range(8, 264, 8))
@pytest.mark.parametrize("dtype", HOST.dtypes)
def test_every_head_dim(dtype: str, head_dim: int) -> None:
    head_dim_v = 264 - head_dim
    case = Case(dtype, ((70, 90),) * 2, head_dim=head_dim, head_dim_v=head_dim_v, causal=True, seed=head_dim)
    assert check(case, HOST) is None


@pytest.mark.parametrize("seqlens", SEQLENS)
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_flash_attention_lengths(seqlens: tuple[int, int], mask: dict[str, object]) -> None:
    case = Case("bfloat16", (seqlens,), nheads=6, nheads_k=2)
    assert check(Case(**{**vars(case), **mask}), HOST) is None


@pytest.mark.parametrize("group", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("packed", [False, True])
def test_query_heads_share_kv_heads(group: int, packed: bool) -> None:
    lengths = ((33, 70), (5, 41)) if packed else ((33, 70),) * 2
    assert check(Case("float32", lengths, nheads=2 * group, nheads_k=2, packed=packed, causal=True), HOST) is None


sides = st.integers(-1, 40)
options = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(HOST.dtypes),
        "head_dim": st.integers(1, 32).map(lambda n: 8 * n),
        "head_dim_v": st.integers(1, 32).map(lambda n: 8 * n),
        "causal": st.booleans(),
        "window": st.tuples(sides, sides),
        "softcap": st.sampled_from([0.0, 2.0, 30.0]),
        "alibi": st.booleans(),
        "sinks": st.booleans(),
        "seed": st.integers(0, 1000),
    }
)


@settings(max_examples=150, deadline=None)
@given(options, st.lists(st.tuples(st.integers(0, 150), st.integers(0, 150)), min_size=1, max_size=5))
def test_any_varlen_batch(choice: dict[str, object], lengths: list[tuple[int, int]]) -> None:
    assert check(Case(lengths=tuple(lengths), packed=True, **choice), HOST) is None  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(options, st.integers(0, 150), st.integers(0, 150), st.integers(1, 3))
def test_any_dense_batch(choice: dict[str, object], seqlen_q: int, seqlen_k: int, batch: int) -> None:
    assert check(Case(lengths=((seqlen_q, seqlen_k),) * batch, **choice), HOST) is None  # type: ignore[arg-type]


def test_the_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("float32", ((8, 8),))
    real = Case.run

    def slightly_wrong(self: Case, *args: object) -> tuple[Any, Any]:
        out, lse = real(self, *args)  # type: ignore[arg-type]
        out[0, 3, 1, 5] += 1e-3
        return out, lse

    monkeypatch.setattr(Case, "run", slightly_wrong)
    assert "error 1.000e-03 at (0, 3, 1, 5)" in str(check(case, HOST))
