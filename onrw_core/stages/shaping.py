"""Shaping of residuals at the working size, before they are scaled.

With a quality, components coarser than texture are removed, and the local visible error is capped:

    r' = r / sqrt(1 + (v / mean v)^2),   v = sensitivity * local strength of r.

Below the cap the optimisation determines the local strength of the residual, by the gradient through the scale, see
`limits`. Without the cap, a few areas with a strong decoder residual would reach the limits of the whole image. For
extractors of luminance, only the residual's luminance is added, in grey: a colour would need less squared error, but is
visible as green and magenta mottle.

With a target PSNR, the residual is divided by its local strength, its peaks are compressed, and it is multiplied by the
perceptual map: the decoder determines the pattern of the residual, and the map its local strength. Its luminance is
added in the colour that changes luminance most for its squared error; grey images stay grey.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..imaging.convolve import gaussian_blur
from ..imaging.metrics import LUMA_COLOUR, luminance
from ..imaging.rounding import LEVELS
from ..imaging.visible_error import VisibleError
from .perceptual_map import visibility as visibility_map

__all__ = ["Shaping"]

GREY = (1.0, 1.0, 1.0)
LEVEL_SIGMA = 8.0  # pixels: the neighbourhood of the local strength
CAP_SIGMA = 4.0  # pixels: the neighbourhood of the local visible error
MEAN_SIGMA = 6.0  # pixels: coarser components are visible as stains, and are removed
BLOCK = 4  # pixels
LONGEST_ENLARGED = 4096  # pixels: the matrices of `_enlarging` grow with the square of the side
LEVEL_FLOOR = 1e-9  # mean square (0.01 of 255 levels): residuals below are practically zero and are not amplified
PEAK = 2.0  # local deviations above which a residual is compressed: peaks are more visible than useful


class Shaping:
    """The shaping of residuals of one image."""

    def __init__(
        self, original: Tensor, *, quality: float | None, target_psnr: float, visibility: bool, luma_only: bool
    ) -> None:
        """
        Args:
            original: (1, 3, H, W) in [0, 1], at the working size.
            quality: SSIMULACRA2 that the residual will be scaled to; None for the PSNR.
            target_psnr: In dB.
            visibility: Shape the residual by its visibility; if not, only its colour is chosen.
            luma_only: Keep only the residual's luminance.
        """
        self.luma_only = luma_only
        self.colour = None if not luma_only else _colour(original) if quality is None else GREY
        self.weight = visibility_map(original, target_psnr, self.colour) if visibility and quality is None else None
        self._sensitivity = None
        if visibility and quality is not None:
            self._sensitivity = VisibleError(original).sensitivity(original.new_ones(1, 3, 1, 1))

    def __call__(self, residual: Tensor) -> Tensor:
        """The shaped residual (1, 1, H, W), to be coloured, or (1, 3, H, W) if colours are kept; differentiable."""
        if self.luma_only:
            residual = luminance(residual)  # a single channel, which `coloured` expands to three
        if self._sensitivity is not None:
            return _capped(residual - _neighbourhood(residual, MEAN_SIGMA), self._sensitivity)
        if self.weight is not None:
            return self.weight * _levelled(residual - _neighbourhood(residual, MEAN_SIGMA))
        return residual

    def coloured(self, residual: Tensor) -> Tensor:
        """The RGB residual of a luminance residual (1, 1, H, W); a residual of three channels is returned unchanged."""
        if self.colour is None:
            return residual
        if self.colour == GREY:
            return residual.expand(-1, 3, -1, -1)  # a view: no two further planes of a large image
        return residual * residual.new_tensor(self.colour)[:, None, None]


def _colour(original: Tensor) -> tuple[float, float, float]:
    """The colour of a change of luminance."""
    coloured = bool((original.amax(1) - original.amin(1)).max() > 0.5 / LEVELS)
    return LUMA_COLOUR if coloured else GREY


def _capped(residual: Tensor, sensitivity: Tensor) -> Tensor:
    """The residual with its local visible error limited to the mean of the visible error."""
    local = _neighbourhood(residual.square().mean(1, keepdim=True), CAP_SIGMA)
    visible = sensitivity * (local + LEVEL_FLOOR).sqrt()
    return residual * torch.rsqrt(1 + (visible / visible.mean()) ** 2)


def _levelled(residual: Tensor) -> Tensor:
    """The residual divided by its local strength, its peaks compressed; the perceptual map determines its local
    strength.

    Readers divide by local contrast, so an optimiser would concentrate the residual in flat areas, where it is most
    visible; without normalisation it would compensate for the map.
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
    if max(height, width) > LONGEST_ENLARGED:
        return F.interpolate(small, scale_factor=BLOCK, mode="bilinear")[..., :height, :width]
    # Two products with constant matrices: a sixth of the time of torch's interpolation, gradient included.
    return _enlarging(height, x.dtype, x.device) @ small @ _enlarging(width, x.dtype, x.device).T


@lru_cache(maxsize=8)
def _enlarging(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Linear interpolation along a line of blocks, (length, blocks)."""
    identity = torch.eye(-(-length // BLOCK))[None]
    return F.interpolate(identity, scale_factor=BLOCK, mode="linear")[0].T[:length].to(device, dtype).contiguous()
