"""The grids `wide` and `mla` without a GPU: their shapes, rows and tables, and the check of a latent cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyflash3 import flash_attn_with_kvcache
from pyflash3.tools.bench import chart, screen
from scripts.benchlib import latent, peers, rows
from scripts.benchlib.cache_shapes import CacheShape
from scripts.benchlib.shapes import Shape, grids

CEILINGS = {"matmul_tflops": 800.0, "copy_tb_per_s": 4.0}


def test_the_grids() -> None:
    assert [str(shape) for shape in grids()["wide"]] == [
        "4x4096 h8/4 d512 causal", "1x16384 h8/4 d512 causal", "2x8192 h16 d192/128 causal",
    ]  # fmt: skip
    names = [str(shape) for shape in grids()["mla"]]
    assert len(set(names)) == len(names) == 16
    assert "cache 128x4096 h128/1 latent d576/512 dense" in names
    assert "cache 128x8192 q2 h16/1 latent d576/512 pages of 64" in names


def test_what_a_head_dim_of_v_costs() -> None:
    shape = Shape((100,), 6, 2, 192, False, head_dim_v=128)
    assert shape.flops() == 2 * 6 * (192 + 128) * 100 * 100
    assert shape.bytes() == 100 * (2 * (6 * 192 + 2 * 192 + 2 * 128 + 6 * 128) + 4 * 6)
    assert Shape((100,), 6, 2, 192, False, head_dim_v=192).bytes() == Shape((100,), 6, 2, 192, False).bytes()


def test_what_a_latent_cache_costs() -> None:
    shape = CacheShape((100, 50), 2, 16, 1, 576, latent_dim_v=512)
    assert shape.flops() == 2 * 16 * (576 + 512) * (99 + 100 + 49 + 50)
    assert shape.kv_bytes() == 150 * 576 * 2
    assert shape.bytes() == shape.kv_bytes() + 4 * 16 * (2 * 576 + 2 * 512 + 4)


def test_a_row_and_its_table() -> None:
    shape = CacheShape((4096,) * 128, 1, 128, 1, 576, 64, latent_dim_v=512)
    seconds = shape.flops() / 560e12
    row = rows.make_row("mla", shape, {"pyflash3": [seconds]}, CEILINGS)
    assert row["ratio"] is None
    assert row["tflops"] == {"pyflash3": pytest.approx(560.0)}
    assert row["kv_tb_per_s"] == pytest.approx(128 * 4096 * 1152 / seconds * 1e-12, rel=1e-3)
    line = screen.cache_table([row]).splitlines()[1]
    assert line.split()[-9:] == [
        f"{seconds * 1e6:.1f}", "-", "-", f"{row['kv_tb_per_s']:.2f}", f"{row['share_of_copy']:.2f}", "560", *"---",
    ]  # fmt: skip


def test_titles_of_a_chart_name_both_head_dims() -> None:
    made = [
        rows.make_row("wide", shape, {"pyflash3": [1e-3]}, CEILINGS)
        for shape in (*grids()["wide"], grids()["mla"][0], grids()["decode"][0])
    ]
    assert [chart._title(row["shape"]) for row in made] == [
        "d 512, causal", "d 512, causal", "d 192/128, causal", "d 576/512, full", "d 128, full",
    ]  # fmt: skip


def test_why_a_backend_of_pytorch_is_not_there() -> None:
    inside = " (Triggered internally at sdp_utils.cpp:522.)"
    warned = ["Flash attention kernel not used because:", "Flash attention has been runtime disabled.", "d is 512."]
    said = peers.reason(RuntimeError("No available kernel."), [text + inside for text in warned])
    assert said == "No available kernel. d is 512."


@pytest.mark.parametrize("page_size", [None, 64])
@pytest.mark.parametrize("seqlen_q", [1, 2])
def test_the_check_of_a_latent_cache(seqlen_q: int, page_size: int | None) -> None:
    """Ours passes, and one wrong row of one sequence does not."""
    rng = np.random.default_rng(0)
    shape = CacheShape((90, 128, 130, 70), seqlen_q, 16, 1, 576, page_size, latent_dim_v=512)
    cache = rng.standard_normal((4, shape.capacity, 1, 576), np.float32)
    q = rng.standard_normal((4, seqlen_q, 16, 576), np.float32)
    table: Any = None
    if page_size is not None:
        cache = cache.reshape(-1, page_size, 1, 576)
        table = rng.permutation(len(cache)).reshape(4, -1).astype(np.int32)
    lengths = np.array(shape.lengths, np.int32)
    out = flash_attn_with_kvcache(
        q, cache, None, cache_seqlens=lengths, page_table=table, causal=shape.causal, d_v=512
    )  # fmt: skip
    assert latent.difference(np, shape, q, cache, table, out) < 1e-5
    first = cache[0] if table is None else cache[table[0, 0]]
    first[5] += 8.0
    assert latent.difference(np, shape, q, cache, table, out) > 0.05
    out[-1, -1, 3, 7] = np.nan
    assert latent.difference(np, shape, q, cache, table, out) == np.inf
