"""The way of a call: arrays -> checked problem -> parameters -> memory -> run_mha_v3 -> result.

Everything but the data is checked and laid out once per kind of call (_prepared.py); after that a call copies the
prepared parameters, fills in the addresses and goes. plans.py takes the same way, and keeps what it finds there.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, NamedTuple

import numpy as np

from . import _cache_contents, _host, _values
from ._cache import CACHE_ARRAYS, argument_name
from ._errors import NoDeviceError
from ._prepared import Prepared, fill, prepared
from ._problem import ARRAYS, AttnProblem
from ._specs import HOST, MAX_ROWS, Spec

_DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged

_NEEDED = 2  # the first arrays of Request, which no call does without

# Types of NumPy and CuPy arrays that have been met -> whether they are NumPy's.
native_types: dict[type, bool] = {np.ndarray: True}

# os.environ, which puts every change there too, takes six times as long to say that there is no such variable.
_getenv = ctypes.PyDLL(None)["getenv"]
_getenv.restype = ctypes.c_char_p


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
    if kind.problem.device == HOST:
        check_outputs_writable(arrays, cache)
        result, lse = _issue(_host, kind, arrays, return_lse)
    else:
        device = device_module()
        context = device.on_device(kind.problem.device)
        if context is None:
            result, lse = _issue(device, kind, arrays, return_lse)
        else:
            with context:
                result, lse = _issue(device, kind, arrays, return_lse)
    if out is not None:
        result = out  # the caller's own object, whose memory was written
    return (result, lse) if return_lse else result


def prepare(
    q: Any, k: Any, v: Any, options: Options, out: Any, lengths: Lengths | None, cache: Cache | None = None
) -> tuple[Prepared, list[Any | None]]:
    """The checked kind of a call, and its arrays as NumPy or CuPy arrays: those of Request, then of CacheRequest."""
    if lengths is None:
        lengths = _DENSE
    else:
        _check_lengths_given(lengths, cache)
    if v is None or options.d_v is not None:
        _check_values_given(argument_name(cache is not None and cache.kvcache, "v"), v, options.d_v)
    arrays = [q, k, v, out, *lengths[:4], options.alibi_slopes, options.sinks]
    of_cache = None
    if cache is not None:
        arrays += cache[: len(CACHE_ARRAYS)]
        of_cache = _values.boolean("rotary_interleaved", cache.rotary_interleaved), cache.kvcache
    try:
        if q is None or k is None:
            raise KeyError
        # As `spec`, without the calls.
        specs = [
            None
            if x is None
            else (x.shape, x.strides, x.dtype, HOST)
            if native_types[type(x)]
            else (x.shape, x.strides, x.dtype, x.data.device_id)
            for x in arrays
        ]
    except KeyError:  # an array of a type that has not been met, or none where there must be one
        kvcache = cache is not None and cache.kvcache
        for i, name in enumerate((*ARRAYS, *CACHE_ARRAYS)[: len(arrays)]):
            if arrays[i] is not None or i < _NEEDED:
                arrays[i] = native(argument_name(kvcache, name), arrays[i])
        specs = [None if x is None else spec(x) for x in arrays]
    return prepared(tuple(specs), _numbers(options, lengths, cache is not None), of_cache), arrays


def lengths_are_checked() -> bool:
    """Whether the caller wants the contents of the length arrays checked."""
    value: bytes | None = _getenv(b"PYFLASH3_CHECK")
    return value == b"1"


@functools.cache
def device_module() -> Any:
    """The module that talks to CuPy, imported when the first array asks for it."""
    from . import _device

    return _device


def native(name: str, x: Any) -> Any:
    """x as a NumPy or CuPy array over the same memory."""
    if type(x) in native_types:
        return x
    if isinstance(x, np.ndarray) or _is_cupy(x):
        native_types[type(x)] = isinstance(x, np.ndarray)
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
    array = device.from_dlpack(name, x)
    native_types[type(array)] = False
    return array


def _check_values_given(name: str, v: Any, d_v: Any) -> None:
    """Either v is given, or d_v says which columns of k the values are."""
    if v is None and d_v is None:
        raise TypeError(f"{name} is None; it must be an array, or d_v the number of columns of k that are the values")
    if v is not None and d_v is not None:
        raise ValueError(f"d_v is {d_v!r}, but {name} is given; one of them must be None")


def _is_cupy(x: Any) -> bool:
    try:
        return isinstance(x, device_module().Array)
    except ImportError:
        return False


def _check_lengths_given(lengths: Lengths, cache: Cache | None) -> None:
    cu_q, cu_k, *_ = lengths
    kvcache = cache is not None and cache.kvcache
    if cu_q is None and not kvcache:
        raise TypeError("cu_seqlens_q is None; it must be a (batch + 1,) int32 array")
    if cu_k is None and cache is None:
        raise TypeError("cu_seqlens_k is None; it must be a (batch + 1,) int32 array")
    if cu_k is not None and cache is not None:
        raise ValueError("cu_seqlens_k is given; with page_table it must be None, and seqused_k has the lengths")


def _numbers(o: Options, lengths: Lengths, cached: bool) -> tuple[Any, ...]:
    """The fields of Request that are no arrays, from max_seqlen_q to d_v.

    Of a cache three bits of max_seqlen_k count: one that grows by a row would have every call prepared anew.
    """
    most_keys = lengths[5]
    if cached and most_keys is not None:
        most_keys = _values.rounded_up(_values.integer("max_seqlen_k", most_keys), bits=3, most=MAX_ROWS)
    numbers = o.causal, lengths[4], most_keys, o.softmax_scale, o.softcap, o.num_splits, o.pack_gqa, o.sm_margin, o.d_v
    try:
        left, right = o.window_size
        return _checked_numbers(left, right, *numbers)
    except (TypeError, ValueError):  # not hashable, or wrong: this says what
        return _check_numbers(o.window_size, *numbers)


@functools.lru_cache(maxsize=1024, typed=True)  # 1, 1.0 and True are equal, but not equally welcome
def _checked_numbers(left: Any, right: Any, *numbers: Any) -> tuple[Any, ...]:
    return _check_numbers((left, right), *numbers)


def _check_numbers(
    window: Any, causal: Any, max_q: Any, max_k: Any, scale: Any, softcap: Any, splits: Any, pack_gqa: Any, margin: Any,
    d_v: Any,
) -> tuple[Any, ...]:  # fmt: skip
    if pack_gqa is not None and not isinstance(pack_gqa, (bool, np.bool_)):
        raise TypeError(f"pack_gqa is {pack_gqa!r}; it must be True, False or None")
    return (
        None if max_q is None else _values.integer("max_seqlen_q", max_q),
        None if max_k is None else _values.integer("max_seqlen_k", max_k),
        None if scale is None else _values.real("softmax_scale", scale),
        _values.real("softcap", softcap),
        _values.window(causal, window),
        _values.integer("num_splits", splits),
        _values.integer("sm_margin", margin),
        None if d_v is None else _values.integer("d_v", d_v),
    )


def spec(x: Any) -> Spec:
    """Shape, strides, dtype and place of an array that `native` gave."""
    return x.shape, x.strides, x.dtype, HOST if native_types[type(x)] else x.data.device_id


def _issue(memory: Any, kind: Prepared, arrays: list[Any], return_lse: bool) -> tuple[Any, Any]:
    """Runs a call whose arrays are those of `prepare`. memory is _host, or _device with their device made current."""
    addresses = memory.pointers(arrays)
    out, lse, owner, workspace = memory.results(
        kind.out if arrays[3] is None else None, kind.lse if return_lse else None, kind.workspace_bytes
    )
    if out is None:
        out = arrays[3]
    else:
        addresses[3] = memory.pointer(out)
    params = fill(kind, addresses, None if lse is None else memory.pointer(lse), workspace)
    if memory is _host:
        params.num_threads = _host.num_threads()
    status = kind.run(params, memory.stream())
    if status:
        kind.library.check(status)
    del owner  # only now: CuPy may hand the memory to the next call on this stream
    return out, lse


def check_outputs_writable(arrays: list[Any], cache: Cache | None) -> None:
    """ValueError for read-only arrays among those of `prepare` that a call writes."""
    if arrays[3] is not None:
        check_writable("out", arrays[3])
    if cache is not None and cache.k_new is not None:
        for name, x in zip(("k", "v"), arrays[1:3], strict=True):
            check_writable(argument_name(cache.kvcache, name), x)


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
