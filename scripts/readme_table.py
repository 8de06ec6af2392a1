#!/usr/bin/env python3
"""Writes the table of measured speed into README.md, from a record of scripts/bench.py.

    scripts/readme_table.py benchmarks/records/paper-bf16.json

The block between <!-- measured --> and <!-- /measured --> is replaced. tests/build/test_readme_table.py makes the same
block from the record that the README names, so a figure there cannot drift from its record.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.benchlib.shapes import WIDTH, grids

REPOSITORY = Path(__file__).resolve().parents[1]
README = REPOSITORY / "README.md"
BEGIN, END = "<!-- measured -->\n", "<!-- /measured -->"
GRID = "paper"
OURS = "pyflash3"


class RecordError(Exception):
    """The record cannot be quoted; the message says why."""


def block(record: dict[str, Any], path: str) -> str:
    """The text between the markers, for a record that lies at `path` in the repository. RecordError, KeyError."""
    rows = _rows(record, path)
    lines = [_conditions(record, path)]
    shapes = grids()[GRID]
    seqlens = sorted({shape.lengths[0] for shape in shapes})
    lines.append(_line("head dim, mask", *(f"{n:,}" for n in seqlens)))
    lines.append("|---|" + "---:|" * len(seqlens))
    for head in dict.fromkeys((shape.head_dim, shape.causal) for shape in shapes):
        line = {shape.lengths[0]: rows[str(shape)] for shape in shapes if (shape.head_dim, shape.causal) == head}
        name = f"{head[0]}, {'causal' if head[1] else 'full'}"
        lines.append(_line(name, *(f"{line[n]['tflops'][OURS]:.0f} ({line[n]['ratio']:.2f})" for n in seqlens)))
    return "\n".join(lines) + "\n\n" + _summary(record)


def replace(text: str, new: str) -> str:
    """README's text with another block between the markers. RecordError unless there is one pair of them."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise RecordError(f"the text must hold one {BEGIN.strip()} and, behind it, one {END}")
    head, _, rest = text.partition(BEGIN)
    return head + BEGIN + new + END + rest.partition(END)[2]


def current(text: str) -> str:
    """What lies between the markers. RecordError as in replace."""
    replace(text, "")
    return text.partition(BEGIN)[2].partition(END)[0]


def _rows(record: dict[str, Any], path: str) -> dict[str, dict[str, Any]]:
    if record.get("kind") != "bench" or not record.get("complete"):
        raise RecordError(f"{path} is no complete record of scripts/bench.py")
    rows = {row["name"]: row for row in record["rows"] if row["grid"] == GRID}
    missing = [str(shape) for shape in grids()[GRID] if str(shape) not in rows]
    if missing:
        raise RecordError(f"{path} lacks {len(missing)} shapes of the grid {GRID}, the first is {missing[0]}")
    alone = [name for name, row in rows.items() if row["ratio"] is None]
    if alone:
        raise RecordError(f"{path} has no peer beside {alone[0]}")
    return rows


def _conditions(record: dict[str, Any], path: str) -> str:
    e = record["environment"]
    peers = " and ".join(sorted({name for row in record["rows"] for name in row["tflops"]} - {OURS}))
    tokens = sum(grids()[GRID][0].lengths)
    return _wrapped(
        f"TFLOP/s of the forward pass in {record['dtype']} and, in brackets, the speed relative to the faster of",
        f"{peers} at that shape, measured in the same process: above 1 is faster. Columns are sequence lengths;",
        f"{tokens:,} tokens in all, heads * head_dim = {WIDTH:,}. {e['gpu']}, {e['power_limit']},",
        f"driver {e['driver']}, kernels built with CUDA {e['build']['cuda']}, commit {e['commit'][:12]},",
        f"{e['date'][:10]}. Record: [{path}]({path}); [how it is measured](benchmarks/README.md).",
    )


def _summary(record: dict[str, Any]) -> str:
    s = record["summaries"][GRID]
    return _wrapped(
        f"Over these {s['shapes']} shapes the geometric mean is {s['geometric_mean']:.3f}; {s['at_least_1']} of them",
        f"are at 1.00 or more, the smallest is {s['smallest']:.3f} ({s['smallest_at']}).",
    )


def _wrapped(*parts: str) -> str:
    return textwrap.fill(" ".join(parts), 120, break_long_words=False, break_on_hyphens=False) + "\n"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """1 when the record cannot be quoted; README.md is then left as it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="a complete record of the grid paper, inside the repository")
    args = parser.parse_args()
    try:
        path = args.record.resolve().relative_to(REPOSITORY).as_posix()
        text = replace(README.read_text(), block(json.loads(args.record.read_text()), path))
    except (RecordError, OSError, ValueError) as error:
        print(f"readme_table.py: {error}", file=sys.stderr)
        return 1
    README.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
