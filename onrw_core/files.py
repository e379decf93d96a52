"""Writing files whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["atomic_write"]


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a file beside `path` that takes its place when the block ends well.

    An error or Ctrl-C inside the block leaves whatever was at `path` before, and nothing else.

    Raises:
        OSError: The folder does not exist or cannot be written to.
    """
    path = Path(path)
    # Not tempfile: its files are private (0600), a picture should get the permissions that any new file gets.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
