"""flash_attn_with_kvcache on the host engine against the formula, after FlashAttention-3's own cache tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.host.kvcache_cases import CacheCase, check

SEQLENS = [(1, 128), (1, 339), (3, 1024), (64, 800), (64, 256), (3, 799), (16, 2000), (128, 128), (256, 512)]
PAGE_SIZES = [None, 1, 4, 16, 64, 128, 256]
DTYPES = ["float16", "bfloat16", "float32"]
MASKS: list[dict[str, Any]] = [{}, {"causal": True}, {"window": (70, 9)}]
# Rotary fraction and layout.
ROTARY = [(0.0, True), (0.5, True), (0.5, False), (1.0, True), (1.0, False)]


def protocol() -> Iterator[CacheCase]:
    """Every length with every page size; the other dimensions take turns."""
    turns = zip(
        itertools.cycle(DTYPES), itertools.cycle(MASKS * 2), itertools.cycle(ROTARY), itertools.cycle([2, 6, 3, 1]),
        itertools.cycle(["equal", "ragged", "none", "equal"]), itertools.cycle([False, True, True]),
        itertools.cycle([True, False]), itertools.cycle([False, False, True, True, True]), strict=False,
    )  # fmt: skip
    for seed, ((seqlen_q, seqlen_k), page_size) in enumerate(itertools.product(SEQLENS, PAGE_SIZES)):
        dtype, mask, (fraction, interleaved), nheads_k, new, leftpad, batch_idx, packed_q = next(turns)
        head_dim = 32 if seqlen_k >= 800 else 64
        yield CacheCase(
            seqlen_q, seqlen_k, page_size, dtype, nheads_k=nheads_k, head_dim=head_dim, new=new, leftpad=leftpad,
            batch_idx=batch_idx, packed_q=packed_q, rotary_dim=int(fraction * head_dim) if new != "none" else 0,
            interleaved=interleaved, seed=seed, **mask,
        )  # fmt: skip


@pytest.mark.parametrize("case", [*protocol()], ids=str)
def test_protocol(case: CacheCase) -> None:
    check(case)


@pytest.mark.parametrize("seqlen_q", [2, 3, 5, 8, 16])
@pytest.mark.parametrize("page_size", [None, 16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_speculative_decoding(seqlen_q: int, page_size: int | None, dtype: str) -> None:
    check(CacheCase(seqlen_q, 200, page_size, dtype, new="equal", causal=True, rotary_dim=32, seed=seqlen_q))


@pytest.mark.parametrize("options", [{"softcap": 3.0}, {"alibi": True}, {"sinks": True}, {"head_dim_v": 40}], ids=str)
@pytest.mark.parametrize("page_size", [None, 3])
def test_with_everything_else(options: dict[str, Any], page_size: int | None) -> None:
    check(CacheCase(5, 60, page_size, "float32", new="ragged", causal=True, leftpad=True, seed=7, **options))


@pytest.mark.parametrize("own_positions", [False, True])
@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize(("fraction", "interleaved"), ROTARY[1:])
def test_rotary_positions(mask: dict[str, Any], own_positions: bool, fraction: float, interleaved: bool) -> None:
    case = CacheCase(
        6, 90, 4, "float32", new="ragged", rotary_dim=int(64 * fraction), interleaved=interleaved,
        rotary_seqlens=own_positions, packed_q=True, **mask,
    )  # fmt: skip
    check(case)


cases = st.builds(
    CacheCase,
    seqlen_q=st.integers(0, 40),
    seqlen_k=st.integers(41, 150),
    page_size=st.none() | st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
    nheads_k=st.sampled_from([1, 2, 3, 6]),
    head_dim=st.sampled_from([16, 24, 48, 64]),
    head_dim_v=st.sampled_from([8, 32]),
    new=st.sampled_from(["none", "equal", "ragged"]),
    leftpad=st.booleans(),
    batch_idx=st.booleans(),
    packed_q=st.booleans(),
    rotary_dim=st.sampled_from([0, 16]),
    interleaved=st.booleans(),
    rotary_seqlens=st.booleans(),
    causal=st.booleans(),
    window=st.tuples(st.integers(-1, 60), st.integers(-1, 60)),
    seed=st.integers(0, 1000),
)


@settings(max_examples=150, deadline=None)
@given(cases)
def test_any_cache(case: CacheCase) -> None:
    check(case)


def test_the_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CacheCase(3, 50, 4, "float32", new="equal")
    real = CacheCase.run

    def wrong(self: CacheCase, arguments: dict[str, Any], **more: Any) -> Any:
        result = real(self, arguments, **more)
        arguments["v_cache"][0, 0, 0, 0] = 1.0
        return result

    monkeypatch.setattr(CacheCase, "run", wrong)
    with pytest.raises(AssertionError, match="v_cache"):
        check(case)
