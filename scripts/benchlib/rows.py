"""From measured seconds to a row of a record."""

from __future__ import annotations

import statistics

from pyflash3.tools.bench.records import OURS, Row

from .cache_shapes import CacheShape
from .shapes import Shape


def make_row(grid: str, shape: Shape | CacheShape, times: dict[str, list[float]], ceilings: dict[str, float]) -> Row:
    """Everything that a record says of one shape."""
    seconds = {name: statistics.median(values) for name, values in times.items()}
    compute = shape.flops() / (ceilings["matmul_tflops"] * 1e12)
    memory = shape.bytes() / (ceilings["copy_tb_per_s"] * 1e12)
    peers = {name: value for name, value in seconds.items() if name != OURS}
    best = min(peers, key=lambda name: peers[name], default=None)
    row: Row = {
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
    if isinstance(shape, CacheShape):
        rate = shape.kv_bytes() / seconds[OURS] * 1e-12
        row |= {
            "kv_bytes": shape.kv_bytes(), "kv_tb_per_s": round(rate, 4),
            "share_of_copy": round(rate / ceilings["copy_tb_per_s"], 4),
        }  # fmt: skip
        if shape.append or shape.captured:  # beside another call of ours, which is no peer
            extra = "graph_us" if shape.captured else "append_us"
            row |= {"best_peer": None, "ratio": None, extra: round((seconds[OURS] - peers[str(best)]) * 1e6, 3)}
    return row
