"""Which shapes --grid and --only mean."""

from __future__ import annotations

from .cache_shapes import CacheShape
from .shapes import Shape, grids


class UnknownShapesError(Exception):
    """No shape answers to --grid and --only; the message says why."""


def chosen(names: list[str] | None, only: str | None) -> list[tuple[str, Shape | CacheShape]]:
    """Grid and shape of everything to time. UnknownShapesError when a name is none, or nothing is left."""
    available = grids()
    for name in names or []:
        if name not in (*available, "all"):
            raise UnknownShapesError(f"--grid is {name!r}; it must be one of {', '.join(available)}, all")
    names = list(available) if names and "all" in names else names or ["smoke"]
    todo = [(name, s) for name in dict.fromkeys(names) for s in available[name] if only is None or only in str(s)]
    if not todo:
        raise UnknownShapesError(f"--only is {only!r}; it must be part of a shape's name in {', '.join(names)}")
    return todo
