"""How far a marked picture is from its original: PSNR, SSIM, and PSNR where the eye looks first, in the flattest part.

SSIM is that of Wang et al. 2004 (Gaussian window, sigma 1.5, 11 x 11, population covariance), averaged over colours,
without the five outermost pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .convolve import gaussian_kernel, separable

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
# The change of colour that changes luminance by 1 and has the least squared error: 1.3 dB less than a change of grey.
LUMA_COLOUR = tuple(w / sum(v * v for v in LUMA) for w in LUMA)
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
    """Peak signal-to-noise ratio in dB, peak 1, over all pictures and channels together.

    Args:
        images: (..., 3, H, W) in [0, 1].
        originals: As `images`.
        weight: (..., 1, H, W), not negative: the share of each pixel in the mean square; None for all alike.

    Returns:
        dB; infinite where nothing differs, or where nothing of weight does.
    """
    square = (images - originals).square()
    if weight is None:
        error = square.sum(dtype=torch.float64).item() / square.numel()
    else:
        total = weight.expand_as(square).sum(dtype=torch.float64).item()
        error = (weight * square).sum(dtype=torch.float64).item() / total if total > 0 else 0.0
    return -10 * math.log10(error) if error > 0 else math.inf


def ssim(images: Tensor, originals: Tensor) -> Tensor:
    """Structural similarity, mean over all pixels and channels; differentiable.

    Args:
        images: (B, 3, H, W) in [0, 1], at least 11 x 11.
        originals: As `images`.

    Returns:
        (B,), 1 for equal pictures.
    """
    if min(images.shape[-2:]) <= 2 * SSIM_RADIUS:
        raise ValueError(f"SSIM needs pictures of at least 11 x 11 pixels, got {tuple(images.shape[-2:])}")
    kernel = gaussian_kernel(SSIM_SIGMA, SSIM_RADIUS)
    # Double: the variances are differences of nearly equal numbers.
    x, y = images.double(), originals.double()
    moments = separable(torch.cat([x, y, x * x, y * y, x * y], dim=1), kernel)
    moments = moments[..., SSIM_RADIUS:-SSIM_RADIUS, SSIM_RADIUS:-SSIM_RADIUS]
    mean_x, mean_y, xx, yy, xy = moments.chunk(5, dim=1)
    covariance = xy - mean_x * mean_y
    variances = xx - mean_x**2 + yy - mean_y**2
    similarity = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    similarity = similarity * (2 * covariance + SSIM_C2) / (variances + SSIM_C2)
    return similarity.mean((1, 2, 3)).to(images.dtype)


def window_variance(original: Tensor, side: int = FLAT_WINDOW) -> Tensor:
    """Variance of the luminance in the `side` x `side` window at each pixel position.

    Args:
        original: (1, 3, H, W) or (3, H, W); a picture's side below `side` counts as a whole.

    Returns:
        (H - side + 1, W - side + 1), float64; index [top, left].
    """
    grey = luminance(original.double()).reshape(original.shape[-2:])
    height, width = min(side, grey.shape[0]), min(side, grey.shape[1])
    # Sums over windows from cumulative sums; about the mean, so that little is lost in the differences.
    centred = grey - grey.mean()
    mean_square = _window_sums(centred**2, height, width) / (height * width)
    return mean_square - (_window_sums(centred, height, width) / (height * width)) ** 2


def flattest_window(original: Tensor, side: int = FLAT_WINDOW) -> tuple[int, int]:
    """Top and left of the window whose luminance varies least, see `window_variance`."""
    variance = window_variance(original, side)
    return divmod(int(variance.argmin()), variance.shape[1])


def flattest_window_psnr(images: Tensor, originals: Tensor, side: int = FLAT_WINDOW) -> float:
    """PSNR in dB inside the flattest window of the original, where a watermark is seen first; (1, 3, H, W) each."""
    top, left = flattest_window(originals, side)
    window = (..., slice(top, top + side), slice(left, left + side))
    return psnr(images[window], originals[window])


def _window_sums(values: Tensor, height: int, width: int) -> Tensor:
    sums = torch.zeros(values.shape[0] + 1, values.shape[1] + 1, dtype=values.dtype, device=values.device)
    sums[1:, 1:] = values.cumsum(0).cumsum(1)
    return sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
