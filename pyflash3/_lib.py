"""Finds and loads libflash3.so, on first use, so that importing the package needs neither the library nor a GPU."""

from __future__ import annotations

import ctypes
import functools
import os
from dataclasses import dataclass
from pathlib import Path

from . import _abi
from ._errors import AbiMismatchError, LibraryNotFoundError, error_from_status

LIBRARY_NAME = "libflash3.so"
ENV_LIBRARY = "PYFLASH3_LIBRARY"


@dataclass(frozen=True)
class Library:
    """A loaded libflash3 whose layout has been checked."""

    path: str
    cdll: ctypes.CDLL

    def version(self) -> str:
        """major.minor.patch"""
        text: bytes = self.cdll.flash3_version()
        return text.decode()

    def build_info(self) -> dict[str, str]:
        """What was built: keys archs, dtypes, head_dims (empty without CUDA), cuda, compiler."""
        lines = self.cdll.flash3_build_info().decode().splitlines()
        return {key: value for key, _, value in (line.partition("=") for line in lines)}

    def check(self, status: int) -> None:
        """Raises the exception of a flash3_status other than FLASH3_OK."""
        if status != 0:
            raise error_from_status(status, self.cdll.flash3_last_error().decode(errors="replace"))

    def workspace_size(self, params: _abi.Params) -> int:
        """Bytes of scratch that run_mha_v3 needs for these parameters."""
        size = ctypes.c_size_t()
        self.check(self.cdll.flash3_workspace_size(params, ctypes.byref(size)))
        return size.value

    def device_check(self, device: int) -> None:
        """Raises when this build cannot run on that CUDA device (-1: the current one); the message says why."""
        self.check(self.cdll.flash3_device_check(device))


def candidates() -> list[str]:
    """Where the library is looked for, in order. A path in PYFLASH3_LIBRARY stands alone: no other copy is taken."""
    chosen = os.environ.get(ENV_LIBRARY)
    if chosen:
        return [chosen]
    package = Path(__file__).resolve().parent
    return [
        str(package / "lib" / LIBRARY_NAME),
        str(package.parent / "build" / LIBRARY_NAME),
        LIBRARY_NAME,  # the system loader: LD_LIBRARY_PATH, ld.so.conf
    ]


def _open() -> tuple[str, ctypes.CDLL]:
    tried: list[str] = []
    for path in candidates():
        # A file that exists but does not load is a fault to report, not one to hide behind another copy.
        try:
            return path, ctypes.CDLL(path)
        except OSError as error:
            reason = "no such file" if os.sep in path and not os.path.exists(path) else str(error)
            tried.append(f"  {path}: {reason}")
            if os.path.exists(path):
                break
    raise LibraryNotFoundError(
        f"{LIBRARY_NAME} was not found or did not load; tried:\n" + "\n".join(tried) + "\n"
        f"Build it with scripts/build_and_test.sh or 'pip install .', or set {ENV_LIBRARY} to its path."
    )


@functools.cache
def library() -> Library:
    """The library of this process. LibraryNotFoundError or AbiMismatchError (both ImportError) when there is none."""
    path, cdll = _open()
    try:
        _abi.declare(cdll)
    except AttributeError as error:
        raise AbiMismatchError(f"{path} is not the libflash3 of pyflash3 {_abi.VERSION}: {error}") from None
    problem = _abi.mismatch(cdll)
    if problem is not None:
        raise AbiMismatchError(f"{path} does not fit: {problem}")
    return Library(path, cdll)
