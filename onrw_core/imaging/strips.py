"""Strips of rows, in which large images are processed to limit the memory of temporary values."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["strips"]

PIXELS = 2**19  # about the size of a strip; smaller images are one strip


def strips(height: int, width: int, times: int = 1) -> Iterator[slice]:
    """Slices of rows that cover an image from top to bottom; each begins at an even row, to be halved by itself.

    Args:
        height, width: Of the image.
        times: Size of the strips relative to `PIXELS`, for work that needs many rows around each.
    """
    rows = max(2, times * PIXELS // width // 2 * 2)
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))
