"""Wrong arguments of plan_with_kvcache, and wrong replacements of its arrays: one clear exception, nothing written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyflash3 import flash_attn_with_kvcache, plan_with_kvcache
from tests.host.kvcache_cases import CacheCase, bits, copied, equal

F32, I32 = np.float32, np.int32


def appending(**changes: Any) -> dict[str, Any]:
    return CacheCase(1, 40, 4, "float32", new="equal").arguments() | changes


def read_only(x: Any) -> Any:
    y = x.copy()
    y.flags.writeable = False
    return y


def misaligned(x: Any) -> Any:
    y = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    y[...] = x
    return y


WRONG: dict[str, tuple[str, Any, type[Exception], str]] = {
    "shape": ("k_cache", lambda x: x[1:], ValueError, "k_cache has shape (59, 4, 2, 64); this plan was made for (60, 4, 2, 64)"),
    "new rows": ("k", lambda x: x[:, :0], ValueError, "k has shape (3, 0, 2, 64); this plan was made for (3, 1, 2, 64)"),
    "dtype": ("v", lambda x: x.astype(np.float16), TypeError, "v has dtype float16; this plan was made for float32"),
    "strides": ("v_cache", lambda x: np.repeat(x, 2, -1)[..., :64], ValueError, "v_cache has strides (4096, 1024, 512, 4) bytes; this plan was made for (2048, 512, 256, 4)"),
    "address": ("k_cache", misaligned, ValueError, "k_cache starts at address"),
    "address of new rows": ("v", misaligned, ValueError, "v starts at address"),
    "read-only cache": ("v_cache", read_only, ValueError, "v_cache is a read-only array; it must be writable"),
    "read-only out": ("out", lambda _: read_only(np.zeros((3, 1, 6, 64), F32)), ValueError, "out is a read-only array; it must be writable"),
    "list": ("k_cache", lambda x: [x], TypeError, "k_cache is of type list; it must be a NumPy, CuPy or CUDA DLPack array"),
    "lse": ("lse", lambda _: np.zeros((3, 6, 1), F32), ValueError, "lse is given, but this plan has none; make it with return_lse=True"),
}  # fmt: skip


@pytest.mark.parametrize("row", WRONG)
def test_wrong_replacements(row: str) -> None:
    name, change, kind, words = WRONG[row]
    arguments = appending()
    step = plan_with_kvcache(**arguments)
    before = copied(arguments)
    with pytest.raises(kind) as info:
        step(**({"q": arguments["q"] * 2} | {name: change(arguments.get(name))}))
    assert words in str(info.value)
    assert "\n" not in str(info.value)
    for x in ("k_cache", "v_cache"):
        assert (bits(arguments[x]) == bits(before[x])).all(), "a refused call wrote something"
    want = flash_attn_with_kvcache(**before)
    equal(step(), want)


@pytest.mark.parametrize("name", ["k", "v"])
def test_new_rows_for_a_plan_without_any(name: str) -> None:
    step = plan_with_kvcache(**appending(k=None, v=None))
    with pytest.raises(ValueError, match=f"{name} is given, but this plan has none; make it with {name}"):
        step(**{name: np.zeros((3, 1, 2, 64), F32)})


def test_values_for_a_plan_whose_values_are_columns_of_the_keys() -> None:
    arguments = CacheCase(1, 40, 4, "float32", head_dim_v=32, latent=True).arguments()
    step = plan_with_kvcache(**arguments)
    with pytest.raises(
        ValueError, match="v_cache is given, but this plan has none; make it with v_cache instead of d_v"
    ):
        step(v_cache=arguments["k_cache"])
    with pytest.raises(TypeError, match="v_cache is None; it must be an array, or d_v the number of columns of k"):
        plan_with_kvcache(**arguments | {"d_v": None})


def test_caches_that_are_only_read_may_be_read_only() -> None:
    arguments = appending(k=None, v=None)
    want = flash_attn_with_kvcache(**arguments)
    step = plan_with_kvcache(**arguments | {"k_cache": read_only(arguments["k_cache"])})
    equal(step(v_cache=read_only(arguments["v_cache"])), want)


MADE: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "cache read-only": ({"k_cache": read_only(appending()["k_cache"])}, ValueError, "k_cache is a read-only array; it must be writable"),
    "cache list": ({"v_cache": [0.0]}, TypeError, "v_cache is of type list; it must be"),
    "cache address": ({"k_cache": misaligned(appending()["k_cache"])}, ValueError, "k_cache starts at address"),
    "lengths": ({"cache_seqlens": None}, ValueError, "cache_seqlens is None; with k it must be given, as it says where the new rows go"),
    "negative length": ({"cache_seqlens": -1}, ValueError, "cache_seqlens is -1; it must be from 0 to 2147483647"),
    "table": ({"page_table": np.zeros((2, 10), I32)}, ValueError, "page_table has shape (2, 10), but q has batch 3"),
    "v missing": ({"v": None}, ValueError, "v is None, but k is given; both or neither must be"),
    "interleaved": ({"rotary_interleaved": 1}, TypeError, "rotary_interleaved is 1; it must be True or False"),
    "lse": ({"lse": np.zeros((3, 1, 6), F32)}, ValueError, "lse has shape (3, 1, 6); it must be (3, 6, 1)"),
    "out": ({"out": np.zeros((3, 1, 6, 32), F32)}, ValueError, "out has shape (3, 1, 6, 32); it must be (3, 1, 6, 64)"),
}  # fmt: skip


@pytest.mark.parametrize("row", MADE)
def test_wrong_arguments(row: str) -> None:
    changes, kind, words = MADE[row]
    with pytest.raises(kind) as info:
        plan_with_kvcache(**appending(**changes))
    assert words in str(info.value)
