"""The photos of a benchmark, resized to one size, with captions; and a mosaic of photos as a large image."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.fingerprint import image_digest
from ..imaging.files import load
from ..imaging.rounding import LEVELS

__all__ = ["MOSAIC", "SUFFIXES", "Photo", "load_photos", "mosaic", "sized"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
CAPTIONS = "captions.tsv"
MOSAIC = (1365, 2048)  # (height, width): 3:2, as cameras make them


@dataclass(frozen=True)
class Photo:
    """A photo to mark.

    Attributes:
        name: File name without suffix.
        image: (3, H, W), multiples of 1/255.
        prompt: Its caption, "" without one.
    """

    name: str
    image: Tensor
    prompt: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of size and pixels."""
        return image_digest(self.image)


def load_photos(directory: Path, size: int | None = None, match: str = "*", limit: int | None = None) -> list[Photo]:
    """Read the photos of a folder in the order of their names.

    Args:
        directory: Folder of the photos, with `captions.tsv` (name, caption) if there are captions.
        size: Shorter side in pixels that every photo is resized to; None for no resizing.
        match: Only files of that pattern.
        limit: At most so many.

    Raises:
        ValueError: If there are none, or one cannot be read.
    """
    if not directory.is_dir():
        raise ValueError(f"--images {directory}: no such folder")
    paths = sorted(p for p in directory.glob(match) if p.suffix.lower() in SUFFIXES)[:limit]
    if not paths:
        raise ValueError(f"--images {directory}: no image in it that matches {match!r}")
    captions = _captions(directory / CAPTIONS)
    return [Photo(p.stem, sized(load(p).rgb, size), captions.get(p.name, "")) for p in paths]


def mosaic(photos: list[Photo]) -> Photo:
    """One large image of `MOSAIC` size, tiled with the photos in turn."""
    height, width = MOSAIC
    side = min(min(p.image.shape[-2:]) for p in photos)
    columns, rows = -(-width // side), -(-height // side)
    tiles = [photos[i % len(photos)].image[:, :side, :side] for i in range(columns * rows)]
    lines = [torch.cat(tiles[r * columns : (r + 1) * columns], 2) for r in range(rows)]
    image = torch.cat(lines, 1)[:, :height, :width].contiguous()
    return Photo(f"mosaic-{width}x{height}", image, photos[0].prompt)


def _captions(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row[0]: row[1] for row in csv.reader(file, delimiter="\t") if len(row) > 1}


def sized(image: Tensor, size: int | None) -> Tensor:
    """An image (3, H, W) resized to `size` pixels of the shorter side; None for no resizing."""
    height, width = image.shape[-2:]
    if size is None or min(height, width) == size:
        return image
    target = (round(height * size / min(height, width)), round(width * size / min(height, width)))
    image = F.interpolate(image[None], size=target, mode="bicubic", antialias=True, align_corners=False)
    return (image[0].clamp(0, 1) * LEVELS).round() / LEVELS
