"""Whitening: what of a picture can carry the mark, with brightness, contrast and texture strength divided out.

    w = h / (deviation(h) + floor),   h = y - mean(y)

with local means and deviations over about 4 pixels, and a soft clamp. They are taken at a quarter of the resolution
(block average, binomial blur, linear interpolation), which costs a tenth of a Gaussian blur at full resolution.
Pixels with weight 0 (outside of the picture, black corners, borders) take no part in any mean.

Small windows and a hard clamp make the picture's own share of the average tile small: its edges and contours are what
disturbs a mark that few tiles carry.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["flat_mask", "luminance", "whiten"]

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
BLOCK = 4  # pixels; the deviation of the kernel is 3.5 pixels
FLOOR = 0.007  # about 2 / 255: below it, there is nothing but rounding
CLAMP = 1.0  # deviations; edges say no more than texture does
FLAT_BLOCK = 4
FLAT_DIFFERENCE = 0.3 / 255


def luminance(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W)."""
    weights = torch.tensor(LUMA, dtype=images.dtype, device=images.device)
    return torch.einsum("bchw,c->bhw", images, weights)[:, None]


def _smooth(x: Tensor) -> Tensor:
    """Local sums of x at full resolution, up to one common factor; zero beyond the edges."""
    height, width = x.shape[-2:]
    small = F.avg_pool2d(F.pad(x, (0, -width % BLOCK, 0, -height % BLOCK)), BLOCK)
    kernel = small.new_tensor([0.25, 0.5, 0.25]).reshape(1, 1, 1, 3)
    small = F.conv2d(small, kernel, padding=(0, 1))
    small = F.conv2d(small, kernel.transpose(2, 3), padding=(1, 0))
    # The edge blocks are repeated outwards by interpolation, alike for values and weights, so ratios stay means.
    return F.interpolate(small, scale_factor=BLOCK, mode="bilinear", align_corners=False)[..., :height, :width]


def whiten(y: Tensor, weight: Tensor | None = None) -> Tensor:
    """Whiten luminance.

    Args:
        y: (B, 1, H, W) in [0, 1].
        weight: (1 or B, 1, H, W), 0 where there is no picture, 1 elsewhere; None for ones.

    Returns:
        (B, 1, H, W), between -1 and 1, 0 where the weight is 0; differentiable in `y`.
    """
    ones = torch.ones_like(y[:1]) if weight is None else weight
    inverse = 1 / _smooth(ones).clamp(min=1e-3)
    high = y - _smooth(y if weight is None else y * weight) * inverse
    square = high * high
    deviation = (_smooth(square if weight is None else square * weight) * inverse + 1e-6).sqrt()
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
