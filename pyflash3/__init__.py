"""Exact attention (FlashAttention-3 class) for CuPy, NumPy and DLPack arrays, through the C library libflash3."""

from __future__ import annotations

from . import reference
from ._abi import VERSION
from ._errors import (
    AbiMismatchError,
    CudaError,
    Flash3Error,
    InternalError,
    InvalidArgumentError,
    LibraryNotFoundError,
    NoDeviceError,
    UnsupportedError,
)
from .attention import flash_attn_func, flash_attn_qkvpacked_func, flash_attn_varlen_func
from .combine import flash_attn_combine
from .kvcache import flash_attn_with_kvcache
from .plans import KVCachePlan, Plan, plan, plan_with_kvcache

__version__ = VERSION

__all__ = [
    "AbiMismatchError",
    "CudaError",
    "Flash3Error",
    "InternalError",
    "InvalidArgumentError",
    "KVCachePlan",
    "LibraryNotFoundError",
    "NoDeviceError",
    "Plan",
    "UnsupportedError",
    "__version__",
    "flash_attn_combine",
    "flash_attn_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "plan",
    "plan_with_kvcache",
    "reference",
]
