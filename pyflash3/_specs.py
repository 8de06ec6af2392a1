"""What the arrays of a call look like, without their data, and the checks that all of them go through.

ValueError: a shape, stride or place is wrong. TypeError: a dtype is. Nothing here touches a GPU.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

HOST = -1
MAX_HEAD_DIM = 576
MAX_HEAD_DIM_V = 512
MAX_ROWS = 2**31 - 1
MAX_SPLITS = 256
CUDA_ALIGNMENT = 16  # bytes; the tensor memory accelerator of the GPU needs it of addresses and strides

FLOAT16 = np.dtype(np.float16)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32 = np.dtype(np.float32)
INT32 = np.dtype(np.int32)

# Shape, strides in bytes, dtype, and the CUDA ordinal or HOST. A plain tuple, since one is made per array and call.
Spec = tuple[tuple[int, ...], tuple[int, ...], "np.dtype[Any]", int]
Strides = tuple[int, int, int]  # of batch, row and head, in elements


def place(device: int) -> str:
    """A device ordinal in words."""
    return "on the host" if device == HOST else f"on CUDA device {device}"


def check_rank(name: str, spec: Spec, ndim: int, layout: str) -> None:
    """ValueError unless spec has ndim dimensions; layout names them."""
    if len(spec[0]) != ndim:
        raise ValueError(f"{name} has shape {spec[0]}; it must have {ndim} dimensions {layout}")


def check_head_dim(name: str, spec: Spec, most: int) -> None:
    """ValueError for a last dimension that is no legal head dim."""
    head_dim = spec[0][-1]
    if head_dim % 8 or not 8 <= head_dim <= most:
        raise ValueError(f"{name} has head_dim {head_dim}; it must be a multiple of 8 from 8 to {most}")


def check_vector(name: str, spec: Spec | None, length: int, meaning: str, dtype: np.dtype[Any]) -> None:
    """ValueError or TypeError unless spec, if there is one, is a contiguous (length,) array of dtype."""
    if spec is None:
        return
    if spec[2] != dtype:
        raise TypeError(f"{name} has dtype {spec[2]}; it must be {dtype}")
    if spec[0] != (length,):
        raise ValueError(f"{name} has shape {spec[0]}; it must be ({length},), that is ({meaning},)")
    if length > 1 and spec[1][0] != dtype.itemsize:
        raise ValueError(f"{name} has a stride of {spec[1][0]} bytes; it must be contiguous")


def leading_strides(name: str, spec: Spec) -> list[int]:
    """Strides of all dimensions but the last one in elements, once the memory layout has been checked."""
    shape, strides, dtype, device = spec
    itemsize = dtype.itemsize
    if strides[-1] != itemsize and 0 not in shape:
        raise ValueError(f"{name} has a last-dimension stride of {strides[-1]} bytes; it must be contiguous")
    unit = itemsize if device == HOST else CUDA_ALIGNMENT
    result = []
    for extent, stride in zip(shape[:-1], strides[:-1], strict=True):
        if extent < 2 or 0 in shape:
            stride = shape[-1] * itemsize  # never used to reach anything, so any legal value will do
        elif stride % unit:
            raise ValueError(f"{name} has strides {strides} bytes; each must be a multiple of {unit} bytes")
        elif stride < 0 and device != HOST:
            raise ValueError(f"{name} has strides {strides} bytes; on a GPU none may be negative")
        result.append(stride // itemsize)
    return result


def tensor_strides(name: str, spec: Spec) -> Strides:
    """Strides of batch (0 when packed), row and head of a tensor, likewise."""
    batch, row, head = [0, *leading_strides(name, spec)][-3:]
    return batch, row, head


def check_no_overlap(name: str, spec: Spec) -> None:
    """ValueError for an array that is to be written and has several elements in one place."""
    shape, strides = spec[:2]
    if 0 not in shape and any(s == 0 and n > 1 for n, s in zip(shape, strides, strict=True)):
        raise ValueError(f"{name} has strides {strides} bytes; none may be 0, since its rows would overlap")
