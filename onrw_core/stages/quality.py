"""Perceptual quality of a marked image, and the scale of a residual at which a requested quality is reached.

A requested quality is a SSIMULACRA2 score of the 8-bit image at full size, together with its `limits`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import EllipsisType

import torch
import torch.nn.functional as F
from torch import Tensor

from ..imaging.geometry import size_of
from ..imaging.rounding import round_8bit
from ..imaging.ssimulacra2 import LEAST_SIDE, Ssimulacra2
from ..imaging.strips import strips
from ..imaging.visible_error import VisibleError, norm
from .limits import limits

__all__ = ["DEFAULT_QUALITY", "HIGHEST", "LOWEST", "Judge", "Judgement", "Score", "scaled_to_quality"]

DEFAULT_QUALITY = 90.0  # visually lossless at 1:1

MARGIN = 0.02  # of the score, for differences between `Ssimulacra2` and the published definition
MASK_MARGIN = 0.5  # the same with a mask, because what is seen of a cut-out depends on what is behind it
TOLERANCE = 0.005  # of the limits and of the scale
STEPS = 20
HALO, STRIP_SIZE = 44, 4  # rows around a strip: the support of the visible error is 40 rows; its size, see `strips`
FIRST, GREATEST = 0.25, 100.0  # root mean square of a scaled residual, in peaks: the first guess, and the limit
LEAST_POWER, GREATEST_POWER = 0.3, 3.0  # of the scale
TINY = 1e-6

LOWEST, HIGHEST = 30.0, 98.0  # range of requested qualities


@dataclass(frozen=True)
class Judgement:
    """Visibility of a change.

    Attributes:
        quality: SSIMULACRA2 score.
        worst, norm: Maximum and norm of the map of visible error, see `Limits`.
    """

    quality: float
    worst: float
    norm: float


class Score:
    """SSIMULACRA2 of marked images against one original; with a mask, of its bounding box."""

    def __init__(self, original: Tensor, mask: Tensor | None = None) -> None:
        """
        Args:
            original: (1, 3, H, W) in [0, 1], at least 8 x 8 pixels.
            mask: (1, 1, H, W) in [0, 1], the area that may be marked; None for the whole image. The score is that of
                its bounding box, where each pixel counts with its mask: a rectangle has the score of its crop.
        """
        self._box = ... if mask is None else _bounding_box(mask)
        self._score = Ssimulacra2(original[self._box], None if mask is None else mask[self._box])

    def __call__(self, image: Tensor) -> float:
        """The score of an image (1, 3, H, W)."""
        return self._score(image[self._box]).item()


class Judge:
    """Visibility of changes of one original, whose part of the computation is done once if it is small."""

    def __init__(self, original: Tensor, mask: Tensor | None = None) -> None:
        """
        Args:
            original: (1, 3, H, W) in [0, 1], at least 8 x 8 pixels.
            mask: See `Score`.
        """
        self._score = Score(original, mask)
        self._share = None if mask is None else F.avg_pool2d(mask, 2, ceil_mode=True)
        self._original = original
        self._strips = list(strips(*size_of(original), STRIP_SIZE))
        self._visible = VisibleError(original) if len(self._strips) == 1 else None

    def __call__(self, image: Tensor) -> Judgement:
        """The visibility of the change of an image (1, 3, H, W)."""
        with torch.no_grad():
            error = self.error(image)
            return Judgement(self._score(image), error.max().item(), norm(error, self._share).item())

    def error(self, image: Tensor) -> Tensor:
        """The map of visible error, (1, 1, ceil(H / 2), ceil(W / 2)); large images are processed in strips."""
        if self._visible is not None:
            return self._visible.map(image)
        parts = []
        for rows in self._strips:
            wide = slice(max(0, rows.start - HALO), min(image.shape[-2], rows.stop + HALO))
            inner = slice((rows.start - wide.start) // 2, (rows.stop - wide.start + 1) // 2)
            error = VisibleError(self._original[..., wide, :]).map(image[..., wide, :])
            parts.append(error[..., inner, :].clone())  # without the rows around
        return torch.cat(parts, dim=-2)


def _bounding_box(mask: Tensor) -> tuple[EllipsisType, slice, slice]:
    """Index of the rectangle of a mask (1, 1, H, W) that is not 0, at least as large as SSIMULACRA2 needs it."""
    return ..., _used(mask[0, 0].amax(1)), _used(mask[0, 0].amax(0))


def _used(line: Tensor) -> slice:
    """The part of a line that is not 0, or all of it."""
    used = line.nonzero()
    low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, len(line))
    low = max(0, min(low, len(line) - LEAST_SIDE))
    return slice(low, max(high, low + LEAST_SIDE))


def scaled_to_quality(
    original: Tensor, residual: Tensor, quality: float, mask: Tensor | None = None
) -> tuple[Tensor, float, Judgement]:
    """The strongest multiple of a residual that keeps the quality and its limits, within `TOLERANCE` of the first.

    The used share of the limits is nearly a power of the scale: two scales give the next guess, and a bracket ensures
    convergence where rounding or clamping changes the curve.

    Args:
        original: (1, 3, H, W) in [0, 1].
        residual: The same shape, any scale.
        quality: Least SSIMULACRA2 score of the result.
        mask: See `Judge`.

    Returns:
        The marked image, rounded to 8 bit; the scale, 0 if nothing may be added; and the visibility of the change.
    """
    judge, bounds = Judge(original, mask), limits(quality)
    allowed = 100 - quality - (MARGIN if mask is None else MASK_MARGIN)
    scale, judgement = 0.0, Judgement(100.0, 0.0, 0.0)
    strength = residual.square().mean().sqrt().item()
    if strength == 0:
        return original, scale, judgement
    image = torch.empty_like(original)

    def mark(scale: float) -> None:
        """Compute `image` with the residual at a scale; there is no second image, which would be large."""
        for rows in strips(*original.shape[-2:]):
            change = (scale * residual[..., rows, :]).clamp(-bounds.peak, bounds.peak)
            image[..., rows, :] = round_8bit(original[..., rows, :] + change)

    low, high = 0.0, GREATEST * bounds.peak / strength
    guess, power, before = FIRST * bounds.peak / strength, 1.0, None
    for _ in range(STEPS):
        mark(guess)
        found = judge(image)
        used = max(
            (100 - found.quality) / allowed,
            found.norm / bounds.norm,
            found.worst / bounds.worst,
            TINY,
        )
        if used <= 1:
            low, scale, judgement = guess, guess, found
        else:
            high = guess
        if 1 - TOLERANCE <= used <= 1 or high - low <= TOLERANCE * low:
            break
        if before is not None and used != before[1]:
            power = math.log(used / before[1]) / math.log(guess / before[0])
            power = min(max(power, LEAST_POWER), GREATEST_POWER)
        before = guess, used
        aim = guess * ((1 - TOLERANCE / 2) / used) ** (1 / power)
        guess = aim if low < aim < high else math.sqrt(max(low, TINY * high) * high)
    if scale != guess:  # the last try was too strong
        mark(scale)
    return image, scale, judgement
