"""Thumbnails in the coordinates of a watermark, which tell whether an image looks like the one that was marked.

A watermark moves along when the fine detail of a marked image is pasted into another image, and is then read as ever.
What is coarser than the watermark does not move along. So a thumbnail of the marked image, which its registry keeps,
is compared with the image that carries the watermark now. The reading tells where each of its pixels lay in the marked
image, so that crops, rotations and scales do not matter.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import Geometry, resample, size_of
from .metrics import luminance
from .rounding import LEVELS

__all__ = ["CELL", "LIKE", "PERIOD", "Thumbnail", "likeness", "thumbnail"]

CELL = 32  # pixels of the marked image: coarser than the watermark, whose longest wave is 32 pixels
PERIOD = 64  # cells after which the coordinates of a watermark repeat
SAMPLES = 4  # along each side of a cell
COVERED = 0.9  # share of a cell that an image must cover
# Fewer cells, or flatter ones (root mean square of the local contrast, of full scale), tell nothing.
MIN_CELLS, MIN_CONTRAST = 12, 0.01
LIKE = 0.5  # likeness of an image and its marked version at least: docs/statistics.md has the measurement
TEXT = re.compile(r"(\d{1,2}),(\d{1,2}),(\d{1,2}),(\d{1,2}):([A-Za-z0-9+/=]+)")


@dataclass(frozen=True)
class Thumbnail:
    """Mean luminances of an image's cells.

    Attributes:
        row, column: Of the first cell, modulo `PERIOD`.
        values: (rows, columns) in [0, 1]; NaN where the image does not cover a cell.
    """

    row: int
    column: int
    values: Tensor

    def __str__(self) -> str:
        """Text for a registry: row, column, rows, columns and the levels, 255 for NaN."""
        levels = (self.values * (LEVELS - 1)).round().nan_to_num(LEVELS).to(torch.uint8)
        rows, columns = self.values.shape
        return f"{self.row},{self.column},{rows},{columns}:{base64.b64encode(levels.numpy().tobytes()).decode()}"

    @classmethod
    def parse(cls, text: str) -> Thumbnail | None:
        """The thumbnail of a text; None if it is not one."""
        match = TEXT.fullmatch(text)
        if match is None:
            return None
        row, column, rows, columns = map(int, match.groups()[:4])
        try:
            content = base64.b64decode(match[5], validate=True)
        except binascii.Error:
            return None
        if not 0 < rows * columns == len(content) or max(rows, columns) > PERIOD or max(row, column) >= PERIOD:
            return None
        levels = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(rows, columns).float()
        return cls(row, column, (levels / (LEVELS - 1)).masked_fill(levels == LEVELS, torch.nan))

    def on_torus(self) -> Tensor:
        """The values at their places, (PERIOD, PERIOD); NaN elsewhere."""
        torus = torch.full((PERIOD, PERIOD), torch.nan)
        rows, columns = self.values.shape
        torus[:rows, :columns] = self.values
        return torus.roll((self.row, self.column), (0, 1))


def thumbnail(image: Tensor, geometry: Geometry) -> Thumbnail:
    """The thumbnail of an image.

    Args:
        image: (3, H, W) in [0, 1].
        geometry: Maps its coordinates to those of the watermark, see `extractors.reading.Reading.geometry`.
    """
    height, width = size_of(image)
    corners = geometry.apply(torch.tensor([(0.0, 0.0), (width, 0.0), (0.0, height), (width, height)]))
    first = (corners.amin(0) / CELL).floor()
    counts = ((corners.amax(0) / CELL).ceil() - first).clamp(max=PERIOD).int().tolist()

    pitch = CELL / SAMPLES
    middle = geometry.apply(torch.tensor([(width / 2, height / 2), (width / 2 + 1, height / 2)]).double())
    shrink = max(1.0, pitch / max(float((middle[1] - middle[0]).norm()), 1e-6))
    small = [max(1, round(side / shrink)) for side in (height, width)]
    y = F.interpolate(luminance(image[None].float().cpu()), size=small, mode="bilinear", antialias=True)
    to_small = Geometry.scale(small[1] / width, small[0] / height)

    sampled = to_small @ geometry.inverse() @ Geometry.shift(*(first * CELL).tolist()) @ Geometry.scale(pitch)
    size = (counts[1] * SAMPLES, counts[0] * SAMPLES)
    cells = F.avg_pool2d(resample(torch.cat([y, torch.ones_like(y)], 1), sampled, size), SAMPLES)[0]
    values = (cells[0] / cells[1]).masked_fill(cells[1] < COVERED, torch.nan).clamp(0, 1)
    return Thumbnail(int(first[1]) % PERIOD, int(first[0]) % PERIOD, values)


def likeness(registered: Thumbnail, seen: Thumbnail) -> float | None:
    """Correlation of the local contrasts where both have cells, -1 to 1; None where too little can be compared."""
    values = torch.stack([registered.on_torus(), seen.on_torus()])[None]
    both = values.isfinite().all(1, keepdim=True).float()
    known = values.nan_to_num(0.0) * both
    around = [F.avg_pool2d(F.pad(each, (1, 1, 1, 1), mode="circular"), 3, stride=1) for each in (known, both)]
    contrast = (known - around[0] / around[1].clamp(min=1e-6)) * both
    count, energy = float(both.sum()), contrast.square().sum((0, 2, 3))
    if count < MIN_CELLS or float(energy[0]) < count * MIN_CONTRAST**2:
        return None
    return float(contrast.prod(1).sum() / energy.prod().sqrt().clamp(min=1e-12))
