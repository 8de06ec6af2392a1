"""Many calls: 1000 random ragged batches, and the same call again and again with the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.gpu.machine import HOST
from tests.gpu.problem import Lengths, Problem, check, make
from tests.gpu.repeats import other_work, same_every_time

BATCHES_PER_TEST = 50
REPEATS = 20 if HOST else 1000


def _random_problem(seed: int) -> Problem:
    rng = np.random.default_rng(9000 + seed)
    most = int(rng.choice([4, 40, 200, 200, 500]))

    def length() -> int:
        return 0 if rng.random() < 0.1 else int(rng.integers(1, most + 1))

    lengths: Lengths = tuple((length(), length()) for _ in range(int(rng.integers(1, 13))))
    nheads_k = int(rng.choice([1, 2, 4]))
    return Problem(
        str(rng.choice(["float16", "bfloat16"])),
        lengths,
        nheads=4,
        nheads_k=nheads_k,
        head_dim=int(rng.choice([64, 64, 128, 128, 256, 96, 192, 80])),
        packed=True,
        causal=True,
        window=(int(rng.integers(0, most + 1)), -1) if rng.random() < 0.2 else (-1, -1),
        seed=seed,
    )


@pytest.mark.parametrize("block", range(2 if HOST else 20))
def test_random_ragged_causal_batches(block: int, record_property: Callable[[str, object], None]) -> None:
    shares = []
    for seed in range(block * BATCHES_PER_TEST, (block + 1) * BATCHES_PER_TEST):
        figures = check(_random_problem(seed))
        shares.append(figures["error"] / figures["allowed"])
    record_property("batches", len(shares))
    record_property("worst_share_of_allowed_error", max(shares))


SAME: list[dict[str, Any]] = [
    {"lengths": ((1024, 1024),) * 2, "causal": True, "head_dim": 128},
    {"lengths": ((999, 1024),) * 2, "head_dim": 64, "dtype": "float16"},
    {"lengths": ((513, 700),) * 3, "head_dim": 256, "window": (200, 50)},
    {"lengths": ((1743, 1743), (1559, 1559), (3, 900)), "packed": True, "causal": True, "head_dim": 128},
    {"lengths": ((300, 300),) * 40, "packed": True, "causal": True, "head_dim": 64, "softcap": 5.0, "sinks": True},
]


@pytest.mark.parametrize("options", SAME, ids=["causal", "float16", "window", "varlen", "many_sequences"])
@pytest.mark.parametrize("busy", [False, True], ids=["alone", "beside_other_work"])
def test_every_run_gives_the_same_bits(busy: bool, options: dict[str, Any]) -> None:
    inputs = make(Problem(nheads=8, nheads_k=2, **options))
    noise = other_work() if busy else lambda: None
    arguments = {**inputs.lengths, **inputs.options(), "return_lse": True}
    same_every_time(
        lambda: inputs.function()(inputs.q, inputs.k, inputs.v, **arguments),
        REPEATS // (5 if busy else 1),
        lambda _: noise(),
    )
