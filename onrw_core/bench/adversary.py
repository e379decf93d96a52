"""What somebody without the key can compute from marked images, to remove or to forge a watermark.

All estimates are averages of the high frequencies, image - its local mean, where a watermark is relatively strongest:
over the tiles of one image (that was enough for wire format 1, whose tiles are alike), and over the images of one key.
The places of the images in the key's pattern are given to the adversary, which is more than cross-correlation of the
images could tell him.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from ..extractors.keyed.band import TILE
from ..extractors.keyed.secret_layer import PERIOD

__all__ = ["aligned_estimate", "copied", "estimated_tile", "high_frequencies", "rank_one", "subtracted", "tiled"]

MEAN_RADIUS = 4  # pixels; radius of the local mean that an adversary subtracts


def high_frequencies(image: Tensor) -> Tensor:
    """The difference between an image (3, H, W) and its local mean, (3, H, W)."""
    return image - F.avg_pool2d(image[None], 2 * MEAN_RADIUS + 1, 1, MEAN_RADIUS, count_include_pad=False)[0]


def estimated_tile(images: list[Tensor]) -> Tensor:
    """The component of the images with a period of `TILE` pixels, (3, TILE, TILE), mean 0.

    Args:
        images: Images (3, H, W) of at least one tile; a tile begins at the upper left corner.
    """
    tile = torch.stack([reduce(_whole_tiles(image), "c rows y columns x -> c y x", "mean") for image in images]).mean(0)
    return tile - tile.mean((1, 2), keepdim=True)


def rank_one(image: Tensor) -> Tensor:
    """The best approximation of the high frequencies by multiples of one tile, (3, H, W); 0 outside of whole tiles."""
    tiles = _whole_tiles(image)
    rows, columns = tiles.shape[1], tiles.shape[3]
    matrix = rearrange(tiles, "c rows y columns x -> (rows columns) (c y x)")
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    first = s[0] * torch.outer(u[:, 0], v[0])
    part = rearrange(first, "(r l) (c y x) -> c (r y) (l x)", r=rows, l=columns, y=TILE, x=TILE)
    return F.pad(part, (0, image.shape[2] - part.shape[2], 0, image.shape[1] - part.shape[1]))


def aligned_estimate(images: list[Tensor], places: list[tuple[int, int]]) -> Tensor:
    """The mean high frequencies of images at their places in the pattern, (3, PERIOD TILE, PERIOD TILE); 0 elsewhere.

    Args:
        images: (3, H, W) each, not larger than the pattern.
        places: Row and column of the first tile of each.
    """
    side = PERIOD * TILE
    total, count = torch.zeros(3, side, side), torch.zeros(side, side)
    for image, place in zip(images, places, strict=True):
        rows, columns = _area(image, place)
        total[:, rows, columns] += high_frequencies(image)
        count[rows, columns] += 1
    return total / count.clamp(min=1)


def at_place(estimate: Tensor, image: Tensor, place: tuple[int, int]) -> Tensor:
    """The part of an `aligned_estimate` at the place of an image, shaped like it."""
    rows, columns = _area(image, place)
    return estimate[:, rows, columns]


def subtracted(image: Tensor, estimate: Tensor, decibels: float) -> Tensor:
    """The image less a multiple of an estimate, such that their PSNR is `decibels`."""
    rms = estimate.square().mean().sqrt().clamp(min=1e-12)
    return image - estimate * (10 ** (-decibels / 20) / rms)


def copied(source: Tensor, target: Tensor, gain: float) -> Tensor:
    """The copy attack: the high frequencies of `source` added to `target`, from the upper left corner on.

    Args:
        source: The marked image, (3, H, W).
        target: (3, H', W').
        gain: Factor of the high frequencies.
    """
    height, width = (min(a, b) for a, b in zip(source.shape[1:], target.shape[1:], strict=True))
    result = target.clone()
    result[:, :height, :width] += gain * high_frequencies(source)[:, :height, :width]
    return result


def tiled(tile: Tensor, size: tuple[int, int]) -> Tensor:
    """The tile repeated over (height, width)."""
    rows, columns = -(-size[0] // TILE), -(-size[1] // TILE)
    return tile.repeat(1, rows, columns)[:, : size[0], : size[1]]


def _whole_tiles(image: Tensor) -> Tensor:
    """The high frequencies in whole tiles, (3, rows, TILE, columns, TILE)."""
    rows, columns = image.shape[1] // TILE, image.shape[2] // TILE
    high = high_frequencies(image)[:, : rows * TILE, : columns * TILE]
    return rearrange(high, "c (rows y) (columns x) -> c rows y columns x", y=TILE, x=TILE)


def _area(image: Tensor, place: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Indices of the rows (as a column) and columns that an image covers of the pattern."""
    side = PERIOD * TILE
    rows, columns = ((torch.arange(n) + p * TILE) % side for n, p in zip(image.shape[1:], place, strict=True))
    return rows[:, None], columns[None]
