"""From measured seconds to rows, a table, a summary, a record, and the comparison of two records."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

from .contenders import OURS
from .shapes import Shape

Row = dict[str, Any]


def make_row(grid: str, shape: Shape, times: dict[str, list[float]], ceilings: dict[str, float]) -> Row:
    """Everything that a record says of one shape."""
    seconds = {name: statistics.median(values) for name, values in times.items()}
    compute = shape.flops() / (ceilings["matmul_tflops"] * 1e12)
    memory = shape.bytes() / (ceilings["copy_tb_per_s"] * 1e12)
    peers = {name: value for name, value in seconds.items() if name != OURS}
    best = min(peers, key=lambda name: peers[name], default=None)
    return {
        "grid": grid,
        "name": str(shape),
        "shape": shape.as_record(),
        "flops": shape.flops(),
        "bytes": shape.bytes(),
        "floor_us": {"compute": round(compute * 1e6, 3), "memory": round(memory * 1e6, 3)},
        "us": {name: round(value * 1e6, 3) for name, value in seconds.items()},
        "us_fastest": {name: round(min(values) * 1e6, 3) for name, values in times.items()},
        "us_slowest": {name: round(max(values) * 1e6, 3) for name, values in times.items()},
        "tflops": {name: round(shape.flops() / value * 1e-12, 2) for name, value in seconds.items()},
        "best_peer": best,
        "ratio": None if best is None else round(peers[best] / seconds[OURS], 4),
    }


def summarise(rows: list[Row]) -> dict[str, Any] | None:
    """Of the ratios to the best peer; None where there were no peers."""
    compared = [row for row in rows if row["ratio"] is not None]
    if not compared:
        return None
    ratios = [row["ratio"] for row in compared]
    worst = min(compared, key=lambda row: float(row["ratio"]))
    return {
        "shapes": len(ratios),
        "geometric_mean": round(math.exp(statistics.fmean(map(math.log, ratios))), 4),
        "at_least_1": sum(ratio >= 1.0 for ratio in ratios),
        "smallest": worst["ratio"],
        "smallest_at": worst["name"],
    }


def table(rows: list[Row]) -> str:
    """One line per shape: TFLOP/s of each contender, ours in microseconds, the larger floor, the ratio."""
    names = [OURS, *dict.fromkeys(name for row in rows for name in row["us"] if name != OURS)]
    head = ["shape", *(f"{name} TFLOP/s" for name in names), "us", "floor us", "ratio", "best peer"]
    lines = [head]
    for row in rows:
        figures = [f"{row['tflops'][name]:.0f}" if name in row["tflops"] else "-" for name in names]
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.3f}"
        floor = max(row["floor_us"].values())
        lines.append([row["name"], *figures, f"{row['us'][OURS]:.1f}", f"{floor:.1f}", ratio, row["best_peer"] or "-"])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    left = (0, len(head) - 1)
    return "\n".join(
        "  ".join(x.ljust(w) if i in left else x.rjust(w) for i, (x, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )


def summary_line(summary: dict[str, Any] | None) -> str:
    """The summary in one sentence."""
    if summary is None:
        return "no peers: nothing to compare with (torch, and --peers for FlashAttention-3)"
    return (
        f"{summary['shapes']} shapes over the better peer: geometric mean {summary['geometric_mean']:.3f}, "
        f"{summary['at_least_1']} at 1.00 or more, smallest {summary['smallest']:.3f} ({summary['smallest_at']})"
    )


def write(path: str, record: dict[str, Any]) -> None:
    """A record as JSON, made complete before it takes its place."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(target.suffix + ".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.rename(target)


def compare(old_path: str, new_path: str, threshold: float) -> int:
    """Prints both records side by side; 1 when a shape of the old one is missing, or worse by more than threshold.

    The figure is the ratio to the best peer where both have one, since it hardly depends on the card; else TFLOP/s.
    """
    old, new = (json.loads(Path(path).read_text()) for path in (old_path, new_path))
    found = {(row["grid"], row["name"]): row for row in new["rows"]}
    bad = 0
    for row in old["rows"]:
        other = found.get((row["grid"], row["name"]))
        if other is None:
            print(f"MISSING  {row['grid']} {row['name']}")
            bad += 1
            continue
        kind = "ratio" if row["ratio"] is not None and other["ratio"] is not None else "tflops"
        before, after = (
            float(r["ratio"] if kind == "ratio" else r["flops"] / r["us"][OURS] * 1e-6) for r in (row, other)
        )
        change = after / before - 1.0
        worse = change < -threshold
        bad += worse
        print(f"{'WORSE' if worse else 'ok':7}  {row['name']:44} {kind} {before:8.3f} -> {after:8.3f} ({change:+.1%})")
    if old.get("dtype") != new.get("dtype"):
        print(f"the records are of different dtypes: {old.get('dtype')} and {new.get('dtype')}")
        bad += 1
    print(f"{bad} of {len(old['rows'])} shapes missing or worse by more than {threshold:.0%}")
    return int(bad > 0)
