"""Registration of the frames of a clip: the translation of their common content, in whole pixels.

It is the shift with the largest normalised correlation of the luminances where the two frames overlap: of all shifts,
by FFT at a reduced size, and then around the maximum at full size. A moving object does not outweigh the scene around
it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .convolve import gaussian_blur
from .geometry import size_of
from .metrics import luminance

__all__ = ["Shift", "aligned", "overlap", "translated", "translation"]

COARSE_SIDE = 256  # pixels of the shorter side at the reduced size
LEAST_OVERLAP = 0.25  # share of a frame
LEAST_CORRELATION = 0.3  # frames of different scenes are below
TINY = 1e-3  # of the energies; frames that are flat have less
STILL = 0.01  # of the correlation that any motion has to gain over none
SMOOTH = 8.0  # pixels: coarser components, such as a change of exposure, are left out


class Shift(NamedTuple):
    """A translation in pixels, to the right and down."""

    x: int
    y: int


def translation(first: Tensor, second: Tensor) -> Shift | None:
    """How far the content of one frame has moved in another.

    Args:
        first: (1, 3, H, W) in [0, 1].
        second: Of the same size.

    Returns:
        The shift of the content from the first to the second; None where they have too little in common.
    """
    a, b = (_detail(frame) for frame in (first, second))
    factor = max(1, min(size_of(a)) // COARSE_SIDE)
    coarse = _best_of_all(*(F.avg_pool2d(each[None], factor)[0] for each in (a, b)))
    moved = Shift(factor * coarse.x, factor * coarse.y)
    best = _correlation(a, b, moved)
    for _ in range(2 * factor):  # to the highest of the neighbours, until there is none
        around = [Shift(moved.x + x, moved.y + y) for x in (-1, 0, 1) for y in (-1, 0, 1) if x or y]
        height, neighbour = max((_correlation(a, b, shift), shift) for shift in around)
        if height <= best:
            break
        best, moved = height, neighbour
    still = _correlation(a, b, Shift(0, 0))
    if max(best, still) < LEAST_CORRELATION:
        return None
    return moved if best > still + STILL else Shift(0, 0)


def aligned(frames: Tensor) -> Tensor:
    """Frames on a canvas where their common content lies in one place, that of the first frame.

    Args:
        frames: (F, 3, H, W) in [0, 1].

    Returns:
        (F, 3, H', W'), black outside of each frame.
    """
    frames = frames.cpu()
    height, width = size_of(frames)
    shifts = [translation(frames[:1], frame[None]) or Shift(0, 0) for frame in frames[1:]]
    shifts.insert(0, Shift(0, 0))
    left, top = (max(axis) for axis in zip(*shifts, strict=True))
    right, bottom = (-min(axis) for axis in zip(*shifts, strict=True))
    canvas = frames.new_zeros(len(frames), 3, height + top + bottom, width + left + right)
    for place, frame, shift in zip(canvas, frames, shifts, strict=True):
        x, y = left - shift.x, top - shift.y
        place[:, y : y + height, x : x + width] = frame
    return canvas


def overlap(shift: Shift, size: tuple[int, int]) -> float:
    """The share of a frame of (height, width) `size` that is also in one shifted by that much."""
    height, width = size
    return max(0, height - abs(shift.y)) * max(0, width - abs(shift.x)) / (height * width)


def translated(image: Tensor, shift: Shift) -> tuple[Tensor, Tensor]:
    """An image (1, C, H, W) shifted, 0 where it was outside; and where it is new, (1, 1, H, W), 0 or 1."""
    height, width = size_of(image)
    moved, new = torch.zeros_like(image), torch.ones_like(image[:, :1])
    here, there = _common(shift, (height, width))
    moved[..., there[0], there[1]] = image[..., here[0], here[1]]
    new[..., there[0], there[1]] = 0
    return moved, new


def _detail(frame: Tensor) -> Tensor:
    """The luminance (H, W) without its coarse components."""
    y = luminance(frame)
    return (y - gaussian_blur(y, SMOOTH))[0, 0]


def _best_of_all(a: Tensor, b: Tensor) -> Shift:
    """The shift of the largest normalised correlation of a and b (H, W), of those with enough overlap."""
    height, width = size_of(a)
    size = 2 * height, 2 * width

    def summed(first: Tensor, second: Tensor) -> Tensor:
        """The sum of the products where they overlap, for each shift of the first."""
        return torch.fft.irfft2(torch.fft.rfft2(second, size) * torch.fft.rfft2(first, size).conj(), size)

    one = torch.ones_like(a)
    energy = summed(a.square(), one).clamp(min=0) * summed(one, b.square()).clamp(min=0)
    correlation = summed(a, b) / (energy.sqrt() + TINY)
    enough = summed(one, one) >= LEAST_OVERLAP * height * width
    row, column = divmod(int(correlation.where(enough, -1).argmax()), 2 * width)
    return Shift(column - 2 * width * (column >= width), row - 2 * height * (row >= height))


def _correlation(a: Tensor, b: Tensor, shift: Shift) -> float:
    """Normalised correlation of a and b (H, W), the content of a being shifted to b."""
    here, there = _common(shift, size_of(a))
    a, b = a[here], b[there]
    return float((a * b).sum() / ((a.square().sum() * b.square().sum()).sqrt() + TINY))


def _common(shift: Shift, size: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Rows and columns of what two frames have in common, in the first and in the second."""
    pairs = []
    for move, side in zip((shift.y, shift.x), size, strict=True):
        count = max(0, side - abs(move))
        pairs.append((slice(max(0, -move), max(0, -move) + count), slice(max(0, move), max(0, move) + count)))
    (rows, moved_rows), (columns, moved_columns) = pairs
    return (rows, columns), (moved_rows, moved_columns)
