"""python -m pyflash3 bench on existing records: --from, --compare and --chart, without a GPU."""

from __future__ import annotations

import copy
import json
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyflash3.__main__ import main
from pyflash3.tools.bench import chart, command, records, screen
from tests.build_dir import REPOSITORY
from tests.host.test_commands import pyflash3

PAPER = REPOSITORY / "benchmarks" / "records" / "paper-bf16.json"
CHARTS = REPOSITORY / "benchmarks" / "charts"


@pytest.fixture
def paper() -> records.Record:
    return records.load(str(PAPER))


@pytest.fixture
def written(tmp_path: Path, paper: records.Record) -> Callable[..., str]:
    """Path of a copy of the record after change(copy)."""

    def write(change: Callable[[records.Record], Any]) -> str:
        record = copy.deepcopy(paper)
        change(record)
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        records.write(str(path), record)
        return str(path)

    return write


def chunks(png: bytes) -> dict[str, bytes]:
    """The last chunk of each type of a PNG, after a look at every checksum."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    found, at = {}, 8
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        name, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", png, at + 8 + length) == (zlib.crc32(name + data),)
        found[name.decode()] = data
        at += 12 + length
    return found


def source(png: bytes) -> str:
    return chunks(png)["tEXt"].decode("latin-1").partition("Source\0")[2]


def scaled(record: records.Record, row: int, factor: float) -> None:
    record["rows"][row]["ratio"] *= factor


def test_from_shows_every_row_and_the_summary(paper: records.Record, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--from", str(PAPER)]) == 0
    text = capsys.readouterr().out
    for row in paper["rows"]:
        (line,) = [line for line in text.splitlines() if line.startswith(row["name"] + " ")]
        figures = [f"{value:.0f}" for value in row["tflops"].values()]
        assert line.removeprefix(row["name"]).split()[: len(figures)] == figures
        assert line.split()[-2:] == [f"{row['ratio']:.3f}", row["best_peer"]]
    s = paper["summaries"]["paper"]
    assert f"paper: {s['shapes']} shapes over the better peer: geometric mean {s['geometric_mean']:.3f}" in text


def test_the_script_is_the_same_command() -> None:
    ours = pyflash3("bench", "--from", str(PAPER))
    assert ours.returncode == 0, ours.stderr

    script = [sys.executable, str(REPOSITORY / "scripts" / "bench.py"), "--from", str(PAPER)]
    assert subprocess.run(script, capture_output=True, text=True, check=True).stdout == ours.stdout


@pytest.mark.parametrize(
    ("factor", "threshold", "code"),
    [
        (1.0, "0.03", 0),
        (0.98, "0.03", 0),
        (0.96, "0.03", 1),
        (0.96, "0.05", 0),
        (0.999, "0", 1),
        (float("nan"), "0.5", 1),
    ],
)
def test_compare(factor: float, threshold: str, code: int, written: Any, capsys: pytest.CaptureFixture[str]) -> None:
    new = written(lambda record: scaled(record, 7, factor))
    assert main(["bench", "--compare", str(PAPER), new, "--threshold", threshold]) == code
    lines = capsys.readouterr().out.splitlines()
    assert [n for n, line in enumerate(lines) if line.startswith("WORSE")] == [7] * code
    assert lines[-1].startswith(f"{code} of 36 shapes missing or worse")


def test_compare_without_peers_takes_the_speed(written: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def alone(record: records.Record) -> None:
        for row in record["rows"]:
            row["ratio"] = None
        record["rows"][3]["tflops"]["pyflash3"] *= 0.9

    assert main(["bench", "--compare", str(PAPER), written(alone)]) == 1
    assert re.search(r"^WORSE .*tflops .*\(-10\.0%\)$", capsys.readouterr().out, re.MULTILINE)


def test_compare_misses_shapes_and_dtypes(written: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--compare", str(PAPER), written(lambda record: record["rows"].pop(0))]) == 1
    assert "MISSING  paper 32x512 h32 d64 full" in capsys.readouterr().out
    assert main(["bench", "--compare", str(PAPER), written(lambda record: record.update(dtype="float16"))]) == 1
    assert "different dtypes: bfloat16 and float16" in capsys.readouterr().out


def test_what_is_no_record(tmp_path: Path, written: Any, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    cases = {
        str(tmp_path / "none.json"): "cannot be read as a record",
        str(broken): "cannot be read as a record",
        str(PAPER.with_name("host-cost.json")): "is of kind 'host-cost'; it must be a record of kind 'bench'",
        written(lambda record: record.update(rows=[])): "holds no rows",
    }
    for path, words in cases.items():
        for arguments in (["--from", path], ["--compare", str(PAPER), path]):
            assert main(["bench", *arguments]) == 2
            captured = capsys.readouterr()
            assert captured.err.startswith(f"pyflash3 bench: {path} ")
            assert words in captured.err
            assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--compare", "a", "b", "--chart", "x.png"], "--chart draws the record of a grid"),
        (["--from", str(PAPER), "--chart", "x.pdf"], "--chart is x.pdf; it must end in .png"),
    ],
)
def test_what_cannot_be_charted(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_chart_without_matplotlib(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else pytest.fail(name))
    assert main(["bench", "--from", str(PAPER), "--chart", "x.png"]) == 2
    assert "pip install 'pyflash3[bench]'" in capsys.readouterr().err


def test_nothing_optional_is_imported_before_it_is_used() -> None:

    code = f"""
import sys
from pyflash3.__main__ import main
assert main(["bench", "--from", {str(PAPER)!r}]) == 0
print(sorted({{"matplotlib", "torch", "cupy"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_measuring_outside_the_source_tree(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "_SCRIPT", Path("/nowhere/scripts/bench.py"))
    assert main(["bench"]) == 2
    assert "measuring needs pyflash3's source tree" in capsys.readouterr().err


def test_measuring_hands_over_every_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script, seen = tmp_path / "bench.py", tmp_path / "seen.json"
    script.write_text(f"import json, sys; json.dump(sys.argv[1:], open({str(seen)!r}, 'w')); sys.exit(7)")
    monkeypatch.setattr(command, "_SCRIPT", script)
    options = ["--grid", "paper", "--only", "d128 causal", "--rounds", "3", "--out", "x.json"]
    assert main(["bench", *options]) == 7
    assert json.loads(seen.read_text()) == options


def test_progress(paper: records.Record, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    screen.progress(1, 4, 10.0, paper["rows"][0])
    assert capsys.readouterr().out.startswith("[  1/4] 32x512 h32 d64 full: pyflash3 ")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "70")
    screen.progress(1, 4, 30.0, paper["rows"][0])
    out = capsys.readouterr().out
    assert out.startswith("\r\033[K[######------------------] 1/4, 1:30 left  32x512")
    assert len(out.removeprefix("\r\033[K")) == 69


def test_chart_from_a_record(paper: records.Record, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="charts need matplotlib (the extra bench)")
    path = tmp_path / "charts" / "paper.png"
    assert main(["bench", "--from", str(PAPER), "--chart", str(path)]) == 0
    png = path.read_bytes()
    width, height = struct.unpack_from(">II", chunks(png)["IHDR"])
    assert (width, height) == (1452, 748)
    assert len(png) < 200_000
    assert source(png) == records.digest(paper)
    # Other figures, another picture.
    other = copy.deepcopy(paper)
    other["rows"][0]["tflops"]["pyflash3"] /= 2
    chart.draw(other, str(path))
    assert chunks(path.read_bytes())["IDAT"] != chunks(png)["IDAT"]


def test_what_a_chart_shows(paper: records.Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure_module = pytest.importorskip("matplotlib.figure", reason="charts need matplotlib (the extra bench)")
    figures: list[Any] = []
    monkeypatch.setattr(figure_module.Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    del paper["rows"][0]["tflops"]["cuDNN"]  # a contender without a kernel for a shape
    chart.draw(paper, str(tmp_path / "x.png"))
    (figure,) = figures
    assert [a.get_title() for a in figure.axes] == [
        *("d 64, full", "d 128, full", "d 256, full"),
        *("d 64, causal", "d 128, causal", "d 256, causal"),
    ]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()[:3]] == ["pyflash3", "FlashAttention-3", "cuDNN"]
    for axes, (title, rows) in zip(
        sorted(figure.axes, key=lambda a: list(chart.panels_of(paper["rows"])).index(a.get_title())),
        chart.panels_of(paper["rows"]).items(),
        strict=True,
    ):
        assert axes.get_title() == title
        assert [t.get_text() for t in axes.get_xticklabels()] == ["512", "1,024", "2,048", "4,096", "8,192", "16,384"]
        (line,) = axes.get_lines()
        assert set(line.get_ydata()) == {paper["ceilings"]["matmul_tflops"]}
        for bars in axes.containers:
            heights = [bar.get_height() for bar in bars]
            want = [row["tflops"].get(bars.get_label(), float("nan")) for row in rows]
            assert heights == pytest.approx(want, nan_ok=True)
            assert len({bar.get_facecolor() for bar in bars}) == 1


def row_of(**shape: Any) -> records.Row:
    every = {"lengths": "1 x 64", "head_dim": 128, "causal": True, "packed": False, "window": [-1, -1]}
    return {"grid": "g", "shape": {**every, "options": [], "label": "", **shape}, "tflops": {"pyflash3": 1.0}}


def test_panels_of_other_grids() -> None:
    rows = [row_of(window=[1024, 0]), row_of(options=["softcap"]), row_of(packed=True, label="8192x34"), row_of()]
    titles = ["d 128, causal, window 1024, 0", "d 128, causal, softcap", "d 128, causal, varlen", "d 128, causal"]
    assert list(chart.panels_of(rows)) == titles
    assert chart.layout(titles) == (2, 2)
    rows[0]["grid"] = "other"
    assert next(iter(chart.panels_of(rows))) == f"other: {titles[0]}"


@pytest.mark.parametrize("path", sorted(CHARTS.glob("*.png")), ids=lambda path: path.name)
def test_charts_in_the_repository_show_their_records(path: Path) -> None:
    record = REPOSITORY / "benchmarks" / "records" / f"{path.stem}.json"
    made_by = f"python -m pyflash3 bench --from benchmarks/records/{record.name} --chart benchmarks/charts/{path.name}"
    assert source(path.read_bytes()) == records.digest(records.load(str(record))), f"draw it again: {made_by}"
    assert path.stat().st_size < 200_000
