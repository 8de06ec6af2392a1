"""The way of a call: arrays -> checked problem -> parameters -> memory -> run_mha_v3 -> result.

Everything but the data is checked and laid out once per kind of call (`_prepared`); after that a call copies the
prepared parameters, fills in the addresses and goes. plans.py takes the same way, and keeps what it finds there.
"""

from __future__ import annotations

import functools
import math
import os
from ctypes import sizeof
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from . import _abi, _host, _values
from ._errors import NoDeviceError
from ._lib import Library, library
from ._problem import ARRAYS, BFLOAT16, FLOAT16, FLOAT32, HOST, AttnProblem, Request, Spec

_DTYPE_CODES = {FLOAT16: _abi.FLOAT16, BFLOAT16: _abi.BFLOAT16, FLOAT32: _abi.FLOAT32}
_DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged
_PLACEHOLDER = 4096  # stands for an address wherever only "not NULL" is asked


class Options(NamedTuple):
    """Arguments that all functions share, as the caller gave them."""

    softmax_scale: Any
    causal: Any
    window_size: Any
    softcap: Any
    alibi_slopes: Any
    sinks: Any
    num_splits: Any
    pack_gqa: Any
    sm_margin: Any


# cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, max_seqlen_q, max_seqlen_k
Lengths = tuple[Any, Any, Any, Any, Any, Any]
_DENSE: Lengths = (None, None, None, None, None, None)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A kind of call: everything that calls with arrays of the same specs and the same options share."""

    problem: AttnProblem
    library: Library
    template: bytes  # flash3_params without addresses
    workspace_bytes: int
    out_bytes: int


def attend(
    q: Any, k: Any, v: Any, options: Options, out: Any = None, return_lse: bool = False, lengths: Lengths | None = None
) -> Any:
    """Runs one call of the public functions; see flash_attn_func for arguments, result and errors."""
    kind, arrays = prepare(q, k, v, options, out, lengths)
    if lengths is not None and lengths_are_checked():
        check_lengths(kind.problem, arrays)
    run = _run_on_host if kind.problem.device == HOST else _run_on_device
    result, lse = run(kind, arrays, return_lse)
    if out is not None:
        result = out  # the caller's own object, whose memory was written
    return (result, lse) if return_lse else result


def prepare(
    q: Any, k: Any, v: Any, options: Options, out: Any, lengths: Lengths | None
) -> tuple[Prepared, list[Any | None]]:
    """The checked kind of a call, and its arrays as NumPy or CuPy arrays in the order of Request's fields."""
    arrays = [native("q", q), native("k", k), native("v", v)]
    arrays.append(None if out is None else native("out", out))
    if lengths is None:
        lengths = _DENSE
        arrays += (None, None, None, None)
    else:
        arrays += _length_arrays(lengths)
    arrays.append(None if options.alibi_slopes is None else native("alibi_slopes", options.alibi_slopes))
    arrays.append(None if options.sinks is None else native("sinks", options.sinks))
    return _prepared(_request(arrays, options, lengths)), arrays


def lengths_are_checked() -> bool:
    """Whether the caller wants the contents of the length arrays checked."""
    return os.environ.get("PYFLASH3_CHECK") == "1"


@functools.cache
def device_module() -> Any:
    """The module that talks to CuPy, imported when the first array asks for it."""
    from . import _device

    return _device


def native(name: str, x: Any) -> Any:
    """x as a NumPy or CuPy array over the same memory."""
    if isinstance(x, np.ndarray) or _is_cupy(x):
        return x
    if not hasattr(x, "__dlpack__"):
        raise TypeError(f"{name} is of type {type(x).__name__}; it must be a NumPy, CuPy or CUDA DLPack array")
    if x.__dlpack_device__()[0] not in _DLPACK_CUDA:
        raise TypeError(f"{name} is of type {type(x).__name__} on the host; on the host it must be a NumPy array")
    try:
        device = device_module()
    except ImportError as error:
        raise NoDeviceError(
            f"{name} is of type {type(x).__name__}, but arrays on a GPU need CuPy, which cannot be imported ({error}); "
            "install it with: pip install 'cupy-cuda13x[ctk]'"
        ) from None
    return device.from_dlpack(name, x)


def _is_cupy(x: Any) -> bool:
    try:
        return isinstance(x, device_module().Array)
    except ImportError:
        return False


def _length_arrays(lengths: Lengths) -> list[Any]:
    names = ("cu_seqlens_q", "cu_seqlens_k", "seqused_q", "seqused_k")
    for name, x in zip(names[:2], lengths[:2], strict=True):
        if x is None:
            raise TypeError(f"{name} is None; it must be a (batch + 1,) int32 array")
    return [None if x is None else native(name, x) for name, x in zip(names, lengths[:4], strict=True)]


def _request(arrays: list[Any], o: Options, lengths: Lengths) -> Request:
    if o.pack_gqa is not None and not isinstance(o.pack_gqa, (bool, np.bool_)):
        raise TypeError(f"pack_gqa is {o.pack_gqa!r}; it must be True, False or None")
    max_q, max_k = lengths[4], lengths[5]
    numbers = (
        None if max_q is None else _values.integer("max_seqlen_q", max_q),
        None if max_k is None else _values.integer("max_seqlen_k", max_k),
        None if o.softmax_scale is None else _values.real("softmax_scale", o.softmax_scale),
        _values.real("softcap", o.softcap),
        _values.window(o.causal, o.window_size),
        _values.integer("num_splits", o.num_splits),
        _values.integer("sm_margin", o.sm_margin),
    )
    return Request._make([None if x is None else spec(x) for x in arrays] + [*numbers])


def spec(x: Any) -> Spec:
    """Shape, strides, dtype and place of a NumPy or CuPy array."""
    return x.shape, x.strides, x.dtype, HOST if isinstance(x, np.ndarray) else device_module().device_of(x)


@functools.lru_cache(maxsize=1024)
def _prepared(request: Request) -> Prepared:
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
        dtype=_DTYPE_CODES[p.dtype],
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
    return params


def _run_on_host(kind: Prepared, arrays: list[Any], return_lse: bool) -> tuple[Any, Any]:
    problem = kind.problem
    out = arrays[3]
    if out is None:
        out = np.empty(problem.out_shape, problem.dtype)
    else:
        check_writable("out", out)
    lse = np.empty(problem.lse_shape, np.float32) if return_lse else None
    owner, workspace = _host.scratch(kind.workspace_bytes)
    addresses = [None if x is None else _host.pointer(x) for x in arrays]
    addresses[3] = _host.pointer(out)
    params = fill(kind, addresses, None if lse is None else _host.pointer(lse), workspace)
    params.num_threads = _host.num_threads()
    kind.library.check(kind.library.cdll.run_mha_v3(params, None))
    del owner
    return out, lse


def _run_on_device(kind: Prepared, arrays: list[Any], return_lse: bool) -> tuple[Any, Any]:
    device = device_module()
    context = device.on_device(kind.problem.device)
    if context is None:
        return _launch(device, kind, arrays, return_lse)
    with context:
        return _launch(device, kind, arrays, return_lse)


def _launch(device: Any, kind: Prepared, arrays: list[Any], return_lse: bool) -> tuple[Any, Any]:
    problem = kind.problem
    addresses = device.pointers(arrays)
    out, owner = arrays[3], None
    if out is None:
        size = kind.workspace_bytes
        out, workspace = device.empty_with_scratch(problem.out_shape, problem.dtype, kind.out_bytes, size)
        addresses[3] = device.pointer(out)
    else:
        owner, workspace = device.scratch(kind.workspace_bytes)
    lse = device.empty(problem.lse_shape, FLOAT32) if return_lse else None
    params = fill(kind, addresses, None if lse is None else device.pointer(lse), workspace)
    kind.library.check(kind.library.cdll.run_mha_v3(params, device.stream()))
    del owner  # only now: CuPy may hand the memory to the next call on this stream
    return out, lse


def check_writable(name: str, x: Any) -> None:
    """ValueError for a NumPy array that must not be written; CuPy has none of that kind."""
    if isinstance(x, np.ndarray) and not x.flags.writeable:
        raise ValueError(f"{name} is a read-only array; it must be writable")


def fill(kind: Prepared, addresses: list[int | None], lse: int | None, workspace: int) -> _abi.Params:
    """The parameters of one call; addresses are in the order of Request's fields."""
    q, k, v, out, cu_q, cu_k, used_q, used_k, alibi, sinks = addresses
    mask = kind.problem.alignment - 1
    if ((q or 0) | (k or 0) | (v or 0) | (out or 0)) & mask:
        raise _misaligned(addresses, mask + 1)
    params = _abi.Params.from_buffer_copy(kind.template)
    params.q, params.k, params.v, params.out, params.lse = q, k, v, out, lse
    if cu_q is not None:
        params.cu_seqlens_q, params.cu_seqlens_k, params.seqused_q, params.seqused_k = cu_q, cu_k, used_q, used_k
    if alibi is not None:
        params.alibi_slopes = alibi
    if sinks is not None:
        params.sinks = sinks
    params.workspace = workspace
    return params


def _misaligned(addresses: list[int | None], alignment: int) -> ValueError:
    for name, address in zip(("q", "k", "v", "out"), addresses, strict=False):
        if (address or 0) % alignment:
            return alignment_error(name, address or 0, alignment)
    raise AssertionError("no misaligned address")


def alignment_error(name: str, address: int, alignment: int) -> ValueError:
    """What is raised for an array at an address that is no multiple of alignment bytes."""
    return ValueError(f"{name} starts at address {address:#x}; it must be a multiple of {alignment} bytes")


def check_lengths(problem: AttnProblem, arrays: list[Any]) -> None:
    """ValueError for wrong contents of the length arrays; waits for the device."""
    to_numpy = np.asarray if problem.device == HOST else device_module().to_numpy
    if problem.device != HOST and device_module().is_capturing():
        raise RuntimeError(
            "PYFLASH3_CHECK is 1, but lengths cannot be read while a graph is captured; it must be unset"
        )
    for side, rows, cu, used in (("q", problem.rows_q, 4, 6), ("k", problem.rows_k, 5, 7)):
        cu_seqlens = to_numpy(arrays[cu])
        _values.check_cu_seqlens(f"cu_seqlens_{side}", cu_seqlens, rows)
        if arrays[used] is not None:
            _values.check_seqused(f"seqused_{side}", to_numpy(arrays[used]), cu_seqlens)
