"""Values that are columns of the keys (v=None, d_v): multi-head latent attention on the host engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyflash3
from pyflash3 import _prepared, flash_attn_func, flash_attn_varlen_func, reference
from pyflash3.tools.cases import MASKS, Case
from tests.host.kvcache_cases import CacheCase, check, copied, equal
from tests.host.test_formula import HOST

DIMS = [(576, 512), (576, 64), (64, 64), (72, 8), (128, 40), (512, 512)]
RAGGED = ((2, 2), (4, 4), (9, 9), (0, 7), (5, 0), (3, 131))

every_pair = pytest.mark.parametrize("dims", DIMS, ids=str)


def latent(case: Case) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same call twice: with the values as an array of their own, and as columns of the keys."""
    arrays, numbers = case.arrays()
    d_v = arrays.pop("v").shape[-1]
    common = arrays | numbers
    return common | {"v": common["k"][..., :d_v].copy()}, common | {"v": None, "d_v": d_v}


@every_pair
@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "varlen"])
def test_the_bits_of_values_copied_from_the_keys(packed: bool, mask: dict[str, Any], dims: tuple[int, int]) -> None:
    index = DIMS.index(dims) + MASKS.index(mask)
    case = Case(
        HOST.dtypes[index % 3], RAGGED if packed else ((7, 130),) * 2, nheads=16, nheads_k=1 + index % 2,
        head_dim=dims[0], head_dim_v=dims[1], packed=packed, seed=index, **mask,
    )  # fmt: skip
    function = flash_attn_varlen_func if packed else flash_attn_func
    copy, columns = latent(case)
    (out, lse), (want, want_lse) = (function(**x, return_lse=True) for x in (columns, copy))
    equal(out, want)
    equal(lse, want_lse)


@pytest.mark.parametrize("nheads", [16, 128])
@pytest.mark.parametrize("seqlen_q", [1, 2, 4])
@pytest.mark.parametrize("page_size", [None, 1, 64])
def test_decoding_with_a_latent_cache(page_size: int | None, seqlen_q: int, nheads: int) -> None:
    case = CacheCase(
        seqlen_q, 100, page_size, HOST.dtypes[seqlen_q % 3], batch=2, nheads=nheads, nheads_k=1, head_dim=576,
        head_dim_v=512, latent=True, new="equal", causal=True, full=True, seed=nheads,
    )  # fmt: skip
    check(case)


cases = st.builds(
    CacheCase,
    seqlen_q=st.integers(0, 10),
    seqlen_k=st.integers(11, 150),
    page_size=st.none() | st.integers(1, 70),
    dtype=st.sampled_from(HOST.dtypes),
    nheads_k=st.sampled_from([1, 2, 6]),
    head_dim=st.sampled_from([32, 72, 576]),
    head_dim_v=st.sampled_from([8, 32]),
    latent=st.just(True),
    new=st.sampled_from(["none", "equal", "ragged"]),
    leftpad=st.booleans(),
    batch_idx=st.booleans(),
    packed_q=st.booleans(),
    rotary_dim=st.sampled_from([0, 32]),
    interleaved=st.booleans(),
    rotary_seqlens=st.booleans(),
    causal=st.booleans(),
    window=st.tuples(st.integers(-1, 60), st.integers(-1, 60)),
    seed=st.integers(0, 1000),
)


@settings(max_examples=60, deadline=None)
@given(cases)
def test_any_cache(case: CacheCase) -> None:
    """Appended rows are written once, turned where rotary embedding turns them, and are values as they lie there."""
    check(case)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_bad_latent_row_shows_where_it_is_seen(poison: float) -> None:
    case = CacheCase(
        4, 60, 8, "float16", nheads=16, nheads_k=1, head_dim=576, head_dim_v=512, latent=True, new="equal", causal=True
    )
    clean, clean_lse = case.run(case.arguments())
    dirty = case.arguments()
    dirty["k"][1, 2, :, 100] = poison  # a column of the values too
    dirty["k"][2, 3, :, 550] = poison  # one of the keys alone
    out, lse = case.run(dirty)
    equal(out[0], clean[0])
    equal(lse[0], clean_lse[0])
    equal(out[1, :2], clean[1, :2])
    equal(out[2, :3], clean[2, :3])
    assert not np.isfinite(out[1, 2:, :, 100].astype(np.float32)).any()
    if np.isnan(poison):
        assert np.isnan(out[2, 3].astype(np.float32)).all()


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "varlen"])
def test_a_plan(packed: bool) -> None:
    case = Case("float32", RAGGED if packed else ((5, 40),) * 2, head_dim=72, head_dim_v=40, packed=packed)
    arguments = latent(case)[1]
    q, k, v = (arguments.pop(name) for name in "qkv")
    step = pyflash3.plan(q, k, v, **arguments, return_lse=True)
    function = flash_attn_varlen_func if packed else flash_attn_func
    other = k * 0.5
    for keys, changes in ((k, {}), (other, {"k": other})):
        step.out[...] = np.nan
        for x, y in zip(step(**changes), function(q, keys, v, **arguments, return_lse=True), strict=True):
            equal(x, y)
    assert step.out.shape == (*q.shape[:-1], 40)


def test_strides_of_keys_and_out() -> None:
    copy, columns = latent(Case("float32", ((9, 50),) * 2, head_dim=48, head_dim_v=24))
    want = flash_attn_func(**copy)
    columns["k"] = np.ascontiguousarray(columns["k"].swapaxes(1, 2)).swapaxes(1, 2)
    wide = np.zeros((*want.shape[:-1], 40), np.float32)
    flash_attn_func(**columns, out=wide[..., :24])
    equal(wide[..., :24], want)
    assert not wide[..., 24:].any()


def test_inputs_are_left_alone() -> None:
    case = CacheCase(2, 40, None, "float16", nheads_k=1, head_dim=64, head_dim_v=32, latent=True)
    arguments = case.arguments()
    before = copied(arguments)
    case.run(arguments)
    for name, x in before.items():
        if isinstance(x, np.ndarray):
            equal(arguments[name], x)


@pytest.mark.parametrize("keys", [0, 5])
def test_a_v_without_elements_is_not_taken_for_none(keys: int) -> None:
    """CuPy's arrays without elements have address 0; NULL in flash3_params is the form without v."""
    q, k, v = (np.zeros((1, n, 1, d), np.float16) for n, d in ((2, 64), (keys, 64), (keys, 128)))

    def kind(v: Any, d_v: int | None) -> Any:
        options = pyflash3._call.Options(None, False, (-1, -1), 0.0, None, None, 0, None, 0, d_v)
        return pyflash3._call.prepare(q, k, v, options, None, None)[0]

    addresses: list[int | None] = [4096, 4096 if keys else 0, 4096 if keys else 0, 4096, *[None] * 6]
    assert _prepared.fill(kind(v, None), addresses, None, 0).v
    addresses[2] = None
    assert _prepared.fill(kind(None, 32), addresses, None, 0).v is None


def test_the_reference_takes_the_columns() -> None:
    copy, columns = latent(Case("float16", ((5, 40),), head_dim=48, head_dim_v=24, causal=True))
    for x, y in zip(reference.attention(**columns), reference.attention(**copy), strict=True):
        equal(x, y)


@pytest.mark.parametrize(("v", "d_v"), [(None, None), (np.zeros((1, 3, 1, 8)), 8)])
def test_the_reference_takes_one_of_both(v: Any, d_v: int | None) -> None:
    q = np.zeros((1, 3, 1, 8))
    with pytest.raises(TypeError, match="one of v and d_v must be given"):
        reference.attention(q, q, v, d_v=d_v)
