"""The README's table of measured speed is what its record says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from scripts import readme_table
from scripts.benchlib.shapes import grids
from tests.build_dir import REPOSITORY

README = REPOSITORY / "README.md"


def quotable() -> list[str]:
    """Records in the repository that the table could be made from."""
    found = []
    for path in sorted((REPOSITORY / "benchmarks" / "records").glob("*.json")):
        try:
            readme_table.block(json.loads(path.read_text()), "a record")
        except (readme_table.RecordError, KeyError):
            continue
        found.append(path.relative_to(REPOSITORY).as_posix())
    return found


def test_the_block_is_what_its_record_gives() -> None:
    block = readme_table.current(README.read_text())
    if not block:
        assert quotable() == [], "measured, but not in the README: run scripts/readme_table.py with that record"
        return
    (path,) = re.findall(r"Record: \[(.+?)\]", block)
    record = REPOSITORY / path
    assert record.is_file(), f"the README quotes {path}, which is not in the repository"
    assert block == readme_table.block(json.loads(record.read_text()), path)


def made_up() -> dict[str, Any]:
    """A record with a figure of its own for every shape: the n-th has 100 + n TFLOP/s and the ratio 1 + n / 100."""
    rows = [
        {"grid": "paper", "name": str(s), "tflops": {"pyflash3": 100.0 + n, "cudnn": 99.0}, "ratio": 1 + n / 100}
        for n, s in enumerate(grids()["paper"])
    ]
    summary = {"shapes": 36, "geometric_mean": 1.1, "at_least_1": 36, "smallest": 1.0, "smallest_at": rows[0]["name"]}
    environment = {
        "gpu": "GPU X", "power_limit": "700 W", "driver": "1.2", "build": {"cuda": "13.0"},
        "commit": "abcdef0123456789", "date": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    head = {"kind": "bench", "dtype": "bfloat16", "complete": True, "environment": environment}
    return {**head, "summaries": {"paper": summary}, "rows": rows}


def test_every_figure_is_in_its_place() -> None:
    block = readme_table.block(made_up(), "benchmarks/records/x.json")
    table = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in block.splitlines() if line.startswith("| ")}
    assert [cell.strip() for cell in table["head dim, mask"]] == ["512", "1,024", "2,048", "4,096", "8,192", "16,384"]
    for n, shape in enumerate(grids()["paper"]):
        row = table[f"{shape.head_dim}, {'causal' if shape.causal else 'full'}"]
        column = [512, 1024, 2048, 4096, 8192, 16_384].index(shape.lengths[0])
        assert row[column].strip() == f"{100 + n} ({1 + n / 100:.2f})"
    for words in ("GPU X", "700 W", "driver 1.2", "CUDA 13.0", "abcdef012345", "2026-01-02", "1.100", "cudnn"):
        assert words in block
    assert "[benchmarks/records/x.json](benchmarks/records/x.json)" in block
    assert max(map(len, block.splitlines())) <= 120


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"complete": False}, "no complete record"),
        ({"kind": "accuracy"}, "no complete record"),
        ({"rows": made_up()["rows"][1:]}, "lacks 1 shapes of the grid paper, the first is 32x512"),
        ({"rows": [{**row, "ratio": None} for row in made_up()["rows"]]}, "has no peer beside 32x512"),
    ],
)
def test_what_cannot_be_quoted(change: dict[str, Any], words: str) -> None:
    with pytest.raises(readme_table.RecordError, match=words):
        readme_table.block({**made_up(), **change}, "x.json")


def test_main_writes_the_block_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme, record = tmp_path / "README.md", tmp_path / "x.json"
    readme.write_text("before\n<!-- measured -->\nold\n<!-- /measured -->\nafter\n")
    record.write_text(json.dumps(made_up()))
    monkeypatch.setattr(readme_table, "REPOSITORY", tmp_path)
    monkeypatch.setattr(readme_table, "README", readme)
    monkeypatch.setattr("sys.argv", ["readme_table.py", str(record)])
    assert readme_table.main() == 0
    text = readme.read_text()
    assert text.startswith("before\n<!-- measured -->\nTFLOP/s")
    assert text.endswith("\n<!-- /measured -->\nafter\n")
    assert readme_table.current(text) == readme_table.block(made_up(), "x.json")
    record.write_text(json.dumps({**made_up(), "complete": False}))
    assert readme_table.main() == 1
    assert readme.read_text() == text


def test_markers_must_be_there_once() -> None:
    for text in ("", "<!-- measured -->\n", "<!-- /measured --><!-- measured -->\n"):
        with pytest.raises(readme_table.RecordError, match="one <!-- measured -->"):
            readme_table.current(text)
