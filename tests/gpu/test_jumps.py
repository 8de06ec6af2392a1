"""Scores that leave the softmax's reference far behind: a first key that draws everything, scores that grow from block
to block, jumps beyond the range of float32's exponential.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from tests.gpu.machine import HOST, put
from tests.gpu.problem import Inputs, Problem, check_inputs, make

DENSE = ((100, 300),) * 2 if HOST else ((700, 900),) * 2
RAGGED = ((5, 300), (100, 200), (0, 7)) if HOST else ((5, 300), (300, 1000), (513, 513), (0, 7), (191, 640))

DIMS = ((8, 8), (40, 64), (64, 64), (72, 72), (128, 128), (192, 128), (192, 192), (256, 256), (512, 512))


def heights(pattern: str, length: int, nats: float) -> Any:
    """What is added to every score of each key of a sequence. The kernel goes from the last key to the first."""
    keys = np.arange(length)
    if pattern == "first_key":
        return np.where(keys == 0, nats, 0.0)
    if pattern == "all_keys":
        return np.full(length, nats)
    if pattern == "some_keys":
        return np.where(keys % 97 == 3, nats * (1 + keys[::-1] / 300), 0.0)
    return nats * (length - keys) / 128  # "growing"


def raise_scores(inputs: Inputs, pattern: str, nats: float) -> None:
    """Column 0 of q is 1 and column 0 of k carries the heights."""
    p = inputs.problem
    rows = [heights(pattern, length, nats) for _, length in p.lengths]
    added = np.concatenate(rows) if p.packed else np.stack(rows)
    inputs.q[..., 0] = 1
    inputs.k[..., 0] = put((added * math.sqrt(p.head_dim)).astype(np.float32))[..., None]


@pytest.mark.parametrize("nats", [12.0, 40.0, 300.0])
@pytest.mark.parametrize("pattern", ["first_key", "some_keys", "growing"])
@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (260, 40)}], ids=["full", "causal", "window"])
def test_jumps(pattern: str, nats: float, dims: tuple[int, int], options: dict[str, Any]) -> None:
    seed = round(nats) + dims[0]
    for dtype, packed in (
        (("bfloat16", False), ("float16", True)) if seed % 2 else (("float16", False), ("bfloat16", True))
    ):
        p = Problem(
            dtype=dtype, lengths=RAGGED if packed else DENSE, nheads=4, nheads_k=2,
            head_dim=dims[0], head_dim_v=dims[1], packed=packed, seed=seed, **options,
        )  # fmt: skip
        inputs = make(p)
        raise_scores(inputs, pattern, nats)
        check_inputs(inputs)


@pytest.mark.parametrize("softcap", [20.0, 60.0, 200.0])
@pytest.mark.parametrize(("pattern", "nats"), [("first_key", 0.0), ("first_key", 50.0), ("growing", 6.0)])
@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_softcaps_of_growing_scores(
    softcap: float, pattern: str, nats: float, dims: tuple[int, int], causal: bool
) -> None:
    """Scores within a third of the cap, scores beyond it, and rows that go from one to the other."""
    seed = round(nats) + dims[0] + round(softcap)
    dtype = "float16" if seed % 3 else "bfloat16"
    p = Problem(
        dtype=dtype, lengths=DENSE, nheads=4, nheads_k=2, head_dim=dims[0], head_dim_v=dims[1], softcap=softcap,
        causal=causal, seed=seed,
    )  # fmt: skip
    inputs = make(p)
    raise_scores(inputs, pattern, nats)
    check_inputs(inputs)


MANY = ((130, 200),) if HOST else ((700, 900),) * 2
MANY_RAGGED = ((5, 60), (100, 130), (0, 7)) if HOST else ((700, 900), (5, 300), (1000, 1000), (0, 7), (191, 640))


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("dims", [(64, 64), (72, 72), (128, 128), (192, 128)], ids=str)
def test_softcaps_of_many_tiles(dims: tuple[int, int], packed: bool) -> None:
    """The kernels for nothing but a softcap, which calls of few tiles do not take: as above, and with windows."""
    masks: tuple[dict[str, Any], ...] = ({"causal": True}, {}, {"window": (300, 20)})
    patterns = (("first_key", 0.0), ("first_key", 50.0), ("growing", 6.0))
    for dtype, softcap, (pattern, nats), mask in itertools.product(
        ("bfloat16", "float16"), (20.0, 60.0), patterns, masks
    ):
        p = Problem(
            dtype=dtype, lengths=MANY_RAGGED if packed else MANY, nheads=2 if HOST else 32, nheads_k=2,
            head_dim=dims[0], head_dim_v=dims[1], softcap=softcap, packed=packed, seed=round(nats) + dims[0], **mask,
        )  # fmt: skip
        inputs = make(p)
        raise_scores(inputs, pattern, nats)
        check_inputs(inputs)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("dims", [(72, 72), (128, 128), (192, 128)], ids=str)
@pytest.mark.parametrize("softcap", [30.0, 50.0, 200.0])
def test_softcaps_of_small_scores(softcap: float, dims: tuple[int, int], packed: bool) -> None:
    """Scores for which the monic polynomial does, in all rows or until a row jumps; too low, and too high ones."""
    masks: tuple[dict[str, Any], ...] = ({"causal": True}, {}, {"window": (300, 20)})
    patterns = (
        ("all_keys", 0.0), ("all_keys", -4.0), ("all_keys", -9.0), ("all_keys", -100.0), ("all_keys", 6.0),
        ("all_keys", 40.0), ("some_keys", 9.0), ("first_key", 25.0), ("growing", 1.0), ("growing", -1.0),
    )  # fmt: skip
    for (pattern, nats), mask in itertools.product(patterns, masks):
        p = Problem(
            dtype="bfloat16", lengths=MANY_RAGGED if packed else MANY, nheads=2 if HOST else 32, nheads_k=2,
            head_dim=dims[0], head_dim_v=dims[1], softcap=softcap, packed=packed, seed=dims[0], **mask,
        )  # fmt: skip
        inputs = make(p)
        inputs.q = (inputs.q.astype(np.float32) / 4).astype(inputs.q.dtype)  # standard normal
        raise_scores(inputs, pattern, nats)
        check_inputs(inputs)


@pytest.mark.parametrize("dims", [(128, 128), (192, 192), (256, 256), (512, 512)], ids=str)
def test_a_softcap_beyond_what_polynomials_hold(dims: tuple[int, int]) -> None:
    """float32 has no fifth power of 1 / softcap there; and every score is below 0, as is the limit of no polynomial."""
    p = Problem(
        lengths=DENSE, nheads=4, nheads_k=2, head_dim=dims[0], head_dim_v=dims[1], softcap=1e9, causal=True, seed=4
    )
    inputs = make(p)
    inputs.q[..., 0] = 1
    inputs.k[..., 0] = -60 * math.sqrt(p.head_dim)
    check_inputs(inputs)
