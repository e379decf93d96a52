"""How strong a residual may be where, before the eye finds it.

Texture hides a residual, flat areas show it (visual masking; Watson 1993, Chou and Li 1995). The map is

    m = exp(p * a),   a = mean over a neighbourhood of ln(local standard deviation),

held between `FLOOR` and `CEILING` of its root mean square: a crop of any part of the picture has to carry the mark.
The mean of the *logarithm* keeps edges from opening the flat side next to them: most of what surrounds an edge is flat.
Very dark and very bright areas may take a little more (luminance adaptation).

The exponent is the smallest that keeps two promises, because a map more uneven than needed costs robustness:

- SSIM. Noise of variance n on texture of variance v costs about n / (2 v + C2) of similarity (Wang et al. 2004, with
  the noise uncorrelated to the picture), in each colour; the mean of that stays below `SSIM_LOSS` at the target PSNR.
- The flattest window of 64 x 64 pixels lies `FLAT_MARGIN_DB` below the average. A picture that is textured all over
  cannot have that by any reasonable exponent; there the windows about as flat as the flattest are lowered as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .convolve import gaussian_blur
from .metrics import FLAT_WINDOW, SSIM_C2, SSIM_SIGMA, flattest_window, luminance, window_variance

__all__ = ["visibility"]

DETAIL_SIGMA = 2.0  # pixels: the window of the local standard deviation
SPREAD_SIGMA = 4.0  # pixels: the neighbourhood over which its logarithm is averaged
NOISE_VARIANCE = 4e-5  # (1.6 / 255) ** 2: less local variance than this counts as flat

FLOOR = 10 ** (-13 / 20)  # of the root mean square
CEILING = 10 ** (10 / 20)
LIMIT_ROUNDS = 3  # limiting changes the root mean square that the limits refer to

EXPONENT_MIN = 0.3
EXPONENT_MAX = 1.6
BISECTIONS = 6

SSIM_LOSS = 0.0105  # of .02: a mark is less like noise than the bound assumes, and costs up to twice as much
FLAT_MARGIN_DB = 6.0  # 46 dB at an average of 42, and some in hand: residuals are not even themselves
DIP_MAX_DB = 12.0
DIP_BLUR = 6.0  # pixels
DIP_RATIO = 2.0  # windows up to this many times the least variance are lowered

DARK, DARK_GAIN = 0.2, 0.25  # luminance below which, and logarithm of the amplitude by which, dark areas take more
BRIGHT, BRIGHT_GAIN = 0.85, 0.15


def visibility(images: Tensor, target_psnr: float = 42.0, colour: tuple[float, float, float] | None = None) -> Tensor:
    """Relative amplitude that a residual may have.

    Args:
        images: Originals, (B, 3, H, W) in [0, 1].
        target_psnr: PSNR in dB that the residual will have; a stronger residual gets a more uneven map.
        colour: Of the residual, R, G, B in any unit; None for any colour, equally strong in all three.

    Returns:
        (B, 1, H, W), mean square 1 for each picture, without gradient.
    """
    with torch.no_grad():
        return torch.cat([_map(image[None], target_psnr, colour) for image in images.detach()])


def _map(image: Tensor, target_psnr: float, colour: tuple[float, float, float] | None) -> Tensor:
    masking = _log_activity(image) + _luminance_gain(image)
    share = image.new_tensor(colour or (1.0, 1.0, 1.0)).square()[:, None, None]
    share = share / share.mean()
    cost = (share / (2 * _local_variance(image, SSIM_SIGMA) + SSIM_C2)).mean(1, keepdim=True)
    noise = 10 ** (-target_psnr / 10)
    top, left = flattest_window(image)

    def similar(candidate: Tensor) -> bool:
        return noise * (candidate.square() * cost).mean().item() <= SSIM_LOSS

    def quiet(candidate: Tensor) -> bool:
        window = candidate[..., top : top + FLAT_WINDOW, left : left + FLAT_WINDOW]
        return window.square().mean().item() <= 10 ** (-FLAT_MARGIN_DB / 10)

    def shaped(exponent: float) -> Tensor:
        return _limited(exponent * masking)

    def both(candidate: Tensor) -> bool:
        return similar(candidate) and quiet(candidate)

    if quiet(shaped(EXPONENT_MAX)):
        return shaped(_least(lambda p: both(shaped(p)), EXPONENT_MIN, EXPONENT_MAX))
    base = _least(lambda p: similar(shaped(p)), EXPONENT_MIN, EXPONENT_MAX) * masking
    dip = _flat_windows(image) * math.log(10) / 20
    return _limited(base - dip * _least(lambda depth: quiet(_limited(base - dip * depth)), 0.0, DIP_MAX_DB))


def _least(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The smallest value in [low, high] for which `holds` (monotone), by bisection; `high` where none does."""
    if holds(low):
        return low
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _limited(log_map: Tensor) -> Tensor:
    """Exponential between floor and ceiling, mean square 1."""
    result = torch.exp(log_map - log_map.mean())
    for _ in range(LIMIT_ROUNDS):
        result = (result / result.square().mean().sqrt()).clamp(FLOOR, CEILING)
    return result / result.square().mean().sqrt()


def _local_variance(images: Tensor, sigma: float) -> Tensor:
    centred = images - images.mean((-2, -1), keepdim=True)  # less cancellation in float32
    return (gaussian_blur(centred.square(), sigma) - gaussian_blur(centred, sigma).square()).clamp_min(0)


def _log_activity(image: Tensor) -> Tensor:
    variance = _local_variance(luminance(image), DETAIL_SIGMA)
    return gaussian_blur(torch.log(variance + NOISE_VARIANCE), SPREAD_SIGMA) / 2


def _luminance_gain(image: Tensor) -> Tensor:
    grey = gaussian_blur(luminance(image), SPREAD_SIGMA)
    dark, bright = (DARK - grey).clamp_min(0) / DARK, (grey - BRIGHT).clamp_min(0) / (1 - BRIGHT)
    return DARK_GAIN * dark.square() + BRIGHT_GAIN * bright.square()


def _flat_windows(image: Tensor) -> Tensor:
    """(1, 1, H, W): 1 on the flattest window, falling to 0 on those of `DIP_RATIO` times its variance."""
    variance = window_variance(image).clamp_min(0) + NOISE_VARIANCE
    share = (1 - torch.log(variance / variance.min()) / math.log(DIP_RATIO)).clamp_min(0)[None, None].to(image)
    height, width = (a - b + 1 for a, b in zip(image.shape[-2:], share.shape[-2:], strict=True))
    # A pixel belongs to the flattest of the windows that hold it: a maximum over their positions.
    share = F.max_pool2d(F.pad(share, (width - 1, width - 1, height - 1, height - 1)), (height, 1), 1)
    return gaussian_blur(F.max_pool2d(share, (1, width), 1), DIP_BLUR)
