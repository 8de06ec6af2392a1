"""The measuring part of the benchmark, as far as it goes without a GPU: what is chosen, peers on disk, the record."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyflash3.tools.bench import command, records
from scripts import bench
from scripts.benchlib import peers, selection
from scripts.benchlib.shapes import grids


def test_what_is_chosen() -> None:
    assert selection.chosen(None, None) == [("smoke", shape) for shape in grids()["smoke"]]
    assert [name for name, _ in selection.chosen(["small", "serving"], None)] == ["small"] * 8 + ["serving"] * 4
    assert selection.chosen(["paper", "paper"], None) == selection.chosen(["paper"], None)
    assert {name for name, _ in selection.chosen(["all"], None)} == set(grids())
    assert [str(shape) for _, shape in selection.chosen(["paper"], "1x16384 h16 d128")] == [
        "1x16384 h16 d128 full",
        "1x16384 h16 d128 causal",
    ]


def test_what_cannot_be_chosen() -> None:
    with pytest.raises(selection.UnknownShapesError, match="--grid is 'papre'; it must be one of paper, smoke, "):
        selection.chosen(["smoke", "papre"], None)
    with pytest.raises(selection.UnknownShapesError, match="--only is 'd65'; it must be part of a shape's name in pap"):
        selection.chosen(["paper"], "d65")


def test_peers_on_disk(tmp_path: Path) -> None:
    with pytest.raises(peers.PeerError, match="it must be a library of FlashAttention-3 or hold fa3_dense"):
        peers.find_library(tmp_path)
    with pytest.raises(peers.PeerError, match="none"):
        peers.load_peers(str(tmp_path / "none"), alone=False)
    library, archive = tmp_path / "_C.so", tmp_path / "fa3_dense.so.xz"
    library.write_bytes(b"a library")
    assert peers.find_library(tmp_path) == peers.find_library(library) == library
    archive.write_bytes(lzma.compress(b"a packed library"))
    assert peers.find_library(tmp_path) == archive
    assert peers.load_peers(None, alone=True) == peers.Peers(None, None)


def test_an_archive_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    archive = tmp_path / "fa3_dense.so.xz"
    archive.write_bytes(lzma.compress(b"a packed library"))
    path = Path(peers.unpacked(archive))
    assert path.read_bytes() == b"a packed library"
    path.write_bytes(b"still there")
    assert Path(peers.unpacked(archive)).read_bytes() == b"still there"
    assert list(path.parent.iterdir()) == [path]


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench, "cuda_obstacle", lambda: "CuPy sees no CUDA device")
    assert bench.main(["--grid", "paper"]) == 2
    assert capsys.readouterr().err == "pyflash3 bench: there is no GPU to measure on: CuPy sees no CUDA device\n"


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Any:
    """scripts.benchlib.measure where calls take a made-up time: 1 ms ours, 2 ms the peer's."""
    pytest.importorskip("cupy", reason="the measuring code imports CuPy", exc_type=ImportError)
    from scripts.benchlib import measure, timing

    times = {"pyflash3": [1e-3, 9e-3, 1e-3], "cuDNN": [2e-3] * 3}
    monkeypatch.setattr(bench, "cuda_obstacle", lambda: None)
    monkeypatch.setattr(measure, "load_peers", lambda *_: peers.Peers(None, None))
    monkeypatch.setattr(measure, "free_memory", lambda _: None)
    monkeypatch.setattr(measure, "describe_environment", lambda _: {"gpu": "GPU X"})
    monkeypatch.setattr(timing, "ceilings", lambda *_: {"matmul_tflops": 800.0, "copy_tb_per_s": 4.0})
    monkeypatch.setattr(timing, "time_in_turn", lambda *_: times)
    monkeypatch.setattr(measure, "prepare", lambda *_: SimpleNamespace(calls={}, outs={}, unavailable={}))
    monkeypatch.setattr(measure, "largest_difference", lambda _: {"cuDNN": 0.01})
    return measure


@pytest.mark.usefixtures("measure")
def test_a_run_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    charts: list[Any] = []
    monkeypatch.setattr(command, "draw", lambda _, record: charts.append(record))
    path = tmp_path / "record.json"
    assert bench.main(["--grid", "small", "--grid", "serving", "--rounds", "3", "--out", str(path)]) == 0
    record = records.load(str(path))
    assert record["complete"]
    assert (record["dtype"], record["rounds"], record["environment"]) == ("bfloat16", 3, {"gpu": "GPU X"})
    assert [row["name"] for row in record["rows"]] == [str(s) for name in ("small", "serving") for s in grids()[name]]
    assert {row["ratio"] for row in record["rows"]} == {2.0}
    assert {row["us"]["pyflash3"] for row in record["rows"]} == {1000.0}
    assert record["summaries"]["serving"]["shapes"] == 4
    # The chart of a run is the chart of its record.
    assert [records.digest(charted) for charted in charts] == [records.digest(record)]


@pytest.mark.parametrize("difference", [0.06, float("nan")])
def test_wrong_results_fail(
    difference: float, measure: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "largest_difference", lambda _: {"cuDNN": difference})
    assert bench.main(["--only", "d64 causal"]) == 1
    assert capsys.readouterr().out.count("WRONG: ") == 2


@pytest.mark.usefixtures("measure")
def test_the_cost_of_issuing_a_call_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from scripts.benchlib import host_cost

    issued: list[int] = []
    name = "pyflash3 plan, kvcache, another layer"
    monkeypatch.setattr(host_cost, "_contenders", lambda *_: {name: lambda: issued.append(0)})
    stream = SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr("cupy.cuda.get_current_stream", lambda: stream)
    path = tmp_path / "host-cost.json"
    assert bench.main(["--host-cost", "--out", str(path)]) == 0
    record = json.loads(path.read_text())
    assert (record["kind"], record["calls"], list(record["rows"])) == ("host-cost", 2000, [name])
    assert len(issued) == 100 + record["calls"]
    assert 0 < record["rows"][name]["median_us"] < 1000
    assert capsys.readouterr().out == f"{name:48} {record['rows'][name]['median_us']:8.2f} us\n"


@pytest.mark.usefixtures("measure")
def test_what_a_run_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--grid", "papre"]) == 2
    assert "--grid is 'papre'" in capsys.readouterr().err
