"""The way of a call: arrays -> checked problem -> parameters -> memory -> run_mha_v3 -> result.

Everything but the data is checked and laid out once per kind of call (_prepared.py); after that a call copies the
prepared parameters, fills in the addresses and goes. plans.py takes the same way, and keeps what it finds there.
"""

from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple

import numpy as np

from . import _cache_contents, _host, _values
from ._cache import CACHE_ARRAYS, CacheRequest, argument_name
from ._errors import NoDeviceError
from ._prepared import Prepared, fill, prepared
from ._problem import AttnProblem, Request
from ._specs import FLOAT32, HOST, Spec

_DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged


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
    d_v: Any = None


class Cache(NamedTuple):
    """The cache of a call, as the caller gave it; the fields of CacheRequest."""

    page_table: Any = None
    cache_batch_idx: Any = None
    cache_leftpad: Any = None
    k_new: Any = None
    v_new: Any = None
    cu_seqlens_k_new: Any = None
    rotary_cos: Any = None
    rotary_sin: Any = None
    rotary_seqlens: Any = None
    rotary_interleaved: Any = False
    kvcache: bool = False


# cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, max_seqlen_q, max_seqlen_k
Lengths = tuple[Any, Any, Any, Any, Any, Any]
_DENSE: Lengths = (None, None, None, None, None, None)


def attend(
    q: Any,
    k: Any,
    v: Any,
    options: Options,
    out: Any = None,
    return_lse: bool = False,
    lengths: Lengths | None = None,
    cache: Cache | None = None,
) -> Any:
    """Runs one call of the public functions; see flash_attn_func for arguments, result and errors."""
    kind, arrays = prepare(q, k, v, options, out, lengths, cache)
    if lengths is not None and lengths_are_checked():
        check_lengths(kind.problem, arrays)
    if cache is not None and cache.k_new is not None:
        for name, x in zip(("k", "v"), arrays[1:3], strict=True):
            check_writable(argument_name(cache.kvcache, name), x)
    run = _run_on_host if kind.problem.device == HOST else _run_on_device
    result, lse = run(kind, arrays, return_lse)
    if out is not None:
        result = out  # the caller's own object, whose memory was written
    return (result, lse) if return_lse else result


def prepare(
    q: Any, k: Any, v: Any, options: Options, out: Any, lengths: Lengths | None, cache: Cache | None = None
) -> tuple[Prepared, list[Any | None]]:
    """The checked kind of a call, and its arrays as NumPy or CuPy arrays: those of Request, then of CacheRequest."""
    kvcache = cache is not None and cache.kvcache
    arrays = [native("q", q), native(argument_name(kvcache, "k"), k)]
    arrays.append(_values_array(argument_name(kvcache, "v"), v, options.d_v))
    arrays.append(None if out is None else native("out", out))
    if lengths is None:
        lengths = _DENSE
        arrays += (None, None, None, None)
    else:
        arrays += _length_arrays(lengths, cache)
    arrays.append(None if options.alibi_slopes is None else native("alibi_slopes", options.alibi_slopes))
    arrays.append(None if options.sinks is None else native("sinks", options.sinks))
    if cache is None:
        return prepared(_request(arrays, options, lengths, None)), arrays
    cache_arrays = [
        None if x is None else native(argument_name(kvcache, name), x)
        for name, x in zip(CACHE_ARRAYS, cache, strict=False)
    ]
    request = CacheRequest._make(
        [None if x is None else spec(x) for x in cache_arrays]
        + [_values.boolean("rotary_interleaved", cache.rotary_interleaved), kvcache]
    )
    return prepared(_request(arrays, options, lengths, request)), [*arrays, *cache_arrays]


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


def _values_array(name: str, v: Any, d_v: Any) -> Any:
    """v as an array, or None where d_v says that the values are columns of k."""
    if v is None and d_v is None:
        raise TypeError(f"{name} is None; it must be an array, or d_v the number of columns of k that are the values")
    if v is not None and d_v is not None:
        raise ValueError(f"d_v is {d_v!r}, but {name} is given; one of them must be None")
    return None if v is None else native(name, v)


def _is_cupy(x: Any) -> bool:
    try:
        return isinstance(x, device_module().Array)
    except ImportError:
        return False


def _length_arrays(lengths: Lengths, cache: Cache | None) -> list[Any]:
    cu_q, cu_k, used_q, used_k, *_ = lengths
    kvcache = cache is not None and cache.kvcache
    needed = (("cu_seqlens_q", cu_q), ("cu_seqlens_k", cu_k))[: 2 if cache is None else 0 if kvcache else 1]
    for name, x in needed:
        if x is None:
            raise TypeError(f"{name} is None; it must be a (batch + 1,) int32 array")
    if cache is not None and cu_k is not None:
        raise ValueError("cu_seqlens_k is given; with page_table it must be None, and seqused_k has the lengths")
    return [
        None if cu_q is None else native("cu_seqlens_q", cu_q),
        None if cu_k is None else native("cu_seqlens_k", cu_k),
        None if used_q is None else native("seqused_q", used_q),
        None if used_k is None else native(argument_name(kvcache, "seqused_k"), used_k),
    ]


def _request(arrays: list[Any], o: Options, lengths: Lengths, cache: CacheRequest | None) -> Request:
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
        None if o.d_v is None else _values.integer("d_v", o.d_v),
    )
    return Request._make([None if x is None else spec(x) for x in arrays] + [*numbers, cache])


def spec(x: Any) -> Spec:
    """Shape, strides, dtype and place of a NumPy or CuPy array."""
    return x.shape, x.strides, x.dtype, HOST if isinstance(x, np.ndarray) else device_module().device_of(x)


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
    out = arrays[3]
    if out is None:
        size = kind.workspace_bytes
        out, owner, workspace = device.empty_with_scratch(problem.out_shape, problem.dtype, kind.out_bytes, size)
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


def check_lengths(problem: AttnProblem, arrays: list[Any]) -> None:
    """ValueError for wrong contents of the length and index arrays; waits for the device."""
    to_numpy = np.asarray if problem.device == HOST else device_module().to_numpy
    if problem.device != HOST and device_module().is_capturing():
        raise RuntimeError(
            "PYFLASH3_CHECK is 1, but lengths cannot be read while a graph is captured; it must be unset"
        )
    for side, rows, cu, used in (("q", problem.rows_q, 4, 6), ("k", problem.rows_k, 5, 7)):
        if arrays[cu] is None:
            continue
        cu_seqlens = to_numpy(arrays[cu])
        _values.check_cu_seqlens(f"cu_seqlens_{side}", cu_seqlens, rows)
        if arrays[used] is not None:
            _values.check_seqused(f"seqused_{side}", to_numpy(arrays[used]), cu_seqlens)
    if problem.cache is not None:
        names = ("cu_seqlens_q", *CACHE_ARRAYS, "seqused_k")
        given = dict(zip(names, (arrays[4], *arrays[10:], arrays[7]), strict=True))
        read = {name: to_numpy(x) for name, x in given.items() if x is not None and x.dtype == np.int32}
        _cache_contents.check(problem, problem.cache, read)
