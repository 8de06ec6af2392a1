"""Records of measurements: reading, writing, summarising, comparing. benchmarks/README.md says what they hold."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from pathlib import Path
from typing import Any

OURS = "pyflash3"

Record = dict[str, Any]
Row = dict[str, Any]


class RecordError(Exception):
    """A record that cannot be used; the message says why."""


def load(path: str) -> Record:
    """The record of a grid in that file. RecordError when it is something else or holds no rows."""
    try:
        record = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read as a record: {error}") from None
    kind = record.get("kind") if isinstance(record, dict) else None
    if kind != "bench":
        raise RecordError(f"{path} is of kind {kind!r}; it must be a record of kind 'bench'")
    if not record["rows"]:
        raise RecordError(f"{path} holds no rows; it must hold at least one")
    return dict(record)


def write(path: str, record: Record) -> None:
    """A record as JSON, made complete before it takes its place."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(target.suffix + ".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.rename(target)


def digest(record: Record) -> str:
    """SHA-256 of what a record says, however its file is laid out."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


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


def compare(old: Record, new: Record, threshold: float) -> int:
    """Prints both records side by side; 1 when a shape of the old one is missing, or worse by more than threshold.

    The figure is the ratio to the best peer where both have one, since it hardly depends on the card; else TFLOP/s.
    """
    found = {(row["grid"], row["name"]): row for row in new["rows"]}
    bad = 0
    for row in old["rows"]:
        other = found.get((row["grid"], row["name"]))
        if other is None:
            print(f"MISSING  {row['grid']} {row['name']}")
            bad += 1
            continue
        kind = "ratio" if row["ratio"] is not None and other["ratio"] is not None else "tflops"
        before, after = (float(r["ratio"] if kind == "ratio" else r["tflops"][OURS]) for r in (row, other))
        change = after / before - 1.0
        worse = not change >= -threshold  # a NaN is worse too
        bad += worse
        print(f"{'WORSE' if worse else 'ok':7}  {row['name']:44} {kind} {before:8.3f} -> {after:8.3f} ({change:+.1%})")
    print(f"{bad} of {len(old['rows'])} shapes missing or worse by more than {threshold:.0%}")
    if old["dtype"] != new["dtype"]:
        print(f"the records are of different dtypes: {old['dtype']} and {new['dtype']}")
        bad += 1
    return int(bad > 0)
