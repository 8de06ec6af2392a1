"""Kinds of arrays: views of any stride, out=, CUDA objects of other frameworks, and what is refused."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pyflash3
from tests.gpu.machine import bits, int32, normal, poisoned, same_bits, wait, xp
from tests.gpu.problem import Problem, check, expected, judge, make

DENSE = Problem(lengths=((150, 203),) * 2, nheads_k=2, head_dim=128, causal=True)
VARLEN = Problem(lengths=((150, 203), (90, 80), (1, 5)), packed=True, nheads_k=2, head_dim=128, causal=True)


def _transposed(x: Any) -> Any:
    """(b, s, h, d) in the memory of (b, h, s, d)."""
    return xp.ascontiguousarray(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)


def _row_first(x: Any) -> Any:
    """(b, s, h, d) in the memory of (s, b, h, d)."""
    return xp.ascontiguousarray(x.transpose(1, 0, 2, 3)).transpose(1, 0, 2, 3)


def _every_other_row(x: Any) -> Any:
    store = poisoned((x.shape[0], 2 * x.shape[1], *x.shape[2:]), "bfloat16")
    store[:, ::2] = x
    return store[:, ::2]


def _wider_heads(x: Any) -> Any:
    store = poisoned((*x.shape[:-1], x.shape[-1] + 24), "bfloat16")
    store[..., 8:-16] = x
    return store[..., 8:-16]


def _more_heads(x: Any) -> Any:
    store = poisoned((*x.shape[:2], x.shape[2] + 3, x.shape[3]), "bfloat16")
    store[:, :, 1:-2] = x
    return store[:, :, 1:-2]


VIEWS = [_transposed, _row_first, _every_other_row, _wider_heads, _more_heads]


@pytest.mark.parametrize("dim", [64, 72, 128, 256])
@pytest.mark.parametrize("view", VIEWS)
def test_views_need_no_copy(view: Callable[[Any], Any], dim: int) -> None:
    inputs = make(DENSE.with_options({"head_dim": dim}))
    want, want_lse = inputs.call()
    inputs.q, inputs.k, inputs.v = view(inputs.q), view(inputs.k), view(inputs.v)
    out, lse = inputs.call()
    wait()
    assert same_bits(out, want)
    assert same_bits(lse, want_lse)


@pytest.mark.parametrize("dim", [64, 72, 128, 256])
@pytest.mark.parametrize("view", VIEWS)
def test_out_may_be_a_view(view: Callable[[Any], Any], dim: int) -> None:
    inputs = make(DENSE.with_options({"head_dim": dim}))
    want, _ = inputs.call()
    target = view(poisoned(inputs.out_shape(), "bfloat16"))
    base = target if target.base is None else target.base
    poison = int((bits(base) == 0x7FFF).sum())
    out, _ = inputs.call(out=target)
    wait()
    assert out is target
    assert same_bits(out, want)
    assert int((bits(base) == 0x7FFF).sum()) == poison - out.size, "something beside the view is written"


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "varlen"])
def test_out_is_written_and_returned(packed: bool) -> None:
    inputs = make(VARLEN if packed else DENSE)
    given = poisoned(inputs.out_shape(), "bfloat16")
    out, _ = inputs.call(out=given)
    new = inputs.function()(inputs.q, inputs.k, inputs.v, **inputs.lengths, **inputs.options())
    wait()
    assert out is given
    assert same_bits(new, given)


@pytest.mark.parametrize("causal", [False, True])
def test_k_and_v_broadcast_over_the_batch(causal: bool) -> None:
    problem = Problem(lengths=((150, 203),) * 4, nheads_k=2, head_dim=128, causal=causal)
    inputs = make(problem)
    one_k, one_v = inputs.k[:1], inputs.v[:1]
    inputs.k, inputs.v = (xp.broadcast_to(x, inputs.k.shape) for x in (one_k, one_v))
    out, lse = inputs.call()
    wait()
    judge(problem, out, lse, expected(inputs))


def test_qkv_in_one_array() -> None:
    qkv = normal((2, 203, 3, 6, 64), "bfloat16", 1)
    q, k, v = (xp.ascontiguousarray(qkv[:, :, i]) for i in range(3))
    want = pyflash3.flash_attn_func(q, k, v, causal=True)
    out = pyflash3.flash_attn_qkvpacked_func(qkv, causal=True)
    wait()
    assert same_bits(out, want)


@pytest.mark.parametrize(
    "hints", [(1, 1), (2, 10**6), (2**31 - 1, 2**31 - 1), (0, 0), (150, 203), (None, None)], ids=str
)
def test_wrong_hints_change_rounding_at_most(hints: tuple[int | None, int | None]) -> None:
    """They may choose another kernel, which is held to the same rule."""
    inputs = make(VARLEN)
    out, lse = inputs.call(max_seqlen_q=hints[0], max_seqlen_k=hints[1])
    again, lse_again = inputs.call(max_seqlen_q=hints[0], max_seqlen_k=hints[1])
    wait()
    judge(VARLEN, out, lse, expected(inputs))
    assert same_bits(out, again)
    assert same_bits(lse, lse_again)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "varlen"])
@pytest.mark.parametrize("sm_margin", [1, 100, 131, 1000])
def test_sm_margin_changes_nothing(sm_margin: int, packed: bool) -> None:
    inputs = make(VARLEN if packed else DENSE)
    want, _ = inputs.call()
    out, _ = inputs.call(sm_margin=sm_margin)
    wait()
    assert same_bits(out, want)


@pytest.mark.parametrize("scale", [0.0, -0.3, 1.0, 1e-6])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"softcap": 3.0}], ids=str)
def test_softmax_scale(options: dict[str, Any], scale: float) -> None:
    problem = Problem("float16", ((70, 90),), nheads_k=2, head_dim=64, **options)
    inputs = make(problem)
    out, lse = inputs.call(softmax_scale=scale)
    wait()
    judge(problem, out, lse, expected(inputs, scale))


@pytest.mark.parametrize("head_dim", [64, 96, 128, 192, 256, 512])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_a_negative_scale_under_a_softcap(head_dim: int, causal: bool) -> None:
    """The largest score is then the smallest product."""
    problem = Problem("bfloat16", ((300, 900),), nheads_k=2, head_dim=head_dim, causal=causal, softcap=60.0)
    inputs = make(problem)
    out, lse = inputs.call(softmax_scale=-0.1)
    wait()
    judge(problem, out, lse, expected(inputs, -0.1))


@pytest.mark.parametrize("dims", [(64, 128), (128, 64), (192, 128), (8, 256), (256, 8)], ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "varlen"])
def test_head_dim_of_v(packed: bool, dims: tuple[int, int]) -> None:
    base = VARLEN if packed else DENSE
    check(base.with_options({"head_dim": dims[0], "head_dim_v": dims[1]}))


def _torch() -> Any:
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        pytest.skip("torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    return torch


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_torch_tensors(cuda: Any, dtype: str) -> None:
    torch = _torch()
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    q, k, v = (torch.randn(2, 200, heads, 128, device="cuda", dtype=kind) for heads in (6, 2, 2))
    target = torch.full_like(q, float("nan"))
    torch.cuda.synchronize()
    out, lse = pyflash3.flash_attn_func(q, k, v, causal=True, return_lse=True)
    same = pyflash3.flash_attn_func(q, k, v, causal=True, out=target)
    wait()
    assert same is target
    assert isinstance(out, cuda.ndarray)
    assert isinstance(lse, cuda.ndarray)
    assert torch.equal(torch.from_dlpack(out), target)
    mine = [cuda.from_dlpack(x) for x in (q, k, v)]
    assert mine[0].data.ptr == q.data_ptr()
    assert same_bits(pyflash3.flash_attn_func(mine[0], mine[1], mine[2], causal=True), out)


def test_torch_views_and_lengths(cuda: Any) -> None:
    torch = _torch()
    q = torch.randn(2, 6, 200, 64, device="cuda", dtype=torch.bfloat16)
    cu = torch.tensor([0, 150, 400], device="cuda", dtype=torch.int32)
    torch.cuda.synchronize()
    dense = pyflash3.flash_attn_func(*(q.transpose(1, 2),) * 3)
    packed = q.transpose(1, 2).reshape(400, 6, 64)
    torch.cuda.synchronize()
    out = pyflash3.flash_attn_varlen_func(packed, packed, packed, cu, cu, 250, 250, causal=True)
    mine = cuda.from_dlpack(packed)
    starts = int32([0, 150, 400])
    want = pyflash3.flash_attn_varlen_func(mine, mine, mine, starts, starts, 250, 250, causal=True)
    wait()
    assert dense.shape == (2, 200, 6, 64)
    assert same_bits(out, want)


def test_a_torch_tensor_with_a_gradient_is_refused(cuda: Any) -> None:
    torch = _torch()
    q = torch.randn(1, 8, 1, 64, device="cuda", dtype=torch.float16, requires_grad=True)
    assert cuda is not None
    with pytest.raises(TypeError, match="q is a tensor that requires a gradient"):
        pyflash3.flash_attn_func(q, q, q)


@pytest.mark.parametrize("name", ["q", "k", "v", "out", "alibi_slopes", "sinks"])
def test_host_and_device_mixed(cuda: Any, name: str) -> None:
    inputs = make(DENSE)
    arguments = {
        "q": inputs.q,
        "k": inputs.k,
        "v": inputs.v,
        "out": poisoned(inputs.out_shape(), "bfloat16"),
        "alibi_slopes": cuda.ones(6, np.float32),
        "sinks": cuda.ones(6, np.float32),
    }
    out = arguments["out"]
    arguments[name] = cuda.asnumpy(arguments[name])
    with pytest.raises(ValueError, match="all arrays must be in one place"):
        pyflash3.flash_attn_func(**arguments)
    wait()
    assert same_bits(out, poisoned(inputs.out_shape(), "bfloat16"))


@pytest.mark.parametrize("name", ["cu_seqlens_q", "cu_seqlens_k"])
def test_lengths_on_the_host_are_refused(cuda: Any, name: str) -> None:
    inputs = make(VARLEN)
    inputs.lengths[name] = cuda.asnumpy(inputs.lengths[name])
    with pytest.raises(ValueError, match=name):
        inputs.call()


def test_float32_is_refused_on_the_gpu(cuda: Any) -> None:
    x = cuda.zeros((1, 8, 1, 64), np.float32)
    with pytest.raises(TypeError, match="float32"):
        pyflash3.flash_attn_func(x, x, x)


def test_misaligned_memory_is_refused(cuda: Any) -> None:
    store = cuda.zeros(8 * 64 + 8, np.float16)
    x = store[1 : 1 + 8 * 64].reshape(1, 8, 1, 64)
    with pytest.raises(ValueError, match="multiple of 16 bytes"):
        pyflash3.flash_attn_func(x, x, x)
    narrow = cuda.zeros((1, 8, 1, 68), np.float16)[..., :64]
    with pytest.raises(ValueError, match="strides"):
        pyflash3.flash_attn_func(narrow, narrow, narrow)


CHECKED = [
    ("cu_seqlens_q", [0, 150, 140, 241], "cu_seqlens_q falls from 150 to 140"),
    ("cu_seqlens_q", [1, 150, 240, 241], "cu_seqlens_q starts at 1"),
    ("cu_seqlens_k", [0, 203, 283, 289], "cu_seqlens_k ends at 289; it must end at 288"),
    ("cu_seqlens_k", [0, -1, 283, 288], "cu_seqlens_k falls"),
    ("seqused_q", [150, 91, 1], r"seqused_q\[1\] is 91"),
    ("seqused_k", [203, 80, -1], r"seqused_k\[2\] is -1"),
]


@pytest.mark.parametrize(("name", "values", "words"), CHECKED)
def test_pyflash3_check_reads_the_lengths(
    monkeypatch: pytest.MonkeyPatch, name: str, values: list[int], words: str
) -> None:
    inputs = make(VARLEN)
    want, _ = inputs.call()
    monkeypatch.setenv("PYFLASH3_CHECK", "1")
    out, _ = inputs.call()
    wait()
    assert same_bits(out, want)
    inputs.lengths[name] = int32(values)
    with pytest.raises(ValueError, match=words):
        inputs.call()
