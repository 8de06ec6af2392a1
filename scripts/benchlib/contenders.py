"""pyflash3 and its peers as calls without arguments on the same memory.

The peers need torch; without it pyflash3 runs alone. pyflash3 gets CuPy arrays over the memory of the torch tensors and
is called through its public functions.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import cupy
import numpy as np

import pyflash3
from pyflash3.tools.bench.records import OURS as OURS

from .peers import Peers as Peers
from .peers import reason
from .shapes import Shape
from .timing import Calls

SOFTCAP = 30.0
# PyTorch's other backends, which take part where FlashAttention-3 and cuDNN end; those without a kernel say so.
REPEATED = "PyTorch efficient, KV heads repeated"
WIDE_BACKENDS = {
    "PyTorch flash": "FLASH_ATTENTION", "PyTorch efficient": "EFFICIENT_ATTENTION", REPEATED: "EFFICIENT_ATTENTION",
    "PyTorch math": "MATH",
}  # fmt: skip


@dataclass
class Problem:
    """The calls of one shape, and what is needed to see that they agree."""

    arrays: list[Any]  # q, k, v as CuPy arrays
    calls: Calls
    outs: dict[str, Any]  # contender -> CuPy array of its result, made by a first call
    unavailable: dict[str, str]  # peer -> why it does not take part


def prepare(shape: Shape, dtype: str, peers: Peers) -> Problem:
    """Random normal inputs, and each contender called once."""
    total, nheads, nheads_k, d = sum(shape.lengths), shape.nheads, shape.nheads_k, shape.head_dim
    lead = (total,) if shape.packed else (len(shape.lengths), shape.lengths[0])
    shapes = [(*lead, nheads, d), (*lead, nheads_k, d), (*lead, nheads_k, shape.dim_v)]
    if peers.torch is None:
        arrays = [cupy_normal(s, dtype) for s in shapes]
        tensors = None
    else:
        kind = getattr(peers.torch, dtype)
        tensors = [peers.torch.randn(*s, device="cuda", dtype=kind) for s in shapes]
        arrays = [cupy.from_dlpack(x) for x in tensors]
    cu_seqlens = np.concatenate([[0], np.cumsum(shape.lengths)]).astype(np.int32)
    calls: Calls = {OURS: _ours(shape, arrays, cu_seqlens)}
    outs: dict[str, Any] = {OURS: first(calls[OURS]())}
    unavailable: dict[str, str] = {}
    others = {} if tensors is None else _torch_calls(shape, tensors, cu_seqlens, peers)
    for name, call in others.items():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                outs[name] = cupy.from_dlpack(first(call()))
            except RuntimeError as error:  # how torch says that a peer has no kernel for a shape
                unavailable[name] = reason(error, [str(warning.message) for warning in said])
            else:
                calls[name] = call
    return Problem(arrays, calls, outs, unavailable)


def first(result: Any) -> Any:
    """The output of a call that may also give a log-sum-exp."""
    return result[0] if isinstance(result, (tuple, list)) else result


def cupy_normal(shape: tuple[int, ...], dtype: str) -> Any:
    """Random normal numbers of a dtype that CuPy itself does not draw."""
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16
    out = cupy.empty(shape, kind)
    for i in range(shape[0]) if len(shape) == 4 else [slice(None)]:  # bounds the float32 copy
        out[i] = cupy.random.standard_normal(out[i].shape, dtype=np.float32).astype(kind)
    return out


def _ours(shape: Shape, arrays: list[Any], cu_seqlens: Any) -> Any:
    options: dict[str, Any] = {"causal": shape.causal, "window_size": shape.window, "return_lse": True}
    if "softcap" in shape.options:
        options["softcap"] = SOFTCAP
    if "alibi" in shape.options:
        options["alibi_slopes"] = cupy.asarray(2.0 ** -np.linspace(1, 8, shape.nheads), np.float32)
    if "sinks" in shape.options:
        options["sinks"] = cupy.zeros(shape.nheads, np.float32)
    q, k, v = arrays
    if not shape.packed:
        return lambda: pyflash3.flash_attn_func(q, k, v, **options)
    cu, longest = cupy.asarray(cu_seqlens), max(shape.lengths)
    return lambda: pyflash3.flash_attn_varlen_func(q, k, v, cu, cu, longest, longest, **options)


def _torch_calls(shape: Shape, tensors: list[Any], cu_seqlens: Any, peers: Peers) -> Calls:
    calls: Calls = {}
    q, k, v = tensors
    if peers.flash3 is not None and not {"alibi", "sinks"} & set(shape.options):
        options: dict[str, Any] = {"is_causal": shape.causal, "num_splits": 1}
        if shape.window != (-1, -1):
            # FlashAttention-3 takes a causal mask with a window as a window.
            left, right = shape.window
            options |= {"is_causal": False, "window_size_left": left, "window_size_right": 0 if shape.causal else right}
        if "softcap" in shape.options:
            options["softcap"] = SOFTCAP
        if shape.packed:
            cu = peers.torch.from_numpy(cu_seqlens).cuda()
            options |= {"cu_seqlens_q": cu, "cu_seqlens_k": cu}
            options |= {"max_seqlen_q": max(shape.lengths), "max_seqlen_k": max(shape.lengths)}
        calls["FlashAttention-3"] = lambda: peers.flash3(q, k, v, **options)
    if not shape.packed and not shape.options and shape.window == (-1, -1):
        backends = {"cuDNN": "CUDNN_ATTENTION"} | (WIDE_BACKENDS if shape.head_dim > 256 else {})
        for name, backend in backends.items():
            times = shape.nheads // shape.nheads_k if name == REPEATED else 1
            calls[name] = _sdpa(peers.torch, backend, q, _repeated(k, times), _repeated(v, times), shape.causal)
    return calls


def _repeated(x: Any, times: int) -> Any:
    """Each KV head several times, for a backend that has no GQA: not timed, and so in its favour."""
    return x if times == 1 else x.repeat_interleave(times, dim=2)


def _sdpa(torch: Any, backend: str, q: Any, k: Any, v: Any, causal: bool) -> Any:
    attention = torch.nn.functional.scaled_dot_product_attention
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    gqa = q.shape[2] != k.shape[2]

    def call() -> Any:
        with torch.nn.attention.sdpa_kernel(getattr(torch.nn.attention.SDPBackend, backend)):
            return attention(*heads_first, is_causal=causal, enable_gqa=gqa).transpose(1, 2)

    return call


def largest_difference(problem: Problem) -> dict[str, float]:
    """max|ours - peer's| over the last entry of the batch, or all of a packed result."""
    ours = problem.outs[OURS]
    at = slice(None) if ours.ndim == 3 else slice(-1, None)
    mine = ours[at].astype(np.float32)
    return {
        name: float(cupy.abs(mine - out[at].astype(np.float32)).max())
        for name, out in problem.outs.items()
        if name != OURS
    }


def free_memory(peers: Peers) -> None:
    """Gives what earlier shapes held back to CUDA."""
    cupy.get_default_memory_pool().free_all_blocks()
    if peers.torch is not None:
        peers.torch.cuda.empty_cache()
