"""SPEC section 5 for flash_attn_combine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyflash3 import flash_attn_combine

F32, F16 = np.float32, np.float16


def zeros(*shape: int, dtype: Any = F32) -> Any:
    return np.zeros(shape, dtype)


OUT, LSE = (3, 2, 5, 4, 8), (3, 2, 5, 4)
COMBINE: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "rank": ({"out_partial": zeros(3, 5, 4, 8)}, ValueError, "out_partial has shape (3, 5, 4, 8); it must have 5 dimensions (num_splits, batch, seqlen, nheads, head_dim)"),
    "dtype": ({"out_partial": zeros(*OUT, dtype=F16)}, TypeError, "out_partial has dtype float16; it must be float32"),
    "lse dtype": ({"lse_partial": zeros(*LSE, dtype=np.float64)}, TypeError, "lse_partial has dtype float64; it must be float32"),
    "lse order": ({"lse_partial": zeros(3, 2, 4, 5)}, ValueError, "lse_partial has shape (3, 2, 4, 5); it must be (3, 2, 5, 4)"),
    "no splits": ({"out_partial": zeros(0, 2, 5, 4, 8)}, ValueError, "out_partial has shape (0, 2, 5, 4, 8); the first dimension must be from 1 to 256 splits"),
    "splits": ({"out_partial": zeros(257, 1, 1, 1, 8)}, ValueError, "the first dimension must be from 1 to 256 splits"),
    "heads": ({"out_partial": zeros(3, 2, 5, 0, 8)}, ValueError, "nheads and head_dim must be at least 1"),
    "stride": ({"out_partial": zeros(3, 2, 5, 4, 16)[..., ::2]}, ValueError, "out_partial has a last-dimension stride of 8 bytes; it must be contiguous"),
    "out shape": ({"out": zeros(2, 5, 4, 16)}, ValueError, "out has shape (2, 5, 4, 16); it must be (2, 5, 4, 8)"),
    "out dtype": ({"out": zeros(2, 5, 4, 8, dtype=np.float64)}, TypeError, "out is of dtype float64; allowed are float16, bfloat16, float32"),
    "out_dtype": ({"out_dtype": np.int8}, TypeError, "out_dtype is of dtype int8; allowed are"),
    "both": ({"out": zeros(2, 5, 4, 8), "out_dtype": F16}, TypeError, "out has dtype float32, but out_dtype is float16; they must be equal"),
    "list": ({"lse_partial": [0.0]}, TypeError, "lse_partial is of type list; it must be"),
}  # fmt: skip


def combine(**changes: Any) -> Any:
    return flash_attn_combine(**{"out_partial": zeros(*OUT), "lse_partial": zeros(*LSE), **changes})


@pytest.mark.parametrize("name", COMBINE)
def test_combine(name: str) -> None:
    combine()
    changes, kind, words = COMBINE[name]
    with pytest.raises(kind) as info:
        combine(**changes)
    assert words in str(info.value)
    assert "\n" not in str(info.value)


def read_only() -> Any:
    out = zeros(2, 5, 4, 8)
    out.flags.writeable = False
    return out


def test_out_that_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="out is a read-only array; it must be writable"):
        combine(out=read_only())
    with pytest.raises(ValueError, match="none may be 0, since its rows would overlap"):
        combine(out=np.broadcast_to(zeros(1, 5, 4, 8), (2, 5, 4, 8)))


def test_misaligned_memory() -> None:
    odd = np.zeros(int(np.prod(LSE)) * 4 + 1, np.uint8)[1:].view(F32).reshape(LSE)
    with pytest.raises(ValueError, match=r"lse_partial starts at address 0x\w+; it must be a multiple of 4 bytes"):
        combine(lse_partial=odd)
