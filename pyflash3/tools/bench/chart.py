"""A chart of a record: a panel per head dim and mask, a group of bars per sequence length, a bar per contender."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

from .records import OURS, Record, Row, digest

# A contender has its colour in every chart: those named here, then the others in the order in which they appear. The
# colours are of Okabe and Ito's palette, which colour-blind readers can tell apart.
_COLOURS = {OURS: "#D55E00", "FlashAttention-3": "#0072B2", "cuDNN": "#8FB8A8"}
_MORE_COLOURS = ["#E69F00", "#56B4E9", "#CC79A7", "#F0E442"]
_CEILING = "#444444"
_CEILING_NAME = "matrix product, same run"
_PANEL_INCHES = (4.4, 2.9)
_MOST_COLUMNS = 3
_GROUP = 0.84  # of the distance between two groups is covered by bars

Panels = dict[str, list[Row]]


def draw(record: Record, path: str) -> None:
    """Writes a PNG. Its tEXt chunk Source holds digest(record), which tells which record it shows."""
    # A figure without pyplot has no global state and needs no display.
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels = panels_of(record["rows"])
    rows, columns = layout(list(panels))
    width, height = _PANEL_INCHES
    spacing = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1)
    figure = Figure(figsize=(columns * width, rows * height + 1.0), layout=spacing)
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    # Head dims come one after the other, each with all its masks: column by column, as layout() counts.
    places = [axes[i % rows][i // rows] for i in range(rows * columns)]
    colours = _colours(record["rows"])
    ceiling = record["ceilings"]["matmul_tflops"]
    for place, (title, members) in zip(places, panels.items(), strict=False):
        _panel(place, title, members, colours, ceiling)
    for place in places[len(panels) :]:
        place.set_axis_off()
    for row in axes:
        row[0].set_ylabel("TFLOP/s")
    _legend(figure, places[0], columns)
    figure.supxlabel(textwrap.fill(_conditions(record), 62 * columns), fontsize=9, color=_CEILING)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110, metadata={"Software": None, "Source": digest(record)})


def panels_of(rows: list[Row]) -> Panels:
    """Rows by the title of their panel, which names the grid where there are several."""
    grids = {row["grid"] for row in rows}
    panels: Panels = {}
    for row in rows:
        title = _title(row["shape"])
        panels.setdefault(title if len(grids) == 1 else f"{row['grid']}: {title}", []).append(row)
    return panels


def layout(titles: list[str]) -> tuple[int, int]:
    """Rows and columns of panels: a column per head dim where each has as many masks, else near a square."""
    dims = [title.partition(",")[0] for title in titles]
    each = [dims.count(dim) for dim in dict.fromkeys(dims)]
    if len(set(each)) == 1 and 1 < len(each) <= _MOST_COLUMNS:
        return each[0], len(each)
    columns = min(_MOST_COLUMNS, math.ceil(math.sqrt(len(titles))))
    return math.ceil(len(titles) / columns), columns


def _title(shape: dict[str, Any]) -> str:
    masks = ["causal"] if shape["causal"] else []
    if tuple(shape["window"]) != (-1, -1):
        masks.append("window {}, {}".format(*shape["window"]))
    extras = ["varlen"] if shape["packed"] else []
    dim_v = shape.get("head_dim_v") or shape.get("latent_dim_v")
    dim = f"d {shape['head_dim']}" + (f"/{dim_v}" if dim_v else "")
    return ", ".join([dim, *(masks or ["full"]), *shape["options"], *extras])


def _tick(shape: dict[str, Any]) -> str:
    """The sequence length of equal ones ('32 x 512' in a record), else the label."""
    if shape["label"]:
        return textwrap.fill(str(shape["label"]), 9)
    return f"{int(shape['lengths'].rpartition(' x ')[2]):,}"


def _colours(rows: list[Row]) -> dict[str, str]:
    """Colour by contender, ours first and the others in the order in which they appear."""
    names = [OURS, *dict.fromkeys(name for row in rows for name in row["tflops"] if name != OURS)]
    others = [name for name in names if name not in _COLOURS]
    more = {name: _MORE_COLOURS[i % len(_MORE_COLOURS)] for i, name in enumerate(others)}
    return {name: _COLOURS.get(name) or more[name] for name in names}


def _panel(axes: Any, title: str, rows: list[Row], colours: dict[str, str], ceiling: float) -> None:
    width = _GROUP / len(colours)
    for i, (name, colour) in enumerate(colours.items()):
        places = [group - _GROUP / 2 + (i + 0.5) * width for group in range(len(rows))]
        # A contender that has no kernel for a shape leaves a gap.
        heights = [row["tflops"].get(name, math.nan) for row in rows]
        axes.bar(places, heights, width, color=colour, label=name, zorder=2)
    axes.axhline(ceiling, color=_CEILING, linestyle="--", linewidth=1.2, zorder=3, label=_CEILING_NAME)
    axes.annotate(
        f"matrix product {ceiling:.0f}", (0, ceiling), (3, 3), xycoords=("axes fraction", "data"),
        textcoords="offset points", fontsize=9, color=_CEILING,
    )  # fmt: skip
    axes.set_title(title, fontsize=12)
    axes.set_xticks(range(len(rows)), [_tick(row["shape"]) for row in rows])
    middle, half = (len(rows) - 1) / 2, max(len(rows), 3) / 2 + 0.1  # one group alone does not fill the panel
    axes.set_xlim(middle - half, middle + half)
    axes.set_ylim(0, 1.12 * max(ceiling, *(value for row in rows for value in row["tflops"].values())))
    axes.tick_params(axis="x", length=0)
    axes.tick_params(axis="y", labelleft=True)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.7, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Any, axes: Any, columns: int) -> None:
    # matplotlib lists lines in front of bars; the contenders come first here.
    entries = sorted(zip(*axes.get_legend_handles_labels(), strict=True), key=lambda entry: entry[1] == _CEILING_NAME)
    handles, labels = zip(*entries, strict=True)
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 2 * columns), frameon=False)


def _conditions(record: Record) -> str:
    e = record["environment"]
    where = ", ".join([e["gpu"], e["power_limit"], f"driver {e['driver']}"])
    what = f"forward, {record['dtype']}, by sequence length"
    return f"{what}; {where}; pyflash3 {e['pyflash3']}, commit {e['commit'][:12]}, {e['date'][:10]}"
