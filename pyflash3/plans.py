"""Calls that are prepared once and issued many times: nothing is checked, allocated or laid out again."""

from __future__ import annotations

import threading
from ctypes import byref
from typing import Any

import numpy as np

from . import _abi, _host
from ._call import (
    Options,
    check_lengths,
    check_writable,
    device_module,
    lengths_are_checked,
    native,
    prepare,
    spec,
)
from ._prepared import Prepared, alignment_error, fill
from ._problem import check_lse
from ._specs import FLOAT32, HOST, Spec, place

Array = Any  # numpy.ndarray, cupy.ndarray, or a CUDA object with __dlpack__

__all__ = ["Plan", "plan"]

_REPLACEABLE = ("q", "k", "v", "out", "lse")
_NO_STREAM = -1  # the handle of no stream; 0 is the legacy default stream


class _OnHost:
    """Memory of a plan for NumPy arrays."""

    def __init__(self, kind: Prepared) -> None:
        self.pointer = _host.pointer
        self._owner, self._workspace = _host.scratch(kind.workspace_bytes)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return np.empty(shape, dtype)

    def stream(self, params: _abi.Params) -> None:
        params.workspace = self._workspace


class _OnDevice:
    """Memory of a plan for CuPy arrays, and the stream of each call.

    The workspace comes from the memory pool of the stream of the last call, so that CuPy hands it on in stream order
    when the plan has gone. Graphs have one of their own, allocated beforehand, as a capture must not allocate.
    """

    def __init__(self, kind: Prepared) -> None:
        self._device = device_module()
        self.pointer = self._device.pointer
        self._ordinal, self._size = kind.problem.device, kind.workspace_bytes
        self._current_stream = self._device.current_stream
        self._stream = _NO_STREAM
        self._owner: Any = None
        self._graphs_owner, self._graphs_workspace = self._device.allocate_on(self._ordinal, self._size)
        self._in_a_graph = False

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


class Plan:
    """One call of flash_attn_func or flash_attn_varlen_func, ready to be issued again and again. `plan` makes it.

    Calling it reads the planned arrays and writes the same out and lse each time. The plan holds all of them, and its
    workspace, as long as it lives. On a GPU a call looks up CuPy's current stream of the arrays' device and whether it
    captures, enqueues the work there and does not wait for it. It allocates where the stream is not that of the last
    call: a workspace from the pool of the new one.

    Threads and streams: calls of one plan from several threads are issued one after the other. But a plan has one out
    and one lse, so the caller must order its calls on different streams, as for all writers of one array; otherwise
    use a plan per stream, or give each call its own out and lse.

    CUDA graphs: a call may be captured. The graph then uses the arrays of the plan: keep the plan, or those arrays, as
    long as the graph. Graphs that hold calls of the same plan share a workspace, so they must not run at the same time
    as each other. Calls outside of graphs do not disturb them. Make the plan before the capture: it allocates.
    """

    __slots__ = (
        "__weakref__", "_addresses", "_arrays", "_check", "_lock", "_lse", "_memory", "_out", "_params", "_problem",
        "_reference", "_result", "_run", "_specs", "_to_error",
    )  # fmt: skip

    def __init__(self, kind: Prepared, arrays: list[Any], out: Any, lse: Any, return_lse: bool) -> None:
        """For the arrays of `prepare`, which this plan takes over; out and lse are the caller's own objects."""
        problem = kind.problem
        self._memory: Any = _OnHost(kind) if problem.device == HOST else _OnDevice(kind)
        if arrays[3] is None:
            arrays[3] = self._memory.empty(problem.out_shape, problem.dtype)
        lse_array = None if lse is None else native("lse", lse)
        if lse_array is not None:
            check_lse(spec(lse_array), problem)
        elif return_lse:
            lse_array = self._memory.empty(problem.lse_shape, FLOAT32)
        self._problem, self._arrays = problem, [*arrays, lse_array]
        planned = zip(_REPLACEABLE, [*arrays[:4], lse_array], strict=True)
        by_name = {name: x for name, x in planned if x is not None}
        self._specs: dict[str, Spec] = {name: spec(x) for name, x in by_name.items()}
        self._addresses = {name: self._address(name, x) for name, x in by_name.items()}
        self._params = fill(
            kind, [None if x is None else self._memory.pointer(x) for x in arrays], self._addresses.get("lse"), 0
        )
        self._params.num_threads = _host.num_threads() if problem.device == HOST else 0
        self._reference = byref(self._params)
        self._run: Any = kind.library.cdll.run_mha_v3
        self._to_error = kind.library.check
        self._check = arrays[4] is not None and lengths_are_checked()
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

    def __call__(
        self,
        *,
        q: Array | None = None,
        k: Array | None = None,
        v: Array | None = None,
        out: Array | None = None,
        lse: Array | None = None,
    ) -> Any:
        """Issues the call; arrays given here take the place of the planned ones, for this call only.

        Args:
            q: an array of the shape, strides, dtype and device of the planned q, at an address that is a multiple of
                16 bytes on a GPU and of the dtype's size on the host.
            k: the same for k.
            v: the same for v.
            out: the same for out.
            lse: the same for lse, at a multiple of 4 bytes, for a plan that has one.

        Returns:
            out, or (out, lse) for a plan that has an lse: the arrays that were written.

        Raises:
            ValueError: a replacement differs in shape, strides or place, is misaligned or read-only, or is an lse for
                a plan without one.
            TypeError: a replacement has another dtype, or is no array.
            RuntimeError: CUDA refused a launch.
        """
        with self._lock:
            if q is None and k is None and v is None and out is None and lse is None:
                self._issue()
                return self._result
            return self._issue_with({"q": q, "k": k, "v": v, "out": out, "lse": lse})

    def _issue(self) -> None:
        if self._check:
            check_lengths(self._problem, self._arrays)
        status = self._run(self._reference, self._memory.stream(self._params))
        if status:
            self._to_error(status)

    def _issue_with(self, given: dict[str, Any]) -> Any:
        # Replacements that are views made by DLPack must live until the work is enqueued: hence the arrays.
        new = {name: self._replacement(name, x) for name, x in given.items() if x is not None}
        try:
            for name, (_, address) in new.items():
                setattr(self._params, name, address)
            self._issue()
        finally:
            for name in new:
                setattr(self._params, name, self._addresses[name])
        out = self._out if given["out"] is None else given["out"]
        if self._lse is None:
            return out
        return out, self._lse if given["lse"] is None else given["lse"]

    def _replacement(self, name: str, x: Any) -> tuple[Any, int]:
        if name not in self._specs:
            made = "return_lse=True" if name == "lse" else "v instead of d_v"
            raise ValueError(f"{name} is given, but this plan has none; make it with {made}")
        array = native(name, x)
        if spec(array) != self._specs[name]:
            raise _difference(name, spec(array), self._specs[name])
        return array, self._address(name, array)

    def _address(self, name: str, x: Any) -> int:
        if name in ("out", "lse"):
            check_writable(name, x)
        address: int = self._memory.pointer(x)
        alignment = FLOAT32.itemsize if name == "lse" else self._problem.alignment
        if address % alignment:
            raise alignment_error(name, address, alignment)
        return address


def _difference(name: str, given: Spec, planned: Spec) -> Exception:
    """What is raised for a replacement that is not like the planned array."""
    if given[2] != planned[2]:
        return TypeError(f"{name} has dtype {given[2]}; this plan was made for {planned[2]}")
    if given[3] != planned[3]:
        return ValueError(f"{name} is {place(given[3])}; this plan was made for arrays {place(planned[3])}")
    if given[0] != planned[0]:
        return ValueError(f"{name} has shape {given[0]}; this plan was made for {planned[0]}")
    return ValueError(f"{name} has strides {given[1]} bytes; this plan was made for {planned[1]}")


def plan(
    q: Array,
    k: Array,
    v: Array | None,
    *,
    cu_seqlens_q: Array | None = None,
    cu_seqlens_k: Array | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    seqused_q: Array | None = None,
    seqused_k: Array | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Array | None = None,
    sinks: Array | None = None,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    out: Array | None = None,
    lse: Array | None = None,
    return_lse: bool = False,
    d_v: int | None = None,
) -> Plan:
    """Prepares a call of flash_attn_func, or with cu_seqlens of flash_attn_varlen_func, to be issued many times.

    It checks everything and allocates what is missing, but computes nothing; each call of the plan then does:

        step = plan(q, k, v, causal=True)
        step()            # computes step.out from what q, k and v hold now
        step(q=other_q)   # the same from another array like q

    The result has the bits that the function of the same arguments gives. Contents may change between calls, those of
    cu_seqlens, seqused, alibi_slopes and sinks too; addresses, shapes and options stay. The environment variables
    PYFLASH3_CHECK and PYFLASH3_NUM_THREADS are read here, once.

    Arrays of other frameworks are taken through DLPack here: their producers' work so far is ordered before CuPy's
    current stream now, but later work on other streams is for the caller to order.

    Args:
        q: (batch, seqlen_q, nheads, head_dim), or (total_q, nheads, head_dim) with cu_seqlens. It and all arguments
            not named here are as in flash_attn_func and flash_attn_varlen_func.
        k: (batch, seqlen_k, nheads_k, head_dim), or (total_k, nheads_k, head_dim).
        v: (batch, seqlen_k, nheads_k, head_dim_v), or (total_k, nheads_k, head_dim_v); or None with d_v.
        out: q's shape with head_dim_v, in q's dtype: where calls write to; None: a new array of the plan's own.
        lse: (batch, nheads, seqlen_q), or (nheads, total_q), contiguous float32: where calls write the log-sum-exp.
        return_lse: without lse, calls write the log-sum-exp to a new array of the plan's own.

    Returns:
        A Plan: call it to issue the work; its `out` and `lse` are what it writes to.

    Raises:
        ValueError, TypeError, NotImplementedError, RuntimeError, ImportError: as the functions, and for lse.
    """
    options = Options(
        softmax_scale, causal, window_size, softcap, alibi_slopes, sinks, num_splits, pack_gqa, sm_margin, d_v
    )
    lengths = (cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, max_seqlen_q, max_seqlen_k)
    packed = any(x is not None for x in lengths)
    kind, arrays = prepare(q, k, v, options, out, lengths if packed else None)
    return Plan(kind, arrays, out, lse, return_lse)
