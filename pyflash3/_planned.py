"""What all plans are made of: the parameters of one call, filled in once, and the memory that they point to."""

from __future__ import annotations

import threading
from ctypes import byref
from typing import Any, NamedTuple

import numpy as np

from . import _abi, _host
from ._cache import CACHE_ARRAYS, argument_name
from ._call import check_lengths, check_writable, device_module, lengths_are_checked, native, native_types, spec
from ._prepared import NOWHERE, Prepared, alignment_error, fill
from ._problem import ARRAYS, check_lse
from ._specs import FLOAT32, HOST, Spec, place

_NO_STREAM = -1  # the handle of no stream; 0 is the legacy default stream


class _OnHost:
    """Memory of a plan for NumPy arrays."""

    is_host = True

    def __init__(self, kind: Prepared) -> None:
        self.pointer = _host.pointer
        self._owner, self._workspace = _host.scratch(kind.workspace_bytes)

    def look(self, x: Any) -> tuple[Spec, int]:
        """spec(x), and where it begins."""
        return (x.shape, x.strides, x.dtype, HOST), self.pointer(x)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return np.empty(shape, dtype)

    def stream(self, params: _abi.Params) -> None:
        params.workspace = self._workspace


class _OnDevice:
    """Memory of a plan for CuPy arrays, and the stream of each call.

    The workspace comes from the memory pool of the stream of the last call, so that CuPy hands it on in stream order
    when the plan has gone. Graphs have one of their own, allocated beforehand, as a capture must not allocate.
    """

    is_host = False

    def __init__(self, kind: Prepared) -> None:
        self._device = device_module()
        self.pointer = self._device.pointer
        self._ordinal, self._size = kind.problem.device, kind.workspace_bytes
        self._current_stream = self._device.current_stream
        self._stream = _NO_STREAM
        self._owner: Any = None
        self._graphs_owner, self._graphs_workspace = self._device.allocate_on(self._ordinal, self._size)
        self._in_a_graph = False

    def look(self, x: Any) -> tuple[Spec, int]:
        data = x.data
        return (x.shape, x.strides, x.dtype, data.device_id), data.ptr or NOWHERE

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self._device.empty_on(self._ordinal, shape, dtype)

    def stream(self, params: _abi.Params) -> int:
        """The stream of this call, whose workspace is then in params."""
        current = self._current_stream(self._ordinal)
        handle: int = current.ptr
        capturing = handle != 0 and current.is_capturing()  # the legacy stream cannot be captured
        if capturing or handle != self._stream:
            self._change_workspace(params, handle, capturing)
        return handle

    def _change_workspace(self, params: _abi.Params, handle: int, capturing: bool) -> None:
        if capturing:
            if not self._in_a_graph:
                self._device.keep_for_graphs(self._graphs_owner)
                self._in_a_graph = True
            params.workspace = self._graphs_workspace
            self._stream = _NO_STREAM
            return
        self._owner, params.workspace = self._device.allocate_on(self._ordinal, self._size)
        self._stream = handle


class _Replaceable(NamedTuple):
    """An array of a plan that a call may put another one in the place of."""

    field: str  # of flash3_params
    spec: Spec
    alignment: int
    must_be_writable: bool
    address: int


class PlannedCall:
    """A call that is ready to be issued. It holds its arrays, and its workspace, as long as it lives."""

    __slots__ = (
        "__weakref__", "_arrays", "_check", "_lock", "_lse", "_memory", "_out", "_params", "_problem", "_reference",
        "_replaceable", "_result", "_run", "_to_error",
    )  # fmt: skip

    def __init__(self, kind: Prepared, arrays: list[Any], out: Any, lse: Any, return_lse: bool) -> None:
        """For the arrays of `prepare`, which this call takes over; out and lse are the caller's own objects."""
        problem = kind.problem
        self._memory: Any = _OnHost(kind) if problem.device == HOST else _OnDevice(kind)
        if arrays[3] is None:
            arrays[3] = self._memory.empty(problem.out_shape, problem.dtype)
        lse_array = None if lse is None else native("lse", lse)
        if lse_array is not None:
            check_lse(spec(lse_array), problem)
        elif return_lse:
            lse_array = self._memory.empty(problem.lse_shape, FLOAT32)
        self._problem, self._arrays = problem, arrays
        by_field = {**dict(zip((*ARRAYS, *CACHE_ARRAYS), arrays, strict=False)), "lse": lse_array}
        written = ("out", "lse", "k", "v") if by_field.get("k_new") is not None else ("out", "lse")
        self._replaceable = {
            argument_name(problem.kvcache, field): self._described(field, by_field[field], field in written)
            for field in ("q", "k", "v", "out", "lse", "k_new", "v_new")
            if by_field.get(field) is not None
        }
        addresses = [None if x is None else self._memory.pointer(x) for x in arrays]
        self._params = fill(kind, addresses, None if lse_array is None else self._memory.pointer(lse_array), 0)
        self._params.num_threads = _host.num_threads() if problem.device == HOST else 0
        self._reference = byref(self._params)
        self._run: Any = kind.run
        self._to_error = kind.library.check
        has_lengths = arrays[ARRAYS.index("cu_seqlens_q")] is not None or problem.cache is not None
        self._check = has_lengths and lengths_are_checked()
        self._out = arrays[3] if out is None else out
        self._lse = lse_array if lse is None else lse
        self._result = self._out if lse_array is None else (self._out, self._lse)
        self._lock = threading.Lock()

    @property
    def out(self) -> Any:
        """The array that calls write to: the one given as out=, or one of the plan's own."""
        return self._out

    @property
    def lse(self) -> Any:
        """The float32 array that calls write the log-sum-exp to; None for a plan without one."""
        return self._lse

    def _described(self, field: str, x: Any, is_written: bool) -> _Replaceable:
        name, on_host = argument_name(self._problem.kvcache, field), self._problem.device == HOST
        alignment = FLOAT32.itemsize if field == "lse" else self._problem.alignment
        found, address = self._memory.look(x)
        planned = _Replaceable(field, found, alignment, is_written and on_host, address)
        _check_memory(name, x, address, planned)
        return planned

    def _call(self) -> Any:
        """Issues the call with the planned arrays; returns what it writes."""
        with self._lock:
            self._issue()
        return self._result

    def _call_with(self, given: dict[str, Any]) -> Any:
        """Issues the call with other arrays in the place of the planned ones, by their names; None is no array."""
        params, memory = self._params, self._memory
        replaced: list[_Replaceable] = []
        held: list[Any] = []  # views made by DLPack must live until the work is enqueued
        with self._lock:
            try:
                for name, x in given.items():
                    if x is None:
                        continue
                    planned = self._replaceable.get(name)
                    if planned is None:
                        raise _missing(name, self._problem.kvcache)
                    if native_types.get(type(x)) is not memory.is_host:
                        x = native(name, x)
                        held.append(x)
                        if native_types[type(x)] is not memory.is_host:
                            raise _difference(name, spec(x), planned.spec)
                    found, address = memory.look(x)
                    if found != planned.spec:
                        raise _difference(name, found, planned.spec)
                    if planned.must_be_writable or address % planned.alignment:
                        _check_memory(name, x, address, planned)
                    setattr(params, planned.field, address)
                    replaced.append(planned)
                self._issue()
            finally:
                for planned in replaced:
                    setattr(params, planned.field, planned.address)
        out = self._out if given["out"] is None else given["out"]
        if self._lse is None:
            return out
        return out, self._lse if given["lse"] is None else given["lse"]

    def _issue(self) -> None:
        if self._check:
            check_lengths(self._problem, self._arrays)
        status = self._run(self._reference, self._memory.stream(self._params))
        if status:
            self._to_error(status)


def _check_memory(name: str, x: Any, address: int, planned: _Replaceable) -> None:
    """ValueError where a call cannot use x, which is like the planned array."""
    if planned.must_be_writable:
        check_writable(name, x)
    if address % planned.alignment:
        raise alignment_error(name, address, planned.alignment)


def _missing(name: str, kvcache: bool) -> ValueError:
    """What is raised for an array that a plan has no place for."""
    made = {"lse": "return_lse=True", argument_name(kvcache, "v"): f"{name} instead of d_v"}
    return ValueError(f"{name} is given, but this plan has none; make it with {made.get(name, name)}")


def _difference(name: str, given: Spec, planned: Spec) -> Exception:
    """What is raised for a replacement that is not like the planned array."""
    if given[2] != planned[2]:
        return TypeError(f"{name} has dtype {given[2]}; this plan was made for {planned[2]}")
    if given[3] != planned[3]:
        return ValueError(f"{name} is {place(given[3])}; this plan was made for arrays {place(planned[3])}")
    if given[0] != planned[0]:
        return ValueError(f"{name} has shape {given[0]}; this plan was made for {planned[0]}")
    return ValueError(f"{name} has strides {given[1]} bytes; this plan was made for {planned[1]}")
