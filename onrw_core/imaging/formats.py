"""The image formats that are read and written.

`Image.open` passes a file of any name to every plugin of Pillow: a "photo.png" that is PostScript starts Ghostscript.
So all images are opened by `open_image`, which admits the formats in `READABLE` only.
"""

from __future__ import annotations

import os
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from PIL import Image

__all__ = ["FORMATS", "HEIF_BRANDS", "READABLE", "is_image", "kept_suffix", "open_image"]

# Pillow's names. JPEG includes MPO, as phones write it: a JPEG followed by a depth map or a second view.
READABLE = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", *["AVIF"] * bool(find_spec("PIL.AvifImagePlugin")))

FORMATS = {  # formats that are written, by suffix
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
SUFFIX = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "TIFF": ".tif", "BMP": ".bmp"}  # suffix of a new name
READ_ONLY = (".apng", ".avif", ".gif", ".heic", ".heif", ".hif", ".mpo")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def open_image(file: str | os.PathLike | BinaryIO) -> Image.Image:
    """`Image.open` for the formats in `READABLE`.

    Raises:
        PIL.UnidentifiedImageError: Any other format, or not an image.
    """
    return Image.open(file, formats=READABLE)


def is_image(path: Path) -> bool:
    """Whether a file has the suffix of an image, or has no suffix and the header of an image.

    HEIC is included, so that the user gets an error with the reason.
    """
    if path.suffix:
        return path.suffix.lower() in (*FORMATS, *READ_ONLY)
    try:
        with open_image(path):
            return True
    except Exception:  # plugins raise any kind of error on other files
        return False


def kept_suffix(path: Path) -> tuple[str, str]:
    """The suffix with which an image keeps its file format, and a message if it cannot.

    The format is that of the header, not of the name.
    """
    named = path.suffix if path.suffix.lower() in FORMATS else ".png"
    if not path.is_file():
        return named, ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_image(path) as image:
                kind, mode = image.format or "", image.mode
    except Exception:  # the error is raised when it is decoded
        return named, ""
    kind = "JPEG" if kind == "MPO" else kind
    if mode in ("P", "PA", "CMYK"):
        return ".png", f"{'CMYK' if mode == 'CMYK' else 'palette'} becomes RGB in PNG"
    if kind not in SUFFIX:
        return ".png", f"{kind} becomes PNG"
    return (path.suffix if FORMATS.get(path.suffix.lower()) == kind else SUFFIX[kind]), ""
