"""validate.h on the cache fields of flash3_params, and all of flash3_combine_params."""

from __future__ import annotations

import pytest

from pyflash3._abi import BACKEND_CUDA, FLOAT32, CombineParams, Params
from tests.core.problems import ADDRESS, cached, combined, packed
from tests.core.surface import validate, validate_combine

OK, INVALID, UNSUPPORTED, ABI_MISMATCH = 0, 1, 2, 6
TEBI = 2**40

Changes = dict[str, float | None]
Row = tuple[Changes, int, list[str]]


def row(name: str, value: float | None, *words: str) -> Row:
    return {name: value}, INVALID, [f"{name} is {'NULL' if value is None else value}", *words]


# What is spoiled in a host call with a paged cache, new rows and rotary embedding; status; parts of the message.
CACHE: list[Row] = [
    ({"batch_cache": 0, "cache_batch_idx": ADDRESS}, INVALID, ["batch_cache is 0", "at least 1"]),
    ({"page_size": 0}, INVALID, ["page_size is 0", "at least 1"]),
    ({"num_pages": 0}, INVALID, ["num_pages is 0", "at least 1"]),
    ({"max_pages": 0}, INVALID, ["max_pages is 0", "at least 1"]),
    ({"num_pages": 2**28}, INVALID, ["num_pages is 268435456", "at most 134217727", "pages of 16 rows"]),
    ({"max_pages": 2**28}, INVALID, ["max_pages is 268435456", "at most 134217727"]),
    ({"page_table_batch_stride": -1}, INVALID, ["page_table_batch_stride is -1", "at least 0"]),
    ({"page_table_batch_stride": TEBI}, INVALID, ["page_table_batch_stride is", "below 2^40"]),
    ({"v_new": None}, INVALID, ["v_new is NULL", "since k_new is"]),
    ({"k_new": None}, INVALID, ["k_new is NULL", "since v_new is"]),
    ({"v": None}, INVALID, ["v_new is given", "NULL, since v is"]),
    ({"v": None, "v_new": None, "head_dim_v": 72}, INVALID, ["head_dim_v is 72", "at most head_dim (64)"]),
    ({"seqused_k": None}, INVALID, ["seqused_k is NULL", "given with k_new"]),
    ({"seqlen_k_new": -1}, INVALID, ["seqlen_k_new is -1", "from 0"]),
    ({"cu_seqlens_k_new": ADDRESS, "total_k_new": 2**31}, INVALID, ["total_k_new is 2147483648", "2147483647"]),
    ({"rotary_sin": None}, INVALID, ["rotary_sin is NULL", "since rotary_cos is"]),
    ({"rotary_cos": None}, INVALID, ["rotary_cos is NULL", "since rotary_sin is"]),
    ({"k_new": None, "v_new": None, "seqused_k": None}, INVALID, ["rotary_seqlens is NULL", "unless seqused_k is"]),
    ({"rotary_dim": 0}, INVALID, ["rotary_dim is 0", "multiple of 16 from 16 to head_dim (64)"]),
    ({"rotary_dim": 24}, INVALID, ["rotary_dim is 24", "multiple of 16"]),
    ({"rotary_dim": 80}, INVALID, ["rotary_dim is 80", "head_dim (64)"]),
    ({"seqlen_rotary": 0}, INVALID, ["seqlen_rotary is 0", "from 1"]),
    ({"rotary_interleaved": 2}, INVALID, ["rotary_interleaved is 2", "0 or 1"]),
    ({"k_batch_stride": 0}, INVALID, ["k_batch_stride is 0", "since its rows are written"]),
    ({"v_row_stride": 0}, INVALID, ["v_row_stride is 0", "since its rows are written"]),
    ({"k": None}, INVALID, ["k is NULL", "has elements"]),
    *[
        row(name, ADDRESS + 2, "multiple of 4")
        for name in ("page_table", "cache_batch_idx", "cache_leftpad", "cu_seqlens_k_new", "rotary_seqlens")
    ],
    *[
        row(name, ADDRESS + 1, "multiple of 2")
        for name in ("k_new", "v_new", "rotary_cos", "rotary_sin")
    ],
    *[
        row(f"{name}_stride", TEBI, f"below {TEBI // 2}")
        for name in (
            *[f"{x}_new_{dim}" for x in "kv" for dim in ("batch", "row", "head")], "rotary_cos_row", "rotary_sin_row",
        )
    ],
]  # fmt: skip
CACHE = [({"batch_cache": 2} | changes, status, words) for changes, status, words in CACHE]

GIVEN = ("page_table", "cache_batch_idx", "cache_leftpad", "k_new", "v_new", "rotary_cos", "rotary_sin")


def check(got: tuple[int, str], status: int, words: list[str]) -> None:
    assert got[0] == status, got
    for word in words:
        assert word in got[1]
    assert got[1].count("\n") == 0


@pytest.mark.parametrize(("changes", "status", "words"), CACHE)
def test_cache(changes: Changes, status: int, words: list[str]) -> None:
    check(validate(cached(**changes)), status, words)


@pytest.mark.parametrize("name", GIVEN)
def test_packed_keys_are_no_cache(name: str) -> None:
    got = validate(packed(**{"backend": 0, name: ADDRESS}))
    check(got, INVALID, [f"{name} is given; it must be NULL with cu_seqlens_k, whose keys are packed"])


ALLOWED = [
    cached(),
    cached(backend=BACKEND_CUDA, workspace_bytes=2**40),
    cached(backend=BACKEND_CUDA, page_size=1, num_splits=256, workspace_bytes=2**40),
    cached(cu_seqlens_q=ADDRESS, total_q=200, lse_head_stride=200),
    cached(cu_seqlens_k_new=ADDRESS, total_k_new=17, k_new_batch_stride=0, v_new_batch_stride=-1),
    cached(k_new=None, v_new=None, k_row_stride=0),
    cached(rotary_cos=None, rotary_sin=None, rotary_dim=7, seqlen_rotary=-1, rotary_interleaved=9),
    cached(rotary_interleaved=1, rotary_dim=64, rotary_seqlens=ADDRESS + 4, rotary_cos_row_stride=-32),
    cached(seqlen_k_new=0),
    cached(v=None, v_new=None, v_row_stride=0, v_new_row_stride=TEBI, workspace_bytes=2**40),
    cached(page_table=None, page_size=-1, num_pages=-1, max_pages=-1, seqlen_k=320),
    cached(cache_batch_idx=ADDRESS, batch_cache=7, cache_leftpad=ADDRESS, page_table_batch_stride=0),
    cached(batch=0, q=None, k=None, v=None, out=None, k_new=None, v_new=None, num_splits=256),
    cached(page_size=1, num_pages=2**31 - 1, max_pages=2**31 - 1),
    cached(page_size=2**31 - 1, num_pages=1, max_pages=1),
]


@pytest.mark.parametrize("p", ALLOWED)
def test_allowed(p: Params) -> None:
    assert validate(p) == (OK, "")


def test_the_rows_of_a_cache_have_the_entries_of_the_cache() -> None:
    dense: Changes = {"page_table": None, "seqlen_k": 320, "cache_batch_idx": ADDRESS}
    check(validate(cached(**dense, batch_cache=2**24)), INVALID, ["seqlen_k is 320", "16777216 batch entries"])


TENSORS = ("out_partial", "lse_partial", "out")


def on_cuda(**changes: float | None) -> Changes:
    return {"backend": BACKEND_CUDA, **changes}


COMBINE: list[Row] = [
    ({"struct_size": 8}, ABI_MISMATCH, ["struct_size is 8", "flash3_combine_params"]),
    ({"abi_version": 1}, ABI_MISMATCH, ["abi_version is 1"]),
    ({"backend": 2}, INVALID, ["backend is 2"]),
    ({"backend": BACKEND_CUDA, "device": -2}, INVALID, ["device is -2"]),
    ({"dtype": 3}, INVALID, ["dtype is 3"]),
    ({"num_splits": 0}, INVALID, ["num_splits is 0", "from 1 to 256"]),
    ({"num_splits": 257}, INVALID, ["num_splits is 257", "from 1 to 256"]),
    ({"batch": -1}, INVALID, ["batch is -1"]),
    ({"nheads": 0}, INVALID, ["nheads is 0"]),
    ({"head_dim": 0}, INVALID, ["head_dim is 0"]),
    ({"num_threads": -1}, INVALID, ["num_threads is -1"]),
    ({"seqlen": -1}, INVALID, ["seqlen is -1"]),
    ({"seqlen": 2**31 - 1}, INVALID, ["seqlen is 2147483647", "2 batch entries"]),
    *[row(name, None, "has elements") for name in TENSORS],
    *[row(name, ADDRESS + 1) for name in (*TENSORS, "lse")],
    *[
        row(f"{name}_{dim}_stride", TEBI)
        for name, dims in (
            ("out_partial", "split batch row head"), ("lse_partial", "split batch row head"),
            ("out", "batch row head"), ("lse", "batch row head"),
        )
        for dim in dims.split()
    ],
    ({"out_head_stride": 0}, INVALID, ["out_head_stride is 0", "written"]),
    ({"lse_row_stride": 0}, INVALID, ["lse_row_stride is 0", "written"]),
    *[
        (on_cuda(**{name: value}), INVALID, [f"{name} is {value}", *words])
        for name, value, *words in (
            ("out_partial", ADDRESS + 4, "multiple of 16"), ("out", ADDRESS + 8, "multiple of 16"),
            ("out_partial_row_stride", 258, "multiple of 4", "16 bytes"),
            ("out_head_stride", 36, "multiple of 8", "16 bytes"),
            ("out_partial_split_stride", -51200, "at least 0 on the CUDA backend"),
        )
    ],
]  # fmt: skip


@pytest.mark.parametrize(("changes", "status", "words"), COMBINE)
def test_combine(changes: Changes, status: int, words: list[str]) -> None:
    check(validate_combine(combined(**changes)), status, words)


@pytest.mark.parametrize(
    "p",
    [
        combined(),
        combined(dtype=FLOAT32, lse=None, lse_row_stride=0),
        combined(num_splits=256, head_dim=512, device=-7),
        combined(batch=0, out_partial=None, lse_partial=None, out=None, lse=None),
        combined(out_partial_split_stride=0, lse_partial_row_stride=-3),
        combined(backend=BACKEND_CUDA),
        combined(backend=BACKEND_CUDA, dtype=FLOAT32, head_dim=7, lse_partial=ADDRESS + 4, lse_head_stride=101),
    ],
)
def test_combine_allowed(p: CombineParams) -> None:
    assert validate_combine(p) == (OK, "")


def test_every_field_of_combine_is_checked() -> None:
    checked = {name for changes, _, _ in COMBINE for name in changes}
    assert {field[0] for field in CombineParams._fields_} == checked
