"""Image quality of a marked image: PSNR, SSIM, and PSNR in the flattest window, where a watermark is most visible.

SSIM is that of Wang et al. 2004 (Gaussian window, sigma 1.5, 11 x 11, population covariance), averaged over colours,
without the five outermost pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .convolve import gaussian_kernel, separable
from .strips import strips

__all__ = [
    "FLAT_WINDOW",
    "LUMA",
    "LUMA_COLOUR",
    "SSIM_C2",
    "SSIM_SIGMA",
    "flattest_window",
    "flattest_window_psnr",
    "luminance",
    "psnr",
    "ssim",
    "window_variance",
]

LUMA = (0.299, 0.587, 0.114)  # Rec. 601 weights of R, G, B
# The colour change with the least squared error that changes luminance by 1: 1.3 dB less than a change of grey.
_SQUARES = sum(v * v for v in LUMA)
LUMA_COLOUR = (LUMA[0] / _SQUARES, LUMA[1] / _SQUARES, LUMA[2] / _SQUARES)
FLAT_WINDOW = 64  # pixels, side of the window of `flattest_window`

SSIM_SIGMA = 1.5
SSIM_RADIUS = 5
SSIM_C1 = 0.01**2
SSIM_C2 = 0.03**2


def luminance(images: Tensor) -> Tensor:
    """(..., 3, H, W) -> (..., 1, H, W), weights of Rec. 601."""
    red, green, blue = images.split(1, dim=-3)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def psnr(images: Tensor, originals: Tensor, weight: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB, peak 1, over all images and channels together.

    Args:
        images: (..., 3, H, W) in [0, 1].
        originals: As `images`.
        weight: (..., 1, H, W), not negative: weight of each pixel in the mean square; None for equal weights.

    Returns:
        dB; infinite where no pixel of positive weight differs.
    """
    error = total = 0.0
    for rows in strips(*images.shape[-2:]):
        square = (images[..., rows, :] - originals[..., rows, :]).square()
        if weight is None:
            total += square.numel()
        else:
            part = weight[..., rows, :].expand_as(square)
            total += part.sum(dtype=torch.float64).item()
            square = part * square
        error += square.sum(dtype=torch.float64).item()
    return -10 * math.log10(error / total) if error > 0 else math.inf


def ssim(images: Tensor, originals: Tensor) -> Tensor:
    """Structural similarity, mean over all pixels and channels; differentiable.

    Args:
        images: (B, 3, H, W) in [0, 1], at least 11 x 11.
        originals: As `images`.

    Returns:
        (B,), 1 for equal images.
    """
    if min(images.shape[-2:]) <= 2 * SSIM_RADIUS:
        raise ValueError(f"SSIM needs images of at least 11 x 11 pixels, got {tuple(images.shape[-2:])}")
    height, width = (side - 2 * SSIM_RADIUS for side in images.shape[-2:])
    total = images.new_zeros(len(images), dtype=torch.float64)
    for rows in strips(height, width):
        read = (..., slice(rows.start, rows.stop + 2 * SSIM_RADIUS), slice(None))
        total = total + _similarity(images[read], originals[read]).sum((1, 2, 3))
    return (total / (images.shape[1] * height * width)).to(images.dtype)


def _similarity(images: Tensor, originals: Tensor) -> Tensor:
    """SSIM at each pixel but the five outermost, (B, 3, H - 10, W - 10), float64."""
    kernel = gaussian_kernel(SSIM_SIGMA, SSIM_RADIUS)
    # Double: the variances are differences of nearly equal numbers.
    x, y = images.double(), originals.double()
    moments = separable(torch.cat([x, y, x * x, y * y, x * y], dim=1), kernel)
    moments = moments[..., SSIM_RADIUS:-SSIM_RADIUS, SSIM_RADIUS:-SSIM_RADIUS]
    mean_x, mean_y, xx, yy, xy = moments.chunk(5, dim=1)
    covariance = xy - mean_x * mean_y
    variances = xx - mean_x**2 + yy - mean_y**2
    similarity = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    return similarity * (2 * covariance + SSIM_C2) / (variances + SSIM_C2)


def window_variance(original: Tensor, side: int = FLAT_WINDOW) -> Tensor:
    """Variance of the luminance in the `side` x `side` window at each pixel position.

    Args:
        original: (1, 3, H, W) or (3, H, W); along a shorter side the window spans the whole image.

    Returns:
        (H - side + 1, W - side + 1), float64; index [top, left].
    """
    grey = luminance(original.double()).reshape(original.shape[-2:])
    height, width = min(side, grey.shape[0]), min(side, grey.shape[1])
    # Sums over windows from cumulative sums; the mean is subtracted first to limit cancellation.
    centred = grey - grey.mean()
    mean_square = _window_sums(centred**2, height, width) / (height * width)
    return mean_square - (_window_sums(centred, height, width) / (height * width)) ** 2


def flattest_window(original: Tensor, side: int = FLAT_WINDOW) -> tuple[int, int]:
    """Top and left of the window of least luminance variance, see `window_variance`."""
    variance = window_variance(original, side)
    return divmod(int(variance.argmin()), variance.shape[1])


def flattest_window_psnr(images: Tensor, originals: Tensor, side: int = FLAT_WINDOW) -> float:
    """PSNR in dB inside the flattest window of the original, where a watermark is most visible; (1, 3, H, W) each."""
    top, left = flattest_window(originals, side)
    window = (..., slice(top, top + side), slice(left, left + side))
    return psnr(images[window], originals[window])


def _window_sums(values: Tensor, height: int, width: int) -> Tensor:
    sums = torch.zeros(values.shape[0] + 1, values.shape[1] + 1, dtype=values.dtype, device=values.device)
    sums[1:, 1:] = values.cumsum(0).cumsum(1)
    return sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
