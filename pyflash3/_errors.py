"""The exceptions that the C library's statuses become.

Bad arguments that Python finds itself raise plain ValueError, TypeError or NotImplementedError; the classes here derive
from the same ones, so that callers need not know who found the mistake.
"""

from __future__ import annotations


class Flash3Error(Exception):
    """Base of everything that libflash3 reports."""


class InvalidArgumentError(Flash3Error, ValueError):
    """The library refused an argument; the message names it, its value and what is allowed."""


class UnsupportedError(Flash3Error, NotImplementedError):
    """A valid call that this build has no code for: a dtype, a head dim, a GPU architecture."""


class NoDeviceError(Flash3Error, RuntimeError):
    """There is no CUDA driver, no such GPU, or no CuPy to reach it with."""


class CudaError(Flash3Error, RuntimeError):
    """The CUDA runtime refused a launch."""


class InternalError(Flash3Error, RuntimeError):
    """A defect of pyflash3 itself; please report it."""


class LibraryNotFoundError(Flash3Error, ImportError):
    """No libflash3.so; the message lists every path tried."""


class AbiMismatchError(Flash3Error, ImportError):
    """libflash3.so and this package are of different versions."""


# flash3_status of flash3.h. BAD_WORKSPACE is our own mistake, since this package allocates the workspace.
_BY_STATUS: dict[int, type[Flash3Error]] = {
    1: InvalidArgumentError,
    2: UnsupportedError,
    3: NoDeviceError,
    4: InternalError,
    5: CudaError,
    6: AbiMismatchError,
    7: InternalError,
}


def error_from_status(status: int, message: str) -> Flash3Error:
    """The exception for a flash3_status other than FLASH3_OK, with the library's message."""
    cls = _BY_STATUS.get(status, InternalError)
    return cls(message or f"libflash3 returned status {status} without a message")
