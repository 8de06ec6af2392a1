"""Head dims up to 576, and of v up to 512, in any pair, on the host engine, under FlashAttention's error rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyflash3 import flash_attn_varlen_func
from pyflash3.tools.cases import MASKS, Case
from pyflash3.tools.selftest import check
from tests.host.kvcache_cases import CacheCase
from tests.host.kvcache_cases import check as check_cache
from tests.host.test_formula import HOST

DIMS = [(264, 264), (320, 320), (512, 512), (192, 128), (128, 256), (64, 512), (512, 64), (576, 512)]
RAGGED = ((2, 2), (4, 4), (9, 9), (0, 7), (5, 0), (70, 131), (130, 66))


@pytest.mark.parametrize("head_dim", range(264, 584, 8))
def test_every_head_dim(head_dim: int) -> None:
    dtype, head_dim_v = HOST.dtypes[head_dim // 8 % 3], min(512, 840 - head_dim)
    case = Case(dtype, ((15, 70),), head_dim=head_dim, head_dim_v=head_dim_v, causal=True, seed=head_dim)
    assert check(case, HOST) is None


@pytest.mark.parametrize(("dims", "mask"), [(DIMS[i % 8], MASKS[(i + i // 8) % 9]) for i in range(24)], ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "varlen"])
def test_every_option(packed: bool, mask: dict[str, Any], dims: tuple[int, int]) -> None:
    index = DIMS.index(dims) + MASKS.index(mask)
    case = Case(
        HOST.dtypes[index % 3], RAGGED if packed else ((67, 130),), nheads_k=(4, 2, 1)[index % 3],
        head_dim=dims[0], head_dim_v=dims[1], packed=packed, seed=index,
    )  # fmt: skip
    assert check(Case(**{**vars(case), **mask}), HOST) is None


@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("page_size", [None, 1, 16, 64])
def test_caches(page_size: int | None, dims: tuple[int, int]) -> None:
    index = DIMS.index(dims)
    case = CacheCase(
        3, 150, page_size, HOST.dtypes[index % 3], nheads=2, head_dim=dims[0], head_dim_v=dims[1],
        new=("equal", "ragged")[index % 2], causal=True, leftpad=index % 2 == 1, batch_idx=index % 3 == 1,
        packed_q=index % 4 > 1, rotary_dim=64, interleaved=index % 2 == 0, seed=index,
    )  # fmt: skip
    check_cache(case)


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(st.integers(1, 72), st.integers(1, 64)),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 150)), min_size=1, max_size=3),
    st.sampled_from(HOST.dtypes),
    st.sampled_from(MASKS),
    st.integers(0, 1000),
)
def test_any_pair(
    dims: tuple[int, int], lengths: list[tuple[int, int]], dtype: str, mask: dict[str, Any], seed: int
) -> None:
    case = Case(dtype, tuple(lengths), head_dim=8 * dims[0], head_dim_v=8 * dims[1], packed=True, seed=seed, **mask)
    assert check(case, HOST) is None


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_instruction_sets(isa: str, dims: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASH3_HOST_ISA", isa)
    case = Case("bfloat16", RAGGED, head_dim=dims[0], head_dim_v=dims[1], packed=True, causal=True)
    try:
        assert check(case, HOST) is None
    except NotImplementedError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("dims", [(512, 512), (264, 504)], ids=str)
def test_what_no_row_sees_never_changes_a_bit(dims: tuple[int, int], poison: float) -> None:
    """A neighbour sequence, and the last key of a sequence under a mask that hides it from all rows but the last."""
    lengths = [(5, 70), (9, 131), (3, 3)]
    case = Case("float16", tuple(lengths), head_dim=dims[0], head_dim_v=dims[1], packed=True, causal=True)
    arrays, numbers = case.arrays()
    want = flash_attn_varlen_func(**arrays, **numbers)
    arrays["k"][:70], arrays["v"][:70] = poison, poison
    arrays["v"][200] = poison  # the last key of sequence 1
    out = flash_attn_varlen_func(**arrays, **numbers)
    assert (out[5:13] == want[5:13]).all()
    assert (out[14:] == want[14:]).all()
    assert not np.isfinite(out[13].astype(np.float32)).any()
