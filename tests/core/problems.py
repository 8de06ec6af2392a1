"""Parameter structs of valid calls, for tests that spoil one field. Pointers are addresses that nothing reads."""

from __future__ import annotations

import ctypes

from pyflash3._abi import ABI_VERSION, BACKEND_CUDA, FLOAT16, Params

ADDRESS = 1 << 20  # aligned to all that is asked for


def params(**changes: float | None) -> Params:
    """A dense float16 call on the CUDA backend: batch 2, 8 heads on 2, 100 rows on 300, head dims 64 and 32."""
    p = Params()
    p.struct_size = ctypes.sizeof(Params)
    p.abi_version = ABI_VERSION
    p.backend, p.device, p.dtype = BACKEND_CUDA, -1, FLOAT16
    p.batch, p.nheads, p.nheads_k, p.head_dim, p.head_dim_v = 2, 8, 2, 64, 32
    p.seqlen_q, p.seqlen_k = 100, 300
    for name, rows, heads, dim in [("q", 100, 8, 64), ("k", 300, 2, 64), ("v", 300, 2, 32), ("out", 100, 8, 32)]:
        setattr(p, name, ADDRESS)
        setattr(p, f"{name}_head_stride", dim)
        setattr(p, f"{name}_row_stride", dim * heads)
        setattr(p, f"{name}_batch_stride", dim * heads * rows)
    p.lse, p.lse_head_stride, p.lse_batch_stride = ADDRESS, 100, 800
    p.softmax_scale = 0.125
    p.window_left = p.window_right = -1
    p.workspace, p.workspace_bytes = ADDRESS, 1 << 20
    for name, value in changes.items():
        assert hasattr(p, name), f"flash3_params has no field {name}"
        setattr(p, name, value)
    return p


def packed(**changes: float | None) -> Params:
    """The same call with packed q and k."""
    lengths: dict[str, float | None] = {
        "cu_seqlens_q": ADDRESS, "cu_seqlens_k": ADDRESS, "total_q": 200, "total_k": 600, "lse_head_stride": 200,
        "seqlen_q": 0, "seqlen_k": 0,
    }  # fmt: skip
    return params(**(lengths | changes))
