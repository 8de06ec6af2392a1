"""torch and FlashAttention-3: found where they are installed, or loaded from a path."""

from __future__ import annotations

import ctypes
import importlib
import lzma
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIBRARIES = ("fa3_dense.so.xz", "fa3_dense.so", "_C.so", "_C.abi3.so")  # what a folder may hold, the first one counts
SERVING = ("fa3_serving.so.xz", "fa3_serving.so", "_vllm_fa3_C.abi3.so")  # the same of the serving build
INSTALLED = "flash_attn_3._C"  # the module that FlashAttention-3's own package registers its operators with


class PeerError(Exception):
    """A peer that was asked for cannot be had; the message says why."""


@dataclass(frozen=True)
class Peers:
    """What there is to compare with. Any part may be None."""

    torch: Any
    flash3: Any  # FlashAttention-3's torch operator
    serving: Any = None  # that of its serving build, which vLLM brings: paged caches


def load_peers(path: str | None, alone: bool) -> Peers:
    """torch (which brings cuDNN) where it is installed; FlashAttention-3 from a path, else where it is installed.

    PeerError when a path is given and there is no torch or no library there.
    """
    if alone:
        return Peers(None, None)
    serving = None if path is None else find_serving(Path(path))
    library = None if path is None or (serving and not has_library(Path(path))) else find_library(Path(path))
    try:
        import torch
    except ImportError as error:
        if path is not None:
            raise PeerError(f"--peers is {path}, but torch, which it needs, cannot be imported: {error}") from None
        return Peers(None, None)
    for found in filter(None, (library, serving)):
        runtime = found.parent / "libcudart.so.12"
        if runtime.is_file():
            ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
        torch.ops.load_library(unpacked(found) if found.suffix == ".xz" else str(found))
    served = torch.ops._vllm_fa3_C.fwd if serving else None
    if library is None:
        try:
            importlib.import_module(INSTALLED)
        except ImportError:
            return Peers(torch, None, served)
    return Peers(torch, torch.ops.flash_attn_3.fwd, served)


def reason(error: Exception, warned: list[str]) -> str:
    """Why a peer does not compute a call: torch puts it into warnings, beside what concerns its other backends."""
    said = [text.partition(" (Triggered internally")[0] for text in warned]
    own = [text for text in said if not text.endswith(("not used because:", "has been runtime disabled."))]
    return " ".join([str(error), *dict.fromkeys(own)])[:600]


def has_library(path: Path) -> bool:
    """Whether the path leads to FlashAttention-3's own library."""
    return any((path / name).is_file() for name in LIBRARIES)


def find_serving(path: Path) -> Path | None:
    """The library of the serving build: the file itself, or one in a folder; None when there is none."""
    candidates = [path] if path.name in SERVING else [path / name for name in SERVING]
    return next(filter(Path.is_file, candidates), None)


def find_library(path: Path) -> Path:
    """FlashAttention-3's library: the file itself, or the one in a folder. PeerError when there is none."""
    for candidate in [path] if path.is_file() else [path / name for name in LIBRARIES]:
        if candidate.is_file():
            return candidate
    raise PeerError(
        f"--peers is {path}; it must be a library of FlashAttention-3 or hold {', '.join((*LIBRARIES, *SERVING))}"
    )


def unpacked(archive: Path) -> str:
    """The library inside an .xz file, unpacked once per machine (it takes seconds)."""
    # The size tells another build apart, and a folder of one's own keeps others from putting a library there.
    cache = Path.home() / ".cache" / "pyflash3-bench"
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / f"{archive.stat().st_size}-{archive.stem}"
    if not target.exists():
        with (
            lzma.open(archive) as source,
            tempfile.NamedTemporaryFile(dir=cache, delete=False) as part,
        ):
            shutil.copyfileobj(source, part, 1 << 24)
        Path(part.name).rename(target)
    return str(target)
