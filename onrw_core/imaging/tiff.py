"""TIFF files with Exif.

Pillow compresses TIFF by libtiff, which cannot write the Exif and GPS directories of camera images. Here the pixels are
compressed by zlib, and Pillow writes the directory.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable

import numpy as np
from PIL import TiffImagePlugin

__all__ = ["encode_tiff"]

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES = 256, 257, 258, 259, 262, 277
STRIP_OFFSETS, ROWS_PER_STRIP, STRIP_BYTES, PLANAR, RESOLUTION_UNIT = 273, 278, 279, 284, 296
X_RESOLUTION, Y_RESOLUTION, PREDICTOR, EXTRA_SAMPLES = 282, 283, 317, 338
DEFLATE, RGB, HORIZONTAL, CONTIGUOUS, INCH, STRAIGHT_ALPHA, LONG = 8, 2, 2, 1, 2, 2, 4
STRIP = 2**18  # bytes of pixels that are compressed together


def encode_tiff(levels: np.ndarray, tags: Iterable[tuple[int, object]], dpi: tuple[float, float] | None) -> bytes:
    """Encode a TIFF file.

    Args:
        levels: (H, W, 3 or 4) of uint8, RGB and straight alpha.
        tags: (tag, value) of its directory, without the layout; dictionaries become subdirectories.
        dpi: Resolution in pixels per inch.

    Raises:
        ValueError: Pillow cannot write a tag.
    """
    height, width, channels = levels.shape
    rows = max(1, STRIP // (width * channels))
    # Differences of neighbours compress better: photos to about two thirds.
    left = np.concatenate([np.zeros_like(levels[:, :1]), levels[:, :-1]], 1)
    strips = [zlib.compress((levels - left)[top : top + rows].tobytes()) for top in range(0, height, rows)]
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    layout = {
        WIDTH: width,
        HEIGHT: height,
        BITS: (8,) * channels,
        COMPRESSION: DEFLATE,
        PHOTOMETRIC: RGB,
        SAMPLES: channels,
        ROWS_PER_STRIP: rows,
        PLANAR: CONTIGUOUS,
        PREDICTOR: HORIZONTAL,
        STRIP_BYTES: tuple(map(len, strips)),
        STRIP_OFFSETS: tuple(sum(map(len, strips[:index])) for index in range(len(strips))),  # from the directory's end
    }
    if channels == 4:
        layout[EXTRA_SAMPLES] = STRAIGHT_ALPHA
    if dpi is not None:
        layout |= {X_RESOLUTION: dpi[0], Y_RESOLUTION: dpi[1], RESOLUTION_UNIT: INCH}
    for tag, value in (*layout.items(), *tags):
        directory[tag] = value
    directory.tagtype[STRIP_OFFSETS] = directory.tagtype[STRIP_BYTES] = LONG
    file = io.BytesIO()
    try:
        directory.save(file)
    except Exception as error:  # Pillow's writer raises any kind of error on tags of damaged files
        raise ValueError(f"its Exif cannot be written as TIFF ({error})") from error
    for strip in strips:
        file.write(strip)
    return file.getvalue()
