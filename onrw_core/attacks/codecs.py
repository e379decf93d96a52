"""Attacks by real codecs (Pillow), straight-through: the coded picture forward, the identity backward."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..rounding import LEVELS, straight_through
from .base import Attacked, register
from .geometric import scaled

__all__: list[str] = []

SCREENSHOT_QUALITY = 85  # JPEG quality of a screenshot sent on by a messenger
WEBP_METHOD = 2  # of 0 (fast) to 6 (small): twice as fast as the usual 4 at about the same artefacts

_QUALITY = dict(low=1, high=100, unit="quality, a whole number")


@register("jpeg", "JPEG at a quality, colours at half resolution (4:2:0).", default=50, **_QUALITY)
def jpeg(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    return _coded(images, format="JPEG", quality=round(strength), subsampling="4:2:0")


@register("webp", "Lossy WebP at a quality.", default=80, **_QUALITY)
def webp(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    return _coded(images, format="WEBP", quality=round(strength), method=WEBP_METHOD)


@register(
    "screenshot",
    f"Shown at another scale and sent on: resize by the strength, then JPEG {SCREENSHOT_QUALITY}.",
    default=0.75,
    low=0.1,
    high=2.0,
    unit="factor of the side",
)
def screenshot(images: Tensor, strength: float, generator: torch.Generator | None) -> Attacked:
    shown = scaled(images, strength, strength)
    return Attacked(jpeg(shown.images, SCREENSHOT_QUALITY, generator), shown.geometry)


def _coded(images: Tensor, **options) -> Tensor:
    """Each picture of the batch through a codec."""
    levels = (images.detach().clamp(0, 1) * LEVELS).round().to("cpu", torch.uint8).permute(0, 2, 3, 1)
    decoded = []
    for pixels in levels.contiguous().numpy():
        with io.BytesIO() as file:
            Image.fromarray(pixels).save(file, **options)
            decoded.append(np.asarray(Image.open(file).convert("RGB")))
    values = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).to(images).contiguous() / LEVELS
    return straight_through(values, images)
