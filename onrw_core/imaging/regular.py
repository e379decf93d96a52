"""Opening files that come from elsewhere: a pipe may never be written, and a device such as /dev/zero never ends."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

__all__ = ["check_regular", "open_regular"]


def open_regular(path: str | os.PathLike, error: type[ValueError] = ValueError) -> BinaryIO:
    """Open a regular file for reading, in bytes.

    Args:
        path: The file.
        error: The kind of the error.

    Raises:
        ValueError: Missing, unreadable, a folder, a pipe or a device, as `error`.
    """
    path = Path(path)
    try:
        # O_NONBLOCK: opening a pipe does not wait for its writer. The type is checked on the open file, against races.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except PermissionError:
        raise error(f"{path}: cannot be read; check its permissions") from None
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason})") from reason
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return open(descriptor, "rb")
    os.close(descriptor)
    raise error(f"{path}: is a {'folder' if stat.S_ISDIR(mode) else 'pipe or a device'}; give a file in its place")


def check_regular(path: str | os.PathLike, error: type[ValueError] = ValueError) -> None:
    """Refuse what `open_regular` refuses, for a library that opens the file by itself.

    Raises:
        ValueError: See `open_regular`.
    """
    open_regular(path, error).close()
