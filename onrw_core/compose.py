"""From what the decoder gives to the marked picture.

- "residual": ``original + s * mask * shaped(decode(z_w) - decode(z_0))``. The autoencoder's reconstruction error
  cancels, so s can meet any target PSNR, and the residual can be resized onto an original of any size. Shaping takes
  off what is coarser than texture, divides by the local strength, with peaks compressed, and multiplies by the
  visibility map: the decoder says what the residual looks like, and the map alone how strong it is where. Where readers
  look at luminance, only the residual's luminance is added, in the colour that changes luminance most for its squared
  error; grey pictures stay grey.
- "mask": ``mask * decode(z_w) + (1 - mask) * original``, as in the ONRW paper. PSNR is what the autoencoder leaves.

`Composer` does it at the working size inside the optimisation, differentiably; `compose` makes the final picture at the
original's size. The shaping belongs to the working size in both, so that what was optimised is what is made.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .convolve import gaussian_blur
from .metrics import LUMA_COLOUR, luminance, psnr
from .rounding import LEVELS, round_8bit
from .visibility import visibility as visibility_map

__all__ = ["MODES", "Composer", "Composition", "compose"]

MODES = ("residual", "mask")

LEVEL_SIGMA = 8.0  # pixels: the neighbourhood of the local strength
MEAN_SIGMA = 6.0  # pixels: what is coarser than that is a stain, not a texture, and is left out
BLOCK = 4  # pixels
LEVEL_FLOOR = 1e-9  # mean square (0.01 of 255 levels): only what is practically zero is not brought up
PEAK = 2.0  # local deviations beyond which a residual is compressed: peaks are seen before they are read
ROUNDING_ERROR = 1 / (12 * LEVELS**2)  # mean square of rounding to 8 bit
TINY = 1e-12  # keeps the root's derivative finite where the residual is zero

PSNR_TOLERANCE = 0.01  # dB
SCALE_STEPS = 24

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Composition:
    """A marked picture.

    Attributes:
        image: (1, 3, H, W) in [0, 1], rounded to 8 bit.
        residual: What was added to the original, (1, 3, H, W).
        scale: Factor s of the shaped residual; 1 in mode "mask", 0 if there was nothing to add.
        psnr: dB, weighted by the mask where there is one; infinite if nothing was added.
        psnr_image: dB, over the whole picture.
    """

    image: Tensor
    residual: Tensor
    scale: float
    psnr: float
    psnr_image: float


class Composer:
    """Composition at the working size with gradients. Visibility and mask are computed once.

    Rounding and clamping are straight-through.
    """

    def __init__(
        self,
        original: Tensor,
        *,
        mode: str = "residual",
        mask: Tensor | None = None,
        target_psnr: float = 42.0,
        visibility: bool = True,
        luma_only: bool = False,
    ) -> None:
        """
        Args:
            original: (1, 3, H, W) in [0, 1], at the working size.
            mode: "residual" or "mask".
            mask: (1, 1, h, w) in [0, 1], any size: where the mark may lie; None for everywhere.
            target_psnr: In dB, inside the mask.
            visibility: Shape the residual by `visibility.visibility`; if not, it is only scaled.
            luma_only: Use only the residual's luminance, in the colour `LUMA_COLOUR`, or in grey on grey pictures.

        Raises:
            ValueError: Unknown mode, shapes that do not fit, or an empty mask.
        """
        _check(original, mode, mask)
        self.original = original.detach()
        self.mode = mode
        self.mask = None if mask is None else _resized(mask.to(original), original.shape[-2:], "bilinear")
        self.target_psnr = target_psnr
        self.luma_only = luma_only
        self.colour = _colour(original) if luma_only else None
        self.weight = visibility_map(original, target_psnr, self.colour) if visibility else None

    def __call__(self, decoded: Tensor, decoded_original: Tensor) -> Tensor:
        """The marked picture (1, 3, H, W) from the decoded latents with and without the mark, both of its size."""
        if self.mode == "mask":
            return round_8bit(_blend(self.original, decoded, self.mask), straight_clamp=True)
        residual = self.shaped(decoded - decoded_original)
        return round_8bit(self.original + self.scale(residual) * residual, straight_clamp=True)

    def shaped(self, residual: Tensor) -> Tensor:
        """The residual levelled, under visibility and mask, before scaling."""
        return _coloured(_masked(_shaped(residual, self.weight, self.luma_only), self.mask), self.colour)

    def scale(self, shaped: Tensor) -> Tensor:
        """Factor that brings a shaped residual to the target PSNR, rounding counted; a scalar tensor."""
        square = shaped.square().mean()
        if self.mask is not None:
            square = (self.mask * shaped.square()).mean() / self.mask.mean()
        allowed = max(10 ** (-self.target_psnr / 10) - ROUNDING_ERROR, ROUNDING_ERROR)
        return math.sqrt(allowed) / (square + TINY).sqrt()


def compose(
    original: Tensor,
    decoded: Tensor,
    decoded_original: Tensor,
    *,
    mode: str = "residual",
    mask: Tensor | None = None,
    target_psnr: float = 42.0,
    visibility: bool = True,
    luma_only: bool = False,
) -> Composition:
    """Make the marked picture at the original's resolution.

    Args:
        original: (1, 3, H, W) in [0, 1], any size.
        decoded: The decoded latent with the mark, (1, 3, h, w), of the original's aspect.
        decoded_original: The same without the mark.
        mode: "residual" or "mask".
        mask: (1, 1, any, any) in [0, 1]: where the mark may lie; None for everywhere.
        target_psnr: In dB, after clamping and rounding, inside the mask; met within 0.02 dB in mode "residual" wherever
            the picture has room for it.
        visibility: Shape the residual by `visibility.visibility` of the original at the size of `decoded`; if not, it
            is only scaled.
        luma_only: Use only the residual's luminance, in the colour `LUMA_COLOUR`, or in grey on grey pictures.

    Raises:
        ValueError: Unknown mode, shapes that do not fit, or an empty mask.
    """
    _check(original, mode, mask)
    if decoded.shape != decoded_original.shape or decoded.shape[:2] != original.shape[:2]:
        raise ValueError(
            f"the decoded pictures must be two of one size, (1, 3, h, w); got {tuple(decoded.shape)} and "
            f"{tuple(decoded_original.shape)}"
        )
    with torch.no_grad():
        size = original.shape[-2:]
        mask = None if mask is None else _resized(mask.to(original), size, "bilinear")
        decoded, decoded_original = decoded.to(original), decoded_original.to(original)
        if mode == "mask":
            image, scale = round_8bit(_blend(original, _resized(decoded, size), mask)), 1.0
        else:
            working = _resized(original, decoded.shape[-2:]).clamp(0, 1)
            colour = _colour(original) if luma_only else None
            weight = visibility_map(working, target_psnr, colour) if visibility else None
            residual = _shaped(decoded - decoded_original, weight, luma_only)
            residual = _coloured(_masked(_resized(residual, size), mask), colour)
            image, scale = _scaled_to(original, residual, target_psnr, mask)
        return Composition(image, image - original, scale, psnr(image, original, mask), psnr(image, original))


def _scaled_to(original: Tensor, residual: Tensor, target: float, mask: Tensor | None) -> tuple[Tensor, float]:
    """Solve for the scale at which the rounded picture has the target PSNR.

    PSNR falls by 20 dB for ten times the scale, nearly: that slope gives the next guess, and a bracket the safety where
    rounding or clamping bends the curve.
    """
    peak = residual.abs().max().item()
    if peak == 0:
        return original, 0.0
    low, high = 0.0, 1 / peak  # beyond that, the strongest pixel can only be clamped further
    mean_square = residual.square().mean() if mask is None else (mask * residual.square()).mean() / mask.mean()
    scale = min(high, 10 ** (-target / 20) / mean_square.sqrt().item())
    for _ in range(SCALE_STEPS):
        image = round_8bit(original + scale * residual)
        reached = psnr(image, original, mask)
        if abs(reached - target) <= PSNR_TOLERANCE or (scale >= high and reached > target):
            break
        low, high = (scale, high) if reached > target else (low, scale)
        guess = scale * 10 ** ((min(reached, target + 20) - target) / 20)
        scale = guess if low < guess < high else (low + high) / 2
    if abs(reached - target) > 2 * PSNR_TOLERANCE:
        logger.warning("the composed picture has %.2f dB; %.2f dB cannot be met on this picture", reached, target)
    return image, scale


def _check(original: Tensor, mode: str, mask: Tensor | None) -> None:
    if mode not in MODES:
        raise ValueError(f"unknown composition {mode!r}; choose from {', '.join(MODES)}")
    if original.dim() != 4 or original.shape[:2] != (1, 3):
        raise ValueError(f"the original must be one RGB picture (1, 3, H, W), got {tuple(original.shape)}")
    if mask is None:
        return
    if mask.dim() != 4 or mask.shape[:2] != (1, 1):
        raise ValueError(f"the mask must have shape (1, 1, H, W), got {tuple(mask.shape)}")
    if not mask.max() > 0:
        raise ValueError("the mask is empty: paint the area that may carry the mark")


def _resized(images: Tensor, size: torch.Size, mode: str = "bicubic") -> Tensor:
    """To (height, width), low-passed when shrinking."""
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size=tuple(size), mode=mode, antialias=True, align_corners=False)


def _shaped(residual: Tensor, weight: Tensor | None, luma_only: bool) -> Tensor:
    """The residual as the visibility map `weight` wants it, see the module; without a map as it is."""
    if luma_only:
        residual = luminance(residual)  # one channel stands for all three, until it is coloured
    return residual if weight is None else weight * _levelled(residual - _neighbourhood(residual, MEAN_SIGMA))


def _colour(original: Tensor) -> tuple[float, float, float]:
    """Of a change of luminance."""
    coloured = bool((original.amax(1) - original.amin(1)).max() > 0.5 / LEVELS)
    return LUMA_COLOUR if coloured else (1.0, 1.0, 1.0)


def _coloured(residual: Tensor, colour: tuple[float, float, float] | None) -> Tensor:
    """A residual of one channel, its luminance, in all three; without a colour it has them already."""
    return residual if colour is None else residual * residual.new_tensor(colour)[:, None, None]


def _levelled(residual: Tensor) -> Tensor:
    """The residual divided by its local strength, its peaks compressed; the visibility map says how strong it is where.

    Readers divide by local contrast, so an optimiser puts all it has into flat areas, where the eye sees it best;
    a weight that it can work against would not hold it.
    """
    levelled = _unit(residual)
    return _unit(levelled * torch.rsqrt(1 + (levelled / PEAK) ** 2))


def _unit(residual: Tensor) -> Tensor:
    """The residual with a local root mean square of 1."""
    local = _neighbourhood(residual.square().mean(1, keepdim=True), LEVEL_SIGMA)
    return residual * torch.rsqrt(local + LEVEL_FLOOR)


def _neighbourhood(x: Tensor, sigma: float) -> Tensor:
    """Local mean over about `sigma` pixels, taken at a quarter of the resolution since it is smooth."""
    height, width = x.shape[-2:]
    small = F.avg_pool2d(x, BLOCK, ceil_mode=True, count_include_pad=False)
    small = gaussian_blur(small, sigma / BLOCK)
    # Two products with constant matrices: a sixth of the time of torch's interpolation, gradient included.
    return _enlarging(height, x.dtype, x.device) @ small @ _enlarging(width, x.dtype, x.device).T


@lru_cache(maxsize=8)
def _enlarging(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Linear interpolation along a line of blocks, (length, blocks)."""
    identity = torch.eye(-(-length // BLOCK))[None]
    return F.interpolate(identity, scale_factor=BLOCK, mode="linear")[0].T[:length].to(device, dtype).contiguous()


def _masked(residual: Tensor, mask: Tensor | None) -> Tensor:
    return residual if mask is None else mask * residual


def _blend(original: Tensor, decoded: Tensor, mask: Tensor | None) -> Tensor:
    return decoded if mask is None else mask * decoded + (1 - mask) * original
