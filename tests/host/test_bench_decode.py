"""The grids `decode` and `few` without a GPU: their shapes, rows, table, and the serving peer on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyflash3.tools.bench import records, screen
from scripts.benchlib import peers, rows
from scripts.benchlib.cache_shapes import CacheShape
from scripts.benchlib.shapes import grids

CEILINGS = {"matmul_tflops": 800.0, "copy_tb_per_s": 4.0}


def test_the_grid() -> None:
    grid = grids()["decode"]
    assert len({str(shape) for shape in grid}) == len(grid)
    for size in (None, 1, 16, 64, 256):
        assert CacheShape((8192,) * 64, page_size=size) in grid
    names = [str(shape) for shape in grid]
    for name in (
        "cache 1x131072 h32/8 d128 dense", "cache 128 of 1 to 16384 h32/1 d128 pages of 64",
        "cache 256x512 h8 d128 dense",
        "cache 64x8192 q4 h32/8 d128 pages of 64", "cache 4x16896 q512 h32/8 d128 pages of 64",
        "cache 1x100000 q512 h8/2 d128 dense", "cache 16x8192 q64 h32/8 d128 pages of 64",
        "cache 64x8192 h32/8 d128 pages of 64 append", "cache 64x8192 h32/8 d128 pages of 64 append captured",
    ):  # fmt: skip
        assert name in names
    for shape in grid:
        assert shape.capacity % (shape.page_size or 1) == 0
        assert max(shape.lengths) <= shape.capacity < max(shape.lengths) + 256


def test_the_grid_of_few_keys() -> None:
    grid = grids()["few"]
    assert len({str(shape) for shape in grid}) == len(grid)
    assert max(sum(shape.lengths) for shape in grid if not shape.packed) < 100_000
    assert CacheShape((2048,), page_size=64, room=32_768, told=True).capacity == 32_768
    assert str(CacheShape((2048,) * 8, page_size=64, packed=True)) == "cache 8x2048 h32/8 d128 pages of 64 packed"
    assert CacheShape((2048,), page_size=64) in grid


def test_what_a_shape_costs() -> None:
    shape = CacheShape((100, 50), 3, nheads=4, nheads_k=2, head_dim=64)
    assert shape.kv_bytes() == 150 * 2 * (64 + 64) * 2
    assert shape.bytes() == shape.kv_bytes() + 6 * 4 * (2 * 2 * 64 + 4)
    pairs = sum(n - 2 + n - 1 + n for n in (100, 50))
    assert shape.flops() == 4 * 4 * 64 * pairs


def test_a_row_and_its_table() -> None:
    shape = CacheShape((8192,) * 64, page_size=64)
    seconds = shape.kv_bytes() / 2e12  # at 2 TB/s
    row = rows.make_row("decode", shape, {"pyflash3": [seconds], "peer": [1.1 * seconds]}, CEILINGS)
    assert row["kv_tb_per_s"] == pytest.approx(2.0)
    assert row["share_of_copy"] == pytest.approx(0.5)
    assert row["ratio"] == pytest.approx(1.1)
    assert "append_us" not in row
    line = screen.cache_table([row]).splitlines()[1]
    assert line.split()[-9:] == [
        f"{seconds * 1e6:.1f}",
        f"{1.1 * seconds * 1e6:.1f}",
        "1.100",
        "2.00",
        "0.50",
        f"{shape.flops() / seconds * 1e-12:.0f}",
        "-",
        "-",
        "peer",
    ]


def test_new_rows_are_compared_with_the_call_without_them(capsys: pytest.CaptureFixture[str]) -> None:
    shape = CacheShape((8192,) * 64, append=True)
    row = rows.make_row("decode", shape, {"pyflash3": [1.005e-3], "pyflash3, no new rows": [1e-3]}, CEILINGS)
    assert row["append_us"] == pytest.approx(5.0)
    assert row["ratio"] is None
    assert row["best_peer"] is None
    assert records.summarise([row]) is None
    screen.progress(1, 1, 1.0, row)
    assert "pyflash3 1005.0, pyflash3, no new rows 1000.0 us" in capsys.readouterr().out
    screen.show({"rows": [row]})
    assert "5.0" in capsys.readouterr().out


def test_a_graph_is_compared_with_the_call_that_it_replays(capsys: pytest.CaptureFixture[str]) -> None:
    shape = CacheShape((8192,) * 64, append=True, captured=True)
    row = rows.make_row("decode", shape, {"pyflash3": [5.015e-4], "pyflash3, launched directly": [5e-4]}, CEILINGS)
    assert row["graph_us"] == pytest.approx(1.5)
    assert "append_us" not in row
    assert row["ratio"] is None
    assert records.summarise([row]) is None
    screen.show({"rows": [row]})
    assert capsys.readouterr().out.splitlines()[1].split()[-2:] == ["1.5", "-"]


def test_the_serving_peer_on_disk(tmp_path: Path) -> None:
    assert peers.find_serving(tmp_path) is None
    library = tmp_path / "fa3_serving.so"
    library.write_bytes(b"a library")
    assert peers.find_serving(tmp_path) == peers.find_serving(library) == library
    assert not peers.has_library(tmp_path)
    dense = tmp_path / "fa3_dense.so"
    dense.write_bytes(b"a library")
    assert peers.has_library(tmp_path)
    assert peers.find_serving(dense) is None
