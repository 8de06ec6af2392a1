"""Parameter structs of valid calls, for tests that spoil one field. Pointers are addresses that nothing reads."""

from __future__ import annotations

import ctypes

from pyflash3._abi import ABI_VERSION, BACKEND_CUDA, BACKEND_HOST, FLOAT16, CombineParams, Params

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
        setattr(p, name, 2 * ADDRESS if name == "out" else ADDRESS)
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


def cached(**changes: float | None) -> Params:
    """The same call on the host, with keys in 40 pages of 16 rows, 3 new rows a sequence and rotary embedding of 32."""
    cache: dict[str, float | None] = {
        "backend": BACKEND_HOST, "seqused_k": ADDRESS, "page_table": ADDRESS, "page_table_batch_stride": 20,
        "page_size": 16, "num_pages": 40, "max_pages": 20, "k_batch_stride": 2048, "v_batch_stride": 1024,
        "k_new": ADDRESS, "k_new_head_stride": 64, "k_new_row_stride": 128, "k_new_batch_stride": 384,
        "v_new": ADDRESS, "v_new_head_stride": 32, "v_new_row_stride": 64, "v_new_batch_stride": 192,
        "seqlen_k_new": 3, "rotary_cos": ADDRESS, "rotary_sin": ADDRESS, "rotary_cos_row_stride": 16,
        "rotary_sin_row_stride": 16, "seqlen_rotary": 320, "rotary_dim": 32, "seqlen_k": 0,
    }  # fmt: skip
    return params(**(cache | changes))


def combined(**changes: float | None) -> CombineParams:
    """A call of flash3_combine on the host: 3 splits, batch 2, 100 rows, 8 heads, head dim 32, to float16."""
    p = CombineParams()
    p.struct_size = ctypes.sizeof(CombineParams)
    p.abi_version = ABI_VERSION
    p.backend, p.device, p.dtype = BACKEND_HOST, -1, FLOAT16
    p.num_splits, p.batch, p.nheads, p.head_dim, p.seqlen = 3, 2, 8, 32, 100
    p.out_partial = p.lse_partial = p.out = p.lse = ADDRESS
    for name in ("out_partial", "out"):
        setattr(p, f"{name}_head_stride", 32)
        setattr(p, f"{name}_row_stride", 256)
        setattr(p, f"{name}_batch_stride", 25600)
    for name in ("lse_partial", "lse"):
        setattr(p, f"{name}_row_stride", 1)
        setattr(p, f"{name}_head_stride", 100)
        setattr(p, f"{name}_batch_stride", 800)
    p.out_partial_split_stride, p.lse_partial_split_stride = 51200, 1600
    for name, value in changes.items():
        assert hasattr(p, name), f"flash3_combine_params has no field {name}"
        setattr(p, name, value)
    return p
