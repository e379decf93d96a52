"""Perceptual (JND) map: residual amplitude allowed at each pixel.

A residual is less visible in texture than in flat areas (visual masking; Watson 1993, Chou and Li 1995). The map is

    m = exp(p * a),   a = mean over a neighbourhood of ln(local standard deviation),

limited to `FLOOR` and `CEILING` times its root mean square, since every crop has to carry the watermark. The mean of
the *logarithm* keeps the map low in flat areas next to edges. Very dark and very bright areas allow a little more
(luminance adaptation).

The exponent is the smallest that satisfies two constraints, because an unnecessarily uneven map costs robustness:

- SSIM. Noise of variance n on texture of variance v costs about n / (2 v + C2) of similarity (Wang et al. 2004, for
  noise uncorrelated with the image) in each colour; its mean is at most `SSIM_LOSS` at the target PSNR.
- The residual in the flattest window of 64 x 64 pixels is `FLAT_MARGIN_DB` below the average. No reasonable exponent
  achieves this in an image that is textured everywhere; there the flattest windows are attenuated as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..imaging.convolve import gaussian_blur
from ..imaging.metrics import FLAT_WINDOW, SSIM_C2, SSIM_SIGMA, flattest_window, luminance, window_variance

__all__ = ["visibility"]

DETAIL_SIGMA = 2.0  # pixels: the window of the local standard deviation
SPREAD_SIGMA = 4.0  # pixels: the neighbourhood over which its logarithm is averaged
NOISE_VARIANCE = 4e-5  # (1.6 / 255) ** 2: areas with less local variance are flat

FLOOR = 10 ** (-13 / 20)  # of the root mean square
CEILING = 10 ** (10 / 20)
LIMIT_ROUNDS = 3  # limiting changes the root mean square that the limits refer to

EXPONENT_MIN = 0.3
EXPONENT_MAX = 1.6
BISECTIONS = 6

SSIM_LOSS = 0.0105  # half of .02: residuals differ from the noise of the bound and cost up to twice as much
FLAT_MARGIN_DB = 6.0  # 46 dB at an average of 42, and a margin: residuals are uneven themselves
DIP_MAX_DB = 12.0
DIP_BLUR = 6.0  # pixels
DIP_RATIO = 2.0  # windows up to this many times the least variance are attenuated

DARK, DARK_GAIN = 0.2, 0.25  # luminance limit of dark areas, and their gain in log amplitude
BRIGHT, BRIGHT_GAIN = 0.85, 0.15


def visibility(images: Tensor, target_psnr: float = 42.0, colour: tuple[float, float, float] | None = None) -> Tensor:
    """Relative amplitude of the residual allowed at each pixel.

    Args:
        images: Originals, (B, 3, H, W) in [0, 1].
        target_psnr: PSNR in dB of the residual; a stronger residual gets a more uneven map.
        colour: Colour (R, G, B) of the residual, in any unit; None for residuals equally strong in all three.

    Returns:
        (B, 1, H, W), mean square 1 for each image, without gradient.
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

    def flat_enough(candidate: Tensor) -> bool:
        window = candidate[..., top : top + FLAT_WINDOW, left : left + FLAT_WINDOW]
        return window.square().mean().item() <= 10 ** (-FLAT_MARGIN_DB / 10)

    def shaped(exponent: float) -> Tensor:
        return _limited(exponent * masking)

    def both(candidate: Tensor) -> bool:
        return similar(candidate) and flat_enough(candidate)

    if flat_enough(shaped(EXPONENT_MAX)):
        return shaped(_least(lambda p: both(shaped(p)), EXPONENT_MIN, EXPONENT_MAX))
    base = _least(lambda p: similar(shaped(p)), EXPONENT_MIN, EXPONENT_MAX) * masking
    dip = _flat_windows(image) * math.log(10) / 20
    return _limited(base - dip * _least(lambda depth: flat_enough(_limited(base - dip * depth)), 0.0, DIP_MAX_DB))


def _least(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The smallest value in [low, high] for which `holds` (monotone), by bisection; `high` if there is none."""
    if holds(low):
        return low
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _limited(log_map: Tensor) -> Tensor:
    """Exponential, limited to floor and ceiling, mean square 1."""
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
    # Each pixel takes the value of the flattest window that contains it: a maximum over window positions.
    share = F.max_pool2d(F.pad(share, (width - 1, width - 1, height - 1, height - 1)), (height, 1), 1)
    return gaussian_blur(F.max_pool2d(share, (1, width), 1), DIP_BLUR)
