"""Composition: the marked image from the decoded latents and the original.

- "residual": ``original + s * mask * shaped(decode(z_w) - decode(z_0))``. The autoencoder's reconstruction error
  cancels, so s can meet any quality, see `limits`, or any target PSNR, and the residual can be resized onto an original
  of any size. How it is shaped: see `shaping`.
- "mask": ``mask * decode(z_w) + (1 - mask) * original``, as in the ONRW paper. PSNR is limited by the autoencoder.

`Composer` is differentiable, at the working size, for the optimisation; `compose` computes the final image at the
original's size. Both shape the residual at the working size, so that the optimised residual is the final one.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..imaging.geometry import size_of
from ..imaging.metrics import psnr
from ..imaging.pixels import as_mask, as_rgb, check_finite
from ..imaging.rounding import LEVELS, round_8bit, straight_through
from ..imaging.strips import strips
from .limits import ScaleToLimits, limits
from .quality import Judge, Judgement, scaled_to_quality
from .shaping import Shaping

__all__ = ["MODES", "Composer", "Composition", "CompositionOptions", "compose", "resized"]

MODES = ("residual", "mask")

ROUNDING_ERROR = 1 / (12 * LEVELS**2)  # mean square of rounding to 8 bit
TINY = 1e-12  # keeps the root's derivative finite where the residual is zero

PSNR_TOLERANCE = 0.01  # dB
SCALE_STEPS = 24

LOWEST_PSNR, HIGHEST_PSNR = 20.0, 60.0  # dB, range of requested values

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompositionOptions:
    """How a marked image is composed.

    Attributes:
        mode: "residual" or "mask".
        quality: SSIMULACRA2 of the marked image at least, within the limits that go with it, see `limits`; None for the
            PSNR.
        target_psnr: In dB, after clamping and rounding, inside the mask; not used if there is a quality.
        visibility: Shape the residual by its visibility at the working size; if not, it is only scaled.
        luma_only: Use only the residual's luminance, see `Shaping`.

    Raises:
        ValueError: Unknown mode, or a PSNR out of range.
    """

    mode: str = "residual"
    quality: float | None = None
    target_psnr: float = 42.0
    visibility: bool = True
    luma_only: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"unknown composition {self.mode!r}; choose from {', '.join(MODES)}")
        if not LOWEST_PSNR <= self.target_psnr <= HIGHEST_PSNR:
            raise ValueError(f"target_psnr: is {self.target_psnr}; give decibels, {LOWEST_PSNR:g} to {HIGHEST_PSNR:g}")


DEFAULT = CompositionOptions()


@dataclass(frozen=True)
class Composition:
    """A marked image and its visibility.

    Attributes:
        image: (1, 3, H, W) in [0, 1], rounded to 8 bit.
        original: The original, (1, 3, H, W).
        scale: Factor s of the shaped residual; 1 in mode "mask", 0 if there was nothing to add.
        judgement: Visibility of the residual, see `quality`.
        psnr: dB, weighted by the mask if there is one; infinite if nothing was added.
        psnr_image: dB, over the whole image.
    """

    image: Tensor
    original: Tensor
    scale: float
    judgement: Judgement
    psnr: float
    psnr_image: float

    @property
    def residual(self) -> Tensor:
        """The change of the original, (1, 3, H, W)."""
        return self.image - self.original


class Composer:
    """Composition at the working size with gradients. Visibility and mask are computed once.

    Rounding and clamping are straight-through.
    """

    def __init__(self, original: Tensor, options: CompositionOptions = DEFAULT, *, mask: Tensor | None = None) -> None:
        """
        Args:
            original: (1, 3, H, W) in [0, 1], at the working size.
            options: The residual is scaled to their quality or PSNR.
            mask: (1, 1, h, w) in [0, 1], any size: the area that may be marked; None for the whole image.

        Raises:
            ValueError: As `as_rgb` and `as_mask`.
        """
        original, mask = _checked(original, mask)
        self.original = original.detach()
        self.options = options
        self.mask = None if mask is None else resized(mask.to(original), size_of(original), "bilinear")
        self.shaping = _shaping(self.original, options)
        self._limits = None if options.quality is None else limits(options.quality)
        self._to_limits = None if self._limits is None else ScaleToLimits(self.original, self._limits, self.mask)

    def __call__(self, decoded: Tensor, decoded_original: Tensor) -> Tensor:
        """The marked image (1, 3, H, W) from the decoded latents with and without watermark, both of its size."""
        if self.options.mode == "mask":
            return round_8bit(_blend(self.original, decoded, self.mask), straight_clamp=True)
        residual = self.shaped(decoded - decoded_original)
        change = self.scale(residual) * residual
        if self._limits is not None:
            change = straight_through(change.clamp(-self._limits.peak, self._limits.peak), change)
        return round_8bit(self.original + change, straight_clamp=True)

    def shaped(self, residual: Tensor) -> Tensor:
        """The residual shaped, masked and coloured, before scaling."""
        return self.shaping.coloured(_masked(self.shaping(residual), self.mask))

    def scale(self, shaped: Tensor) -> Tensor:
        """Factor that brings a shaped residual to its limits, or to the target PSNR, rounding counted; a scalar."""
        if self._to_limits is not None:
            return self._to_limits(shaped)
        square = shaped.square().mean()
        if self.mask is not None:
            square = (self.mask * shaped.square()).mean() / self.mask.mean()
        allowed = max(10 ** (-self.options.target_psnr / 10) - ROUNDING_ERROR, ROUNDING_ERROR)
        return math.sqrt(allowed) / (square + TINY).sqrt()


def compose(
    original: Tensor,
    decoded: Tensor,
    decoded_original: Tensor,
    options: CompositionOptions = DEFAULT,
    *,
    mask: Tensor | None = None,
    area: Tensor | None = None,
) -> Composition:
    """Make the marked image at the original's resolution.

    Args:
        original: (1, 3, H, W) in [0, 1], any size.
        decoded: The decoded latent with the watermark, (1, 3, h, w), of the original's aspect ratio.
        decoded_original: The decoded latent without the watermark.
        options: A PSNR is met within 0.02 dB in mode "residual" wherever the image has room for it.
        mask: (1, 1, any, any) in [0, 1], the area that may be marked; None for the whole image.
        area: The same at the original's resolution: a mask of the working size, enlarged, reaches beyond it.

    Raises:
        ValueError: Shapes that do not fit, or as `as_rgb` and `as_mask`.
    """
    original, mask = _checked(original, mask)
    if decoded.shape != decoded_original.shape or decoded.shape[:2] != original.shape[:2]:
        raise ValueError(
            f"the decoded images must be two of one size, (1, 3, h, w); got {tuple(decoded.shape)} and "
            f"{tuple(decoded_original.shape)}"
        )
    check_finite(decoded, "decoded")
    check_finite(decoded_original, "decoded_original")
    with torch.no_grad():
        size = size_of(original)
        mask = None if mask is None else resized(mask.to(original), size, "bilinear")
        if area is not None:
            area = resized(as_mask(area, "area").to(original), size, "bilinear")
            mask = area if mask is None else torch.minimum(mask, area)
        decoded, decoded_original = decoded.to(original), decoded_original.to(original)
        judgement = None
        if options.mode == "mask":
            image, scale = round_8bit(_blend(original, resized(decoded, size), mask)), 1.0
        else:
            shaping = _shaping(resized(original, size_of(decoded)).clamp(0, 1), options)
            residual = resized(shaping(decoded - decoded_original), size)
            residual = shaping.coloured(_masked(residual, mask))
            if options.quality is None:
                image, scale = _scaled_to(original, residual, options.target_psnr, mask)
            else:
                image, scale, judgement = scaled_to_quality(original, residual, options.quality, mask)
            del residual
        if judgement is None:
            judgement = Judge(original, mask)(image)
        return Composition(
            image,
            original,
            scale,
            judgement,
            psnr(image, original, mask),
            psnr(image, original),
        )


def _shaping(original: Tensor, options: CompositionOptions) -> Shaping:
    """The shaping of residuals of an original at the working size."""
    return Shaping(
        original,
        quality=options.quality,
        target_psnr=options.target_psnr,
        visibility=options.visibility,
        luma_only=options.luma_only,
    )


def _scaled_to(original: Tensor, residual: Tensor, target: float, mask: Tensor | None) -> tuple[Tensor, float]:
    """Solve for the scale at which the rounded image has the target PSNR.

    PSNR falls by 20 dB for ten times the scale, nearly: that slope gives the next guess, and a bracket the safety where
    rounding or clamping bends the curve.
    """
    peak = residual.abs().max().item()
    if peak == 0:
        return original, 0.0
    low, high = 0.0, 1 / peak  # beyond that, the strongest pixel can only be clamped further
    mean_square = residual.square().mean() if mask is None else (mask * residual.square()).mean() / mask.mean()
    scale = min(high, 10 ** (-target / 20) / mean_square.sqrt().item())
    image = torch.empty_like(original)
    for _ in range(SCALE_STEPS):
        for rows in strips(*original.shape[-2:]):
            image[..., rows, :] = round_8bit(original[..., rows, :] + scale * residual[..., rows, :])
        reached = psnr(image, original, mask)
        if abs(reached - target) <= PSNR_TOLERANCE or (scale >= high and reached > target):
            break
        low, high = (scale, high) if reached > target else (low, scale)
        guess = scale * 10 ** ((min(reached, target + 20) - target) / 20)
        scale = guess if low < guess < high else (low + high) / 2
    if abs(reached - target) > 2 * PSNR_TOLERANCE:
        logger.warning("the composed image has %.2f dB; %.2f dB cannot be met on this image", reached, target)
    return image, scale


def _checked(original: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Original and mask with values in [0, 1]."""
    if original.ndim != 4 or len(original) != 1:
        raise ValueError(f"original: has shape {tuple(original.shape)}; give one RGB image (1, 3, height, width)")
    return as_rgb(original, "original", batch=True), None if mask is None else as_mask(mask)


def resized(images: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Resize to (height, width), with a low-pass filter when shrinking."""
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size=tuple(size), mode=mode, antialias=True, align_corners=False)


def _masked(residual: Tensor, mask: Tensor | None) -> Tensor:
    return residual if mask is None else mask * residual


def _blend(original: Tensor, decoded: Tensor, mask: Tensor | None) -> Tensor:
    return decoded if mask is None else mask * decoded + (1 - mask) * original
