"""flash3.h in ctypes: the parameter struct, the signature of every function, and the check that both sides agree."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p

VERSION = "0.1.0"
ABI_VERSION = 3

BACKEND_HOST = 0
BACKEND_CUDA = 1

FLOAT16 = 0
BFLOAT16 = 1
FLOAT32 = 2


class Params(ctypes.Structure):
    """flash3_params. flash3.h says of every pointer its shape, its dtype and whether it may be NULL."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("abi_version", c_uint32),
        ("backend", c_int32),
        ("device", c_int32),
        ("dtype", c_int32),
        ("nheads", c_int32),
        ("nheads_k", c_int32),
        ("head_dim", c_int32),
        ("head_dim_v", c_int32),
        ("batch", c_int32),
        ("seqlen_q", c_int64),
        ("seqlen_k", c_int64),
        ("total_q", c_int64),
        ("total_k", c_int64),
        ("q", c_void_p),
        ("k", c_void_p),
        ("v", c_void_p),
        ("out", c_void_p),
        ("lse", c_void_p),
        ("q_batch_stride", c_int64),
        ("q_row_stride", c_int64),
        ("q_head_stride", c_int64),
        ("k_batch_stride", c_int64),
        ("k_row_stride", c_int64),
        ("k_head_stride", c_int64),
        ("v_batch_stride", c_int64),
        ("v_row_stride", c_int64),
        ("v_head_stride", c_int64),
        ("out_batch_stride", c_int64),
        ("out_row_stride", c_int64),
        ("out_head_stride", c_int64),
        ("lse_batch_stride", c_int64),
        ("lse_head_stride", c_int64),
        ("cu_seqlens_q", c_void_p),
        ("cu_seqlens_k", c_void_p),
        ("seqused_q", c_void_p),
        ("seqused_k", c_void_p),
        ("max_seqlen_q", c_int64),
        ("max_seqlen_k", c_int64),
        ("cache_batch_idx", c_void_p),
        ("cache_leftpad", c_void_p),
        ("page_table", c_void_p),
        ("page_table_batch_stride", c_int64),
        ("batch_cache", c_int32),
        ("page_size", c_int32),
        ("num_pages", c_int32),
        ("max_pages", c_int32),
        ("k_new", c_void_p),
        ("v_new", c_void_p),
        ("k_new_batch_stride", c_int64),
        ("k_new_row_stride", c_int64),
        ("k_new_head_stride", c_int64),
        ("v_new_batch_stride", c_int64),
        ("v_new_row_stride", c_int64),
        ("v_new_head_stride", c_int64),
        ("cu_seqlens_k_new", c_void_p),
        ("seqlen_k_new", c_int64),
        ("total_k_new", c_int64),
        ("rotary_cos", c_void_p),
        ("rotary_sin", c_void_p),
        ("rotary_cos_row_stride", c_int64),
        ("rotary_sin_row_stride", c_int64),
        ("rotary_seqlens", c_void_p),
        ("seqlen_rotary", c_int64),
        ("rotary_dim", c_int32),
        ("rotary_interleaved", c_int32),
        ("softmax_scale", c_float),
        ("softcap", c_float),
        ("window_left", c_int64),
        ("window_right", c_int64),
        ("alibi_slopes", c_void_p),
        ("alibi_batch_stride", c_int64),
        ("sinks", c_void_p),
        ("num_splits", c_int32),
        ("sm_margin", c_int32),
        ("num_threads", c_int32),
        ("reserved", c_int32),
        ("workspace", c_void_p),
        ("workspace_bytes", c_uint64),
    ]


class CombineParams(ctypes.Structure):
    """flash3_combine_params, likewise."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("abi_version", c_uint32),
        ("backend", c_int32),
        ("device", c_int32),
        ("dtype", c_int32),
        ("num_splits", c_int32),
        ("batch", c_int32),
        ("nheads", c_int32),
        ("head_dim", c_int32),
        ("num_threads", c_int32),
        ("seqlen", c_int64),
        ("out_partial", c_void_p),
        ("lse_partial", c_void_p),
        ("out", c_void_p),
        ("lse", c_void_p),
        ("out_partial_split_stride", c_int64),
        ("out_partial_batch_stride", c_int64),
        ("out_partial_row_stride", c_int64),
        ("out_partial_head_stride", c_int64),
        ("lse_partial_split_stride", c_int64),
        ("lse_partial_batch_stride", c_int64),
        ("lse_partial_row_stride", c_int64),
        ("lse_partial_head_stride", c_int64),
        ("out_batch_stride", c_int64),
        ("out_row_stride", c_int64),
        ("out_head_stride", c_int64),
        ("lse_batch_stride", c_int64),
        ("lse_row_stride", c_int64),
        ("lse_head_stride", c_int64),
    ]


class Field(ctypes.Structure):
    """flash3_field: the place of one field of a struct in the library."""

    _fields_ = [("name", c_char_p), ("offset", c_uint32), ("size", c_uint32)]


Layout = list[tuple[str, int, int]]


# What the library exports of each struct, and our mirror of it.
_STRUCTS: dict[str, type[ctypes.Structure]] = {"flash3_params": Params, "flash3_combine_params": CombineParams}


def own_layout(struct: str = "flash3_params") -> Layout:
    """(name, offset, size in bytes) of every field of our mirror of a struct, in order."""
    mirror = _STRUCTS[struct]
    names = [field[0] for field in mirror._fields_]
    return [(name, getattr(mirror, name).offset, getattr(mirror, name).size) for name in names]


def library_layout(lib: ctypes.CDLL, struct: str = "flash3_params") -> Layout:
    """The same, as the library exports it."""
    count = c_uint32()
    fields = getattr(lib, f"{struct}_layout")(ctypes.byref(count))
    return [(fields[i].name.decode(), fields[i].offset, fields[i].size) for i in range(count.value)]


def declare(lib: ctypes.CDLL) -> None:
    """Sets argument and result types of every function of flash3.h. AttributeError names one that is missing."""
    lib.run_mha_v3.argtypes = [POINTER(Params), c_void_p]
    lib.run_mha_v3.restype = c_int32
    lib.flash3_workspace_size.argtypes = [POINTER(Params), POINTER(c_size_t)]
    lib.flash3_workspace_size.restype = c_int32
    lib.flash3_combine.argtypes = [POINTER(CombineParams), c_void_p]
    lib.flash3_combine.restype = c_int32
    lib.flash3_last_error.argtypes = []
    lib.flash3_last_error.restype = c_char_p
    lib.flash3_version.argtypes = []
    lib.flash3_version.restype = c_char_p
    lib.flash3_abi_version.argtypes = []
    lib.flash3_abi_version.restype = c_uint32
    for struct in _STRUCTS:
        layout = getattr(lib, f"{struct}_layout")
        layout.argtypes = [POINTER(c_uint32)]
        layout.restype = POINTER(Field)
    lib.flash3_build_info.argtypes = []
    lib.flash3_build_info.restype = c_char_p
    lib.flash3_device_check.argtypes = [c_int32]
    lib.flash3_device_check.restype = c_int32


def mismatch(lib: ctypes.CDLL) -> str | None:
    """What makes the library unusable for this package, in one sentence; None when both sides agree."""
    version = lib.flash3_version().decode()
    abi_version = lib.flash3_abi_version()
    both = f"the library is version {version} (ABI {abi_version}), this package is {VERSION} (ABI {ABI_VERSION})"
    if abi_version != ABI_VERSION:
        return f"{both}; rebuild or reinstall one of them"
    for struct in _STRUCTS:
        theirs, ours = library_layout(lib, struct), own_layout(struct)
        if theirs == ours:
            continue
        odd = next((b or a for a, b in zip(theirs, ours, strict=False) if a != b), None)
        where = f"field {odd[0]!r} lies elsewhere" if odd else f"it has {len(theirs)} fields instead of {len(ours)}"
        return f"{struct} differs: {where}; {both}"
    return None
