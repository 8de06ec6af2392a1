"""validate.h: every requirement of flash3.h, with the status and the words of its message."""

from __future__ import annotations

import math

import pytest

from pyflash3._abi import BACKEND_HOST, FLOAT32, Params
from tests.core.problems import ADDRESS, packed, params
from tests.core.surface import validate
from tests.core.test_validate_cache import CACHE

OK, INVALID, UNSUPPORTED, BAD_WORKSPACE, ABI_MISMATCH = 0, 1, 2, 4, 6
SIZE = params().struct_size
TEBI = 2**40

Changes = dict[str, float | None]
Row = tuple[Changes, int, list[str]]
TENSORS = ("q", "k", "v", "out")
DIMS = ("batch", "row", "head")

# What is spoiled, in a dense CUDA call; the status; parts of the message: field, value, what is allowed.
DENSE: list[Row] = [
    ({"struct_size": SIZE - 8}, ABI_MISMATCH, ["struct_size", str(SIZE - 8), str(SIZE)]),
    ({"struct_size": 0}, ABI_MISMATCH, ["struct_size is 0", str(SIZE)]),
    ({"abi_version": 1}, ABI_MISMATCH, ["abi_version is 1", "must be 3"]),
    ({"backend": 2}, INVALID, ["backend is 2", "0 (host) or 1 (CUDA)"]),
    ({"backend": -1}, INVALID, ["backend is -1"]),
    ({"device": -2}, INVALID, ["device is -2", "-1"]),
    ({"dtype": 3}, INVALID, ["dtype is 3", "float16", "bfloat16", "float32"]),
    ({"dtype": -1}, INVALID, ["dtype is -1"]),
    ({"dtype": FLOAT32}, UNSUPPORTED, ["dtype is 2 (float32)", "CUDA"]),
    ({"nheads": 0}, INVALID, ["nheads is 0", "at least 1"]),
    ({"nheads": -8}, INVALID, ["nheads is -8", "at least 1"]),
    ({"nheads_k": 0}, INVALID, ["nheads_k is 0", "at least 1"]),
    ({"nheads_k": 3}, INVALID, ["nheads is 8", "multiple of nheads_k (3)"]),
    ({"nheads_k": 16}, INVALID, ["nheads is 8", "multiple of nheads_k (16)"]),
    ({"head_dim": 60}, INVALID, ["head_dim is 60", "multiple of 8 from 8 to 576"]),
    ({"head_dim": 0}, INVALID, ["head_dim is 0", "multiple of 8"]),
    ({"head_dim": 584}, UNSUPPORTED, ["head_dim is 584", "8 to 576"]),
    ({"head_dim_v": 4}, INVALID, ["head_dim_v is 4", "multiple of 8 from 8 to 512"]),
    ({"head_dim_v": 520}, UNSUPPORTED, ["head_dim_v is 520", "8 to 512"]),
    ({"v": None, "head_dim_v": 72}, INVALID, ["head_dim_v is 72", "at most head_dim (64)", "v is NULL"]),
    ({"out": ADDRESS}, INVALID, ["out is q", "memory of its own"]),
    ({"out": 3 * ADDRESS, "k": 3 * ADDRESS}, INVALID, ["out is k", "memory of its own"]),
    ({"out": 3 * ADDRESS, "v": 3 * ADDRESS}, INVALID, ["out is v", "memory of its own"]),
    ({"batch": -1}, INVALID, ["batch is -1", "at least 0"]),
    ({"seqlen_q": -1}, INVALID, ["seqlen_q is -1", "from 0"]),
    ({"seqlen_q": 2**31}, INVALID, ["seqlen_q is 2147483648", "2147483647"]),
    ({"seqlen_k": -5}, INVALID, ["seqlen_k is -5", "from 0"]),
    ({"seqlen_k": 2**62}, INVALID, ["seqlen_k is", "2147483647"]),
    ({"seqlen_k": 2**30}, INVALID, ["seqlen_k is 1073741824", "at most 1073741823", "2 batch entries"]),
    ({"max_seqlen_q": -1}, INVALID, ["max_seqlen_q is -1"]),
    ({"max_seqlen_k": -1}, INVALID, ["max_seqlen_k is -1"]),
    ({"softmax_scale": math.inf}, INVALID, ["softmax_scale is inf", "finite"]),
    ({"softmax_scale": math.nan}, INVALID, ["softmax_scale is nan", "finite"]),
    ({"softmax_scale": 3e38}, INVALID, ["softmax_scale is 3e+38", "log2(e)"]),
    ({"softcap": -1.0}, INVALID, ["softcap is -1", "at least 0"]),
    ({"softcap": math.inf}, INVALID, ["softcap is inf", "finite"]),
    ({"softcap": math.nan}, INVALID, ["softcap is nan", "finite"]),
    ({"softcap": 1e-40}, INVALID, ["softcap is 1e-40", "softmax_scale (0.125)"]),
    ({"window_left": -2}, INVALID, ["window_left is -2", "-1: unlimited"]),
    ({"window_right": -7}, INVALID, ["window_right is -7", "-1: unlimited"]),
    ({"alibi_slopes": ADDRESS, "alibi_batch_stride": 7}, INVALID, ["alibi_batch_stride is 7", "nheads (8)"]),
    ({"alibi_slopes": ADDRESS, "alibi_batch_stride": -8}, INVALID, ["alibi_batch_stride is -8"]),
    ({"num_splits": -1}, INVALID, ["num_splits is -1", "from 0 to 256"]),
    ({"num_splits": 257}, INVALID, ["num_splits is 257", "from 0 to 256"]),
    ({"sm_margin": -1}, INVALID, ["sm_margin is -1", "at least 0"]),
    ({"num_threads": -1}, INVALID, ["num_threads is -1", "at least 0"]),
    ({"reserved": 1}, INVALID, ["reserved is 1", "0"]),
    ({"lse_head_stride": 99}, INVALID, ["lse_head_stride is 99", "at least 100"]),
    ({"lse_batch_stride": 0}, INVALID, ["lse_batch_stride is 0", "at least 100"]),
    ({"workspace": None}, BAD_WORKSPACE, ["workspace is NULL", "256 bytes"]),
    ({"workspace": ADDRESS + 128}, BAD_WORKSPACE, ["workspace is", "multiple of 256"]),
    ({"workspace_bytes": 255}, BAD_WORKSPACE, ["workspace_bytes is 255", "at least 256"]),
]  # fmt: skip

NULLS: list[Row] = [({name: None}, INVALID, [f"{name} is NULL", "has elements"]) for name in ("q", "k", "out")]

ADDRESSES: list[Row] = [
    ({name: ADDRESS + alignment // 2}, INVALID, [f"{name} is {ADDRESS + alignment // 2}", f"multiple of {alignment}"])
    for names, alignment in ((TENSORS, 16), (("lse", "sinks", "alibi_slopes", "seqused_q", "seqused_k"), 4))
    for name in names
]

STRIDES: list[Row] = [
    ({f"{name}_{dim}_stride": value}, INVALID, [f"{name}_{dim}_stride is {value}", allowed])
    for name in TENSORS
    for dim in DIMS
    for value, allowed in ((12, "multiple of 8 elements"), (-64, "at least 0"), (TEBI, f"below {TEBI // 2}"))
]

OUT_STRIDES: list[Row] = [
    ({f"out_{dim}_stride": 0}, INVALID, [f"out_{dim}_stride is 0", "other than 0"]) for dim in DIMS
]

PACKED: list[Row] = [
    ({"total_q": -1}, INVALID, ["total_q is -1", "from 0"]),
    ({"total_q": 2**31}, INVALID, ["total_q is 2147483648", "2147483647"]),
    ({"total_k": 2**31}, INVALID, ["total_k is 2147483648", "2147483647"]),
    ({"cu_seqlens_q": ADDRESS + 2}, INVALID, ["cu_seqlens_q is", "multiple of 4"]),
    ({"cu_seqlens_k": ADDRESS + 2}, INVALID, ["cu_seqlens_k is", "multiple of 4"]),
    ({"k": None}, INVALID, ["k is NULL"]),
    ({"q_row_stride": 4}, INVALID, ["q_row_stride is 4", "multiple of 8"]),
    ({"lse_head_stride": 199}, INVALID, ["lse_head_stride is 199", "at least 200"]),
    ({"batch": 1000, "workspace_bytes": 256}, BAD_WORKSPACE, ["workspace_bytes is 256", "at least 4352"]),
]

HOST: list[Row] = [
    ({"q": ADDRESS + 1}, INVALID, ["q is", "multiple of 2"]),
    ({"dtype": FLOAT32, "k": ADDRESS + 2}, INVALID, ["k is", "multiple of 4"]),
    ({"v": None, "head_dim_v": 72}, INVALID, ["head_dim_v is 72", "v is NULL"]),
    ({"out_row_stride": 0}, INVALID, ["out_row_stride is 0", "other than 0"]),
    ({"k_row_stride": -TEBI}, INVALID, ["k_row_stride is"]),
]


def check(p: Params, status: int, words: list[str]) -> None:
    got, message = validate(p)
    assert got == status, message
    for word in words:
        assert word in message
    assert message.count("\n") == 0


@pytest.mark.parametrize(("changes", "status", "words"), DENSE + NULLS + ADDRESSES + STRIDES + OUT_STRIDES)
def test_dense(changes: Changes, status: int, words: list[str]) -> None:
    check(params(**changes), status, words)


@pytest.mark.parametrize(("changes", "status", "words"), PACKED)
def test_packed(changes: Changes, status: int, words: list[str]) -> None:
    check(packed(**changes), status, words)


@pytest.mark.parametrize(("changes", "status", "words"), HOST)
def test_host(changes: Changes, status: int, words: list[str]) -> None:
    check(params(backend=BACKEND_HOST, **changes), status, words)


ALLOWED = [
    params(),
    packed(),
    packed(cu_seqlens_k=None, seqlen_k=300, k_batch_stride=0, v_batch_stride=0),  # one set of keys for all
    params(window_left=2**63 - 1, window_right=2**63 - 1),
    params(softmax_scale=-1.0),
    params(softmax_scale=0.0, softcap=30.0),
    params(num_splits=1, sm_margin=200, num_threads=10**6),
    params(num_splits=256, workspace_bytes=2**40),
    params(head_dim=8, head_dim_v=256, lse=None, lse_head_stride=0, lse_batch_stride=0),
    params(alibi_slopes=ADDRESS, alibi_batch_stride=8, sinks=ADDRESS),
    params(alibi_slopes=ADDRESS, alibi_batch_stride=0),
    params(alibi_batch_stride=-3),  # nothing reads it
    params(batch=0, workspace=None, workspace_bytes=0, q=None, k=None, v=None, out=None),
    packed(batch=0, total_q=0, total_k=0, workspace=None, workspace_bytes=0, q=None, k=None, v=None, out=None),
    params(seqlen_q=0, q=None, out=None),
    params(seqlen_k=0, k=None, v=None),
    params(seqlen_k=0, k=None, v=None, head_dim_v=256),
    params(v=None, v_row_stride=-3, v_head_stride=TEBI),  # the strides of a v that is not given
    params(v=None, head_dim=576, head_dim_v=512, workspace_bytes=2**40),
    packed(v=None, head_dim_v=64, v_batch_stride=1),
    params(batch=1, q_batch_stride=-1, k_batch_stride=3, out_batch_stride=0, lse_batch_stride=0),  # extent 1
    params(nheads=1, nheads_k=1, q_head_stride=5, k_head_stride=-1, out_head_stride=0),
    params(batch=1, seqlen_k=2**31 - 1, workspace_bytes=2**40),
    packed(q_batch_stride=-1, k_batch_stride=7, out_batch_stride=0, lse_batch_stride=-9),
    params(backend=BACKEND_HOST, workspace=None, workspace_bytes=0, num_splits=256),
    params(backend=BACKEND_HOST, dtype=FLOAT32, q=ADDRESS + 4, device=-5),
    params(backend=BACKEND_HOST, q_row_stride=-37, k_head_stride=0, out_row_stride=-512),
]  # fmt: skip


@pytest.mark.parametrize("p", ALLOWED)
def test_allowed(p: Params) -> None:
    assert validate(p) == (OK, "")


def test_every_field_is_checked_or_free() -> None:
    """A new field of the struct must be given a row above, or a name in this list with a reason."""
    rows = DENSE + NULLS + ADDRESSES + STRIDES + PACKED + CACHE
    checked = {name for changes, _, _ in rows for name in changes}
    free: set[str] = set()  # fields of which any value is allowed
    assert {field[0] for field in Params._fields_} - checked == free
