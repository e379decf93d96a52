"""Whitening: what of a picture can carry the mark, with brightness, contrast and texture strength divided out.

    w = h / (deviation(h) + floor),   h = y - mean(y)

with local means over about 4 pixels and local deviations over about 8, and a soft clamp. Means are taken at a quarter
and an eighth of the resolution (block average, binomial blur, linear interpolation), which costs a tenth of a
Gaussian blur at full resolution. Pixels with weight 0 (outside of the picture, black corners, borders) take no part
in any mean.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["flat_mask", "luminance", "whiten"]

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
MEAN_BLOCK, DEVIATION_BLOCK = 4, 8  # pixels; the kernels' deviations are 3.5 and 7 pixels
FLOOR = 0.012  # about 3 / 255: below it, there is nothing but rounding
CLAMP = 2.5  # deviations
FLAT_BLOCK = 4
FLAT_DIFFERENCE = 0.3 / 255


def luminance(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W)."""
    weights = torch.tensor(LUMA, dtype=images.dtype, device=images.device)
    return torch.einsum("bchw,c->bhw", images, weights)[:, None]


def _smooth(x: Tensor, block: int) -> Tensor:
    """Local sums of x at full resolution, up to one common factor; zero beyond the edges."""
    height, width = x.shape[-2:]
    x = F.pad(x, (0, -width % block, 0, -height % block))
    small = F.avg_pool2d(x, block)
    kernel = small.new_tensor([0.25, 0.5, 0.25])
    channels = small.shape[1]
    small = F.conv2d(small, kernel.expand(channels, 1, 1, 3), padding=(0, 1), groups=channels)
    small = F.conv2d(small, kernel[:, None].expand(channels, 1, 3, 1), padding=(1, 0), groups=channels)
    # The edge blocks are repeated outwards by interpolation, alike for values and weights, so ratios stay means.
    return F.interpolate(small, scale_factor=block, mode="bilinear", align_corners=False)[..., :height, :width]


def _weighted_mean(x: Tensor, weight: Tensor | None, block: int) -> Tensor:
    ones = torch.ones_like(x[:1, :1]) if weight is None else weight
    total = _smooth(ones, block)
    return _smooth(x if weight is None else x * weight, block) / total.clamp(min=1e-3)


def whiten(y: Tensor, weight: Tensor | None = None) -> Tensor:
    """Whiten luminance.

    Args:
        y: (B, 1, H, W) in [0, 1].
        weight: (1 or B, 1, H, W), 0 where there is no picture, 1 elsewhere; None for ones.

    Returns:
        (B, 1, H, W), about unit variance, 0 where the weight is 0; differentiable in `y`.
    """
    high = y - _weighted_mean(y, weight, MEAN_BLOCK)
    deviation = (_weighted_mean(high * high, weight, DEVIATION_BLOCK) + 1e-6).sqrt()
    w = high / (deviation + FLOOR)
    w = w * torch.rsqrt(1 + (w / CLAMP) ** 2)
    return w if weight is None else w * weight


@torch.no_grad()
def flat_mask(y: Tensor) -> Tensor | None:
    """Weight 0 on areas of one colour and their surroundings (corners left by a rotation, borders), 1 elsewhere.

    Such areas hold no mark, and their edges would disturb it.

    Args:
        y: (B, 1, H, W).

    Returns:
        (B, 1, H, W), or None where nothing is flat.
    """
    height, width = y.shape[-2:]
    if min(height, width) < 8 * FLAT_BLOCK:
        return None
    dx = F.pad((y[..., 1:] - y[..., :-1]).abs(), (0, 1), value=0)
    dy = F.pad((y[..., 1:, :] - y[..., :-1, :]).abs(), (0, 0, 0, 1), value=0)
    active = F.max_pool2d(torch.maximum(dx, dy), FLAT_BLOCK, ceil_mode=True) > FLAT_DIFFERENCE
    if bool(active.all()):
        return None
    # Flat in 3 x 3 blocks, then grown by 3 x 3 blocks again and one more for the edge.
    core = F.max_pool2d(F.pad(active.float(), (1, 1, 1, 1)), 3, stride=1) == 0
    grown = F.max_pool2d(core.float(), 5, stride=1, padding=2)
    mask = 1 - F.interpolate(grown, scale_factor=FLAT_BLOCK, mode="nearest")[..., :height, :width]
    return None if bool((mask == 1).all()) else mask
