"""Kinds of calls: a checked problem with its flash3_params, which lack nothing but addresses."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from ctypes import sizeof
from dataclasses import dataclass

from . import _abi
from ._cache import CACHE_ARRAYS, argument_name
from ._lib import Library, library
from ._problem import ARRAYS, AttnProblem, Request
from ._specs import BFLOAT16, FLOAT16, FLOAT32, HOST

DTYPE_CODES = {FLOAT16: _abi.FLOAT16, BFLOAT16: _abi.BFLOAT16, FLOAT32: _abi.FLOAT32}
_PLACEHOLDER = 4096  # stands for an address wherever only "not NULL" is asked


@dataclass(frozen=True, slots=True)
class Prepared:
    """A kind of call: everything that calls with arrays of the same specs and the same options share."""

    problem: AttnProblem
    library: Library
    template: bytes  # flash3_params without addresses
    workspace_bytes: int
    out_bytes: int


@functools.lru_cache(maxsize=1024)
def prepared(request: Request) -> Prepared:
    """The kind of a request. Raises what AttnProblem.of and the library raise for a wrong one."""
    problem = AttnProblem.of(request)
    lib = library()
    params = _params(problem, request)
    size = lib.workspace_size(params)
    out_bytes = math.prod(problem.out_shape) * problem.dtype.itemsize
    params.workspace_bytes = size
    return Prepared(problem, lib, bytes(params), size, out_bytes)


def _params(p: AttnProblem, request: Request) -> _abi.Params:
    params = _abi.Params(
        struct_size=sizeof(_abi.Params),
        abi_version=_abi.ABI_VERSION,
        backend=_abi.BACKEND_HOST if p.device == HOST else _abi.BACKEND_CUDA,
        device=p.device,
        dtype=DTYPE_CODES[p.dtype],
        seqlen_q=p.rows_q,
        seqlen_k=p.rows_k,
        total_q=p.rows_q,
        total_k=p.rows_k,
        lse_batch_stride=0 if p.packed else p.nheads * p.rows_q,
        lse_head_stride=p.rows_q,
    )
    same = "nheads nheads_k head_dim head_dim_v batch max_seqlen_q max_seqlen_k softmax_scale softcap window_left"
    for name in [*same.split(), "window_right", "alibi_batch_stride", "num_splits", "sm_margin"]:
        setattr(params, name, getattr(p, name))
    for name in ("q", "k", "v", "out"):
        for part, stride in zip(("batch", "row", "head"), getattr(p, f"{name}_strides"), strict=True):
            setattr(params, f"{name}_{part}_stride", stride)
    params.out = _PLACEHOLDER
    for name in ARRAYS:
        if getattr(request, name) is not None:
            setattr(params, name, _PLACEHOLDER)
    if request.cache is not None and p.cache is not None:
        for name in CACHE_ARRAYS:
            if getattr(request.cache, name) is not None:
                setattr(params, name, _PLACEHOLDER)
        for name, value in p.cache._asdict().items():
            setattr(params, name, value)
    return params


def fill(kind: Prepared, addresses: list[int | None], lse: int | None, workspace: int) -> _abi.Params:
    """The parameters of one call; addresses are in the order of Request's arrays, then CacheRequest's if it has any."""
    of_cache = None
    if len(addresses) > len(ARRAYS):
        addresses, of_cache = addresses[: len(ARRAYS)], addresses[len(ARRAYS) :]
    q, k, v, out, cu_q, cu_k, used_q, used_k, alibi, sinks = addresses
    mask = kind.problem.alignment - 1
    if ((q or 0) | (k or 0) | (v or 0) | (out or 0)) & mask:
        raise _misaligned(zip(("q", "k", "v", "out"), addresses, strict=False), kind.problem)
    params = _abi.Params.from_buffer_copy(kind.template)
    # CuPy's arrays without elements lie nowhere, but a v of NULL is one that is not given.
    params.q, params.k, params.v, params.out, params.lse = q, k, _PLACEHOLDER if v == 0 else v, out, lse
    if cu_q is not None or used_k is not None:
        params.cu_seqlens_q, params.cu_seqlens_k, params.seqused_q, params.seqused_k = cu_q, cu_k, used_q, used_k
    if alibi is not None:
        params.alibi_slopes = alibi
    if sinks is not None:
        params.sinks = sinks
    params.workspace = workspace
    if of_cache is not None:
        _fill_cache(kind.problem, of_cache, params)
    return params


def _fill_cache(problem: AttnProblem, addresses: list[int | None], params: _abi.Params) -> None:
    by_name = dict(zip(CACHE_ARRAYS, addresses, strict=True))
    tensors = {name: by_name[name] for name in ("k_new", "v_new", "rotary_cos", "rotary_sin")}
    if any((address or 0) % problem.alignment for address in tensors.values()):
        raise _misaligned(tensors.items(), problem)
    for name, address in by_name.items():
        if address is not None:
            setattr(params, name, address)


def _misaligned(addresses: Iterable[tuple[str, int | None]], problem: AttnProblem) -> ValueError:
    for name, address in addresses:
        if (address or 0) % problem.alignment:
            return alignment_error(argument_name(problem.kvcache, name), address or 0, problem.alignment)
    raise AssertionError("no misaligned address")


def alignment_error(name: str, address: int, alignment: int) -> ValueError:
    """What is raised for an array at an address that is no multiple of alignment bytes."""
    return ValueError(f"{name} starts at address {address:#x}; it must be a multiple of {alignment} bytes")
