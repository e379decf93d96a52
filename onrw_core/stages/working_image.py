"""The working image: the image at the size of the marking, in one window or in overlapping windows.

Memory grows with the working image, so a large image is inverted, optimised and denoised window by window. The offsets
of the windows are multiples of the keyed extractor's tile, so that its periodic watermark is continuous across windows.
All windows carry the same message, so that third-party decoders read the same bits everywhere. The decoded images of
overlapping windows are blended linearly before composition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..extractors.base import WORKING_SIZE

__all__ = ["Window", "blend", "iterations_at", "padded", "windows", "working_image"]

MULTIPLE = 64  # the padded sides are multiples of it: UNets halve latents of 1/8 up to three times
MOST_PIXELS = 2**25  # limit for extreme aspect ratios: a strip 64 pixels high would become gigapixels

# An image is one window up to
WHOLE_PIXELS = 2**20  # 1024 x 1024, 2048 x 512
WHOLE_SIDE = 8192  # pixels: some codecs of the attacks accept at most 16383
WINDOW_SIDE = 1024  # side of the windows of larger images, pixels
OVERLAP = 128  # pixels; a multiple of the tile, like the sides of windows


def working_image(image: Tensor, size: int) -> Tensor:
    """Resize an image to its working size; the aspect ratio is kept to the pixel.

    Args:
        image: (3, H, W) in [0, 1].
        size: The shorter side of the result.

    Returns:
        (1, 3, h, w).

    Raises:
        ValueError: The working image would be too large.
    """
    height, width = image.shape[-2:]
    scale = size / min(height, width)
    h, w = max(1, round(height * scale)), max(1, round(width * scale))
    if h * w > MOST_PIXELS:
        raise ValueError(
            f"the image is {width}x{height}, which is {w}x{h} at the working size {size}: more than "
            f"{MOST_PIXELS // 10**6} megapixels; choose a smaller size, or crop the image"
        )
    if (h, w) == (height, width):
        return image[None]
    return F.interpolate(image[None], size=(h, w), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def padded(image: Tensor) -> Tensor:
    """Pad (B, C, H, W) to multiples of 64 at the right and the bottom by replicating edges; composition crops it."""
    height, width = image.shape[-2:]
    return F.pad(image, (0, -width % MULTIPLE, 0, -height % MULTIPLE), mode="replicate")


def iterations_at(iterations: int, size: tuple[int, int]) -> int:
    """Iterations for a working image (height, width) of the default size: above a megapixel proportionally fewer.

    The watermark of a large image is averaged over many tiles, so that it needs less optimisation in each. (A long
    image that is no larger than the least default size is not a large one.)
    """
    height, width = size
    full = max(WHOLE_PIXELS, WORKING_SIZE**2 * max(size) / min(size))
    return max(1, round(iterations * min(1.0, full / (height * width))))


class Window(NamedTuple):
    """A window of the working image, in pixels; `top` and `left` are multiples of the tile."""

    top: int
    left: int
    height: int
    width: int

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    def cut(self, image: Tensor) -> Tensor:
        """The window of an image (..., H, W), a view."""
        return image[..., self.top : self.top + self.height, self.left : self.left + self.width]


def windows(height: int, width: int) -> list[Window]:
    """The windows of a working image, row by row."""
    if height * width <= WHOLE_PIXELS and max(height, width) <= WHOLE_SIDE:
        return [Window(0, 0, height, width)]
    return [Window(top, left, h, w) for top, h in _intervals(height) for left, w in _intervals(width)]


def _intervals(length: int) -> list[tuple[int, int]]:
    """Start and length of the windows along a side: as few as possible, evenly spaced."""
    count = max(1, -(-(length - OVERLAP) // (WINDOW_SIDE - OVERLAP)))
    if count == 1:
        return [(0, length)]
    side = -(-(length + (count - 1) * OVERLAP) // (count * MULTIPLE)) * MULTIPLE
    starts = [i * (length - side) // ((count - 1) * MULTIPLE) * MULTIPLE for i in range(count)]
    return [(start, side) for start in starts[:-1]] + [(starts[-1], length - starts[-1])]


def blend(parts: Sequence[Window], images: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Blend the images of windows, with linear ramps where they overlap.

    Args:
        parts: Some or all of the windows of `windows`.
        images: The image of each window, (B, C, h, w).
        size: (height, width) of the result.

    Returns:
        (B, C, height, width), 0 outside of all windows.
    """
    total = images[0].new_zeros(*images[0].shape[:-2], *size)
    weights = images[0].new_zeros(size)
    for part, image in zip(parts, images, strict=True):
        weight = _ramp(part.top, part.height, size[0])[:, None] * _ramp(part.left, part.width, size[1])
        part.cut(total).add_(image * weight.to(image))
        part.cut(weights).add_(weight.to(image))
    return total.div_(weights.where(weights > 0, 1))


def _ramp(start: int, length: int, total: int) -> Tensor:
    """Weights along a window's side, (length,): decreasing towards ends inside of the whole image."""
    position, weight = torch.arange(length) + 0.5, torch.ones(length)
    if start > 0:
        weight = weight.minimum(position / OVERLAP)
    if start + length < total:
        weight = weight.minimum((length - position) / OVERLAP)
    return weight
