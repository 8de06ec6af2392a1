"""CuPy: memory, streams and foreign arrays on CUDA devices. The only file that imports cupy, and only once needed."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any

import cupy

Array = cupy.ndarray

_ALIGNMENT = 256  # of the workspace, as flash3.h asks for; CuPy's own blocks start on 512 bytes

_current_device = cupy.cuda.runtime.getDevice
_current_stream = cupy.cuda.get_current_stream
_alloc = cupy.cuda.alloc
_ndarray = cupy.ndarray

Layout = tuple[tuple[int, ...], Any, int]  # shape, dtype and bytes of an array to allocate

# What a result may hold on to beside its own memory: other results and scratch. Partial results of split-KV are larger,
# and a caller who keeps many results would keep all of them.
_MOST_BEHIND = 1 << 20

# Workspaces that captured graphs will use at every replay. Nobody tells us when a graph ends, so they stay: a few KiB
# per captured call with out=, some MiB where the keys are split. Without out= the workspace lies behind the result and
# lives as long as it; captured calls of one plan share one.
_captured: list[Any] = []
_captured_lock = threading.Lock()


def pointer(x: Any) -> int:
    """Address of the first element of a CuPy array."""
    address: int = x.data.ptr
    return address


def pointers(arrays: list[Any]) -> list[int | None]:
    """Addresses of CuPy arrays, None for None."""
    return [None if x is None else x.data.ptr for x in arrays]


def on_device(ordinal: int) -> AbstractContextManager[Any] | None:
    """A context that makes the device current; None when it is already."""
    if _current_device() == ordinal:
        return None
    context: AbstractContextManager[Any] = cupy.cuda.Device(ordinal)
    return context


def stream() -> int:
    """CuPy's current stream on the current device, as a cudaStream_t."""
    handle: int = _current_stream().ptr
    return handle


def current_stream(ordinal: int) -> Any:
    """CuPy's current stream on a device, which need not be the current one."""
    return _current_stream(ordinal)


def is_capturing() -> bool:
    """Whether calls on the current stream go into a graph instead of running."""
    current = _current_stream()
    return bool(current.ptr and current.is_capturing())  # the legacy stream cannot be captured


def empty(shape: tuple[int, ...], dtype: Any) -> Any:
    """An uninitialised array on the current device."""
    return cupy.empty(shape, dtype)


def results(out: Layout | None, lse: Layout | None, scratch: int) -> tuple[Any, Any, Any, int]:
    """Uninitialised arrays out and lse, None where None is asked for, and owner and address of scratch bytes.

    The current stream may use the scratch as long as it has an owner; CuPy reuses memory in stream order.

    One block for all of it costs one allocation instead of three, and keeps the scratch alive as long as out: a graph
    that writes out again also uses the scratch again. What is large is on its own, but for scratch that a graph uses.
    """
    out_size = 0 if out is None else -(-out[2] // _ALIGNMENT) * _ALIGNMENT
    lse_size = 0 if lse is None else -(-lse[2] // _ALIGNMENT) * _ALIGNMENT
    if out_size + lse_size + scratch > _MOST_BEHIND:
        return _large_results(out, lse, scratch)
    block = _alloc(out_size + lse_size + scratch)
    if out is None and is_capturing():
        keep_for_graphs(block)
    out_array = None if out is None else _ndarray(out[0], out[1], block)
    lse_array = None if lse is None else _ndarray(lse[0], lse[1], block + out_size)
    return out_array, lse_array, block, block.ptr + out_size + lse_size


def _large_results(out: Layout | None, lse: Layout | None, scratch: int) -> tuple[Any, Any, Any, int]:
    """The same with lse on its own, and the scratch too if it is large and no graph will use it."""
    lse_array = None if lse is None else cupy.empty(lse[0], lse[1])
    if out is None or (scratch > _MOST_BEHIND and not is_capturing()):
        block = _alloc(scratch)
        if out is None and is_capturing():
            keep_for_graphs(block)
        return None if out is None else cupy.empty(out[0], out[1]), lse_array, block, block.ptr
    offset = -(-out[2] // _ALIGNMENT) * _ALIGNMENT
    block = _alloc(offset + scratch)
    return _ndarray(out[0], out[1], block), lse_array, block, block.ptr + offset


def allocate_on(ordinal: int, size: int) -> tuple[Any, int]:
    """Owner and address of size bytes on a device, from the pool of its current stream; for eager calls."""
    with cupy.cuda.Device(ordinal):
        block = _alloc(size)
    return block, block.ptr


def empty_on(ordinal: int, shape: tuple[int, ...], dtype: Any) -> Any:
    """An uninitialised array on a device."""
    with cupy.cuda.Device(ordinal):
        return cupy.empty(shape, dtype)


def int32_vector(ordinal: int, length: int, value: int) -> Any:
    """A (length,) int32 array on a device, filled on its current stream."""
    with cupy.cuda.Device(ordinal):
        vector = cupy.full(length, value, cupy.int32)
        if is_capturing():
            keep_for_graphs(vector)
    return vector


def keep_for_graphs(block: Any) -> None:
    """Keeps memory alive that a captured graph will use."""
    with _captured_lock:
        _captured.append(block)


def from_dlpack(name: str, x: Any) -> Any:
    """A CuPy array over the memory of a CUDA object with __dlpack__, ordered after its producer's work.

    cupy.from_dlpack hands CuPy's current stream to x.__dlpack__, so the producer makes its own stream wait in front.
    """
    if getattr(x, "requires_grad", False):
        raise TypeError(f"{name} is a tensor that requires a gradient, which is not computed; pass {name}.detach()")
    try:
        return cupy.from_dlpack(x)
    except (BufferError, TypeError, ValueError) as error:
        kind = f"{type(x).__module__}.{type(x).__qualname__}"
        raise TypeError(f"{name} is a {kind} that CuPy cannot take through DLPack: {error}") from error


def to_numpy(x: Any) -> Any:
    """A copy on the host, after all work on the current stream."""
    return cupy.asnumpy(x)


def device_count() -> int:
    """Number of CUDA devices; 0 where there is no driver."""
    try:
        count: int = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:
        return 0
    return count


def device_name(ordinal: int) -> str:
    """Name and compute capability, e.g. 'NVIDIA H200 (sm_90)'."""
    properties = cupy.cuda.runtime.getDeviceProperties(ordinal)
    return f"{properties['name'].decode()} (sm_{properties['major']}{properties['minor']})"


def version() -> str:
    """CuPy's version."""
    text: str = cupy.__version__
    return text


def from_numpy(x: Any) -> Any:
    """A copy on the current device."""
    return cupy.asarray(x)


def synchronize() -> None:
    """Waits for the current stream."""
    _current_stream().synchronize()
