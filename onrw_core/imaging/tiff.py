"""TIFF files and their directories, which Exif has as well.

Pillow's directories guess the types of values, turn letters outside of ASCII into question marks, and cannot be written
with Exif and GPS by libtiff. Here the values are bytes in the byte order of the file that they come from, and a file
that is written has the same order, so that they stay as they are.

References: TIFF 6.0; Exif 2.32 and 3.0 (UTF-8); BigTIFF (read only).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate
from typing import Literal

import numpy as np

__all__ = ["CARRIED_TYPES", "LONG", "SHORT", "Directory", "Field", "encode_tiff", "exif_of", "numbers", "parse"]

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES = 256, 257, 258, 259, 262, 277
STRIP_OFFSETS, ROWS_PER_STRIP, STRIP_BYTES, PLANAR, RESOLUTION_UNIT = 273, 278, 279, 284, 296
X_RESOLUTION, Y_RESOLUTION, PREDICTOR, EXTRA_SAMPLES = 282, 283, 317, 338
DEFLATE, RGB, HORIZONTAL, CONTIGUOUS, INCH, STRAIGHT_ALPHA = 8, 2, 2, 1, 2, 2
STRIP = 2**18  # bytes of pixels that are compressed together

EXIF, GPS, INTEROPERABILITY = 34665, 34853, 40965
INSIDE = {EXIF: (INTEROPERABILITY,)}  # directories in directories
SHORT, LONG, RATIONAL, IFD = 3, 4, 5, 13
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, IFD: 4, 16: 8, 17: 8, 18: 8, 129: 1}
CARRIED_TYPES = {*SIZES} - {IFD, 16, 17, 18}  # without pointers, and without those of BigTIFF alone
MOST_DENOMINATOR = 1000  # of a resolution

Order = Literal["little", "big"]


@dataclass(frozen=True)
class Field:
    """Values of a tag.

    Attributes:
        kind: Their type.
        data: Their bytes.
        at: Offset of the entry in what was parsed.
    """

    kind: int
    data: bytes
    at: int = 0


@dataclass
class Directory:
    """A directory and those inside it.

    Attributes:
        order: Of all bytes.
        fields: By tag.
        damaged: Tags that cannot be read.
        following: Offset of the pointer to the next directory; 0 if there is none.
    """

    order: Order = "little"
    fields: dict[int, Field | Directory] = field(default_factory=dict)
    damaged: list[int] = field(default_factory=list)
    following: int = 0

    def data(self, tag: int) -> bytes:
        """The bytes of a tag; empty without it."""
        found = self.fields.get(tag)
        return found.data if isinstance(found, Field) else b""

    def number(self, tag: int) -> int | None:
        """The first number of a tag of whole numbers."""
        found = self.fields.get(tag)
        return int.from_bytes(found.data[: SIZES[found.kind]], self.order) if isinstance(found, Field) else None


def parse(content: bytes) -> Directory:
    """The first directory of a TIFF file, or of Exif without its header; empty if it is damaged."""
    order: Order = "big" if content[:2] == b"MM" else "little"
    magic = int.from_bytes(content[2:4], order)
    if content[:2] not in (b"II", b"MM") or magic not in (42, 43):
        return Directory()
    wide = magic == 43
    at = int.from_bytes(content[8:16] if wide else content[4:8], order)
    return _parse(content, at, order, wide, (EXIF, GPS))


def _parse(content: bytes, at: int, order: Order, wide: bool, inside: tuple[int, ...]) -> Directory:
    def number(at: int, size: int) -> int:
        return int.from_bytes(content[at : at + size], order)

    head, place = (8, 8) if wide else (2, 4)
    step, result, total = 4 + 2 * place, Directory(order), 0
    first, count = at + head, number(at, head)
    for entry in range(first, min(first + step * count, len(content) - step + 1), step):
        tag, kind, values = number(entry, 2), number(entry + 2, 2), entry + 4 + place
        size = number(entry + 4, place) * SIZES.get(kind, 0)
        start = values if size <= place else number(values, place)
        total += size  # values may overlap, and would then fill the memory
        if tag in result.fields or (kind in SIZES and not size):
            continue
        if tag in inside:
            inner = _parse(content, number(values, min(size, place)), order, wide, INSIDE.get(tag, ()))
            result.damaged += inner.damaged if inner.fields else [tag]
            if inner.fields:
                result.fields[tag] = inner
        elif size and start + size <= len(content) and total <= len(content):
            result.fields[tag] = Field(kind, content[start : start + size], entry)
        else:
            result.damaged.append(tag)
    end = first + step * count
    if number(end, place):
        result.following = end
    return result


def numbers(order: Order, kind: int, values: Iterable[int]) -> Field:
    """Whole numbers; of rationals, numerators and denominators in turn."""
    size = 2 if kind == SHORT else 4
    return Field(kind, b"".join(value.to_bytes(size, order) for value in values))


def _header(order: Order, at: int) -> bytes:
    """The header of a file whose directory is at the offset `at`."""
    return (b"II" if order == "little" else b"MM") + (42).to_bytes(2, order) + at.to_bytes(4, order)


def exif_of(directory: Directory) -> bytes:
    """Exif of a directory, without header."""
    return _header(directory.order, 8) + _bytes(directory, 8)


def _bytes(directory: Directory, at: int) -> bytes:
    """A directory at the offset `at` of a file, with its values behind it."""
    order, values = directory.order, bytearray()
    entries = [len(directory.fields).to_bytes(2, order)]
    start = at + 2 + 12 * len(directory.fields) + 4
    for tag, value in sorted(directory.fields.items()):
        place = start + len(values)
        if isinstance(value, Directory):
            kind, count, data = LONG, 1, place.to_bytes(4, order)
            values += _bytes(value, place)
        else:
            kind, count, data = value.kind, len(value.data) // SIZES[value.kind], value.data
            if len(data) > 4:
                values += data + bytes(len(data) % 2)
                data = place.to_bytes(4, order)
        entries += [tag.to_bytes(2, order), kind.to_bytes(2, order), count.to_bytes(4, order), data.ljust(4, b"\0")]
    return b"".join([*entries, bytes(4), values])


def encode_tiff(levels: np.ndarray, directory: Directory, dpi: tuple[float, float] | None = None) -> bytes:
    """Encode a TIFF file.

    Args:
        levels: (H, W, 3 or 4) of uint8, RGB and straight alpha.
        directory: Its tags, without the layout.
        dpi: Resolution in pixels per inch.
    """
    height, width, channels = levels.shape
    rows = max(1, STRIP // (width * channels))
    # Differences of neighbours compress better: photos to about two thirds.
    left = np.concatenate([np.zeros_like(levels[:, :1]), levels[:, :-1]], 1)
    strips = [zlib.compress((levels - left)[top : top + rows].tobytes()) for top in range(0, height, rows)]
    layout: dict[int, tuple[int, Iterable[int]]] = {
        WIDTH: (LONG, [width]),
        HEIGHT: (LONG, [height]),
        BITS: (SHORT, [8] * channels),
        COMPRESSION: (SHORT, [DEFLATE]),
        PHOTOMETRIC: (SHORT, [RGB]),
        SAMPLES: (SHORT, [channels]),
        ROWS_PER_STRIP: (LONG, [rows]),
        PLANAR: (SHORT, [CONTIGUOUS]),
        PREDICTOR: (SHORT, [HORIZONTAL]),
        STRIP_BYTES: (LONG, map(len, strips)),
        STRIP_OFFSETS: (LONG, accumulate(map(len, strips[:-1]), initial=8)),
    }
    if channels == 4:
        layout[EXTRA_SAMPLES] = (SHORT, [STRAIGHT_ALPHA])
    if dpi is not None:
        for tag, value in zip((X_RESOLUTION, Y_RESOLUTION), dpi, strict=True):
            layout[tag] = (RATIONAL, Fraction(value).limit_denominator(MOST_DENOMINATOR).as_integer_ratio())
        layout[RESOLUTION_UNIT] = (SHORT, [INCH])
    order = directory.order
    fields = dict(directory.fields)
    fields.update((tag, numbers(order, kind, values)) for tag, (kind, values) in layout.items())
    pixels = b"".join(strips)
    pixels += bytes(len(pixels) % 2)  # directories begin at even offsets
    at = 8 + len(pixels)
    return _header(order, at) + pixels + _bytes(Directory(order, fields), at)
