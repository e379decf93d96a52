"""The heap of the C library."""

from __future__ import annotations

import ctypes

__all__ = ["trim"]


def trim() -> None:
    """Give memory that is no longer used back to the system.

    glibc keeps freed blocks of up to 32 MB for later: after the optimisation of a window, that is most of the memory
    that the temporary tensors took. Other C libraries have no such function, and nothing is done.
    """
    malloc_trim = getattr(ctypes.pythonapi, "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
