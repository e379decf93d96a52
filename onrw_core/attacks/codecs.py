"""JPEG, WebP and screenshots by real codecs (Pillow), straight-through: coded forward, the identity backward."""

from __future__ import annotations

import io

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..imaging.formats import open_image
from ..imaging.rounding import LEVELS, straight_through, to_8bit
from .base import Attacked, Limits, register
from .geometric import scaled

__all__: list[str] = []

SCREENSHOT_QUALITY = 85  # JPEG quality of a screenshot sent on by a messenger
WEBP_METHOD = 2  # of 0 (fast) to 6 (small): twice as fast as the usual 4 at about the same artefacts

_QUALITY: Limits = {"low": 1, "high": 100, "unit": "quality, a whole number"}


@register("jpeg", "JPEG at the given quality, colours at half resolution (4:2:0).", default=50, **_QUALITY)
def jpeg(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    return _coded(images, format="JPEG", quality=round(strength), subsampling="4:2:0")


@register("webp", "Lossy WebP at the given quality.", default=80, **_QUALITY)
def webp(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    return _coded(images, format="WEBP", quality=round(strength), method=WEBP_METHOD)


@register(
    "screenshot",
    f"A screenshot: resize both sides by the strength, then JPEG at quality {SCREENSHOT_QUALITY}.",
    default=0.75,
    low=0.1,
    high=2.0,
    unit="factor of the side",
)
def screenshot(images: Tensor, strength: float, generator: torch.Generator | None) -> Attacked:
    shown = scaled(images, strength, strength)
    return Attacked(jpeg(shown.images, SCREENSHOT_QUALITY, generator), shown.geometry)


def _coded(images: Tensor, **options) -> Tensor:
    """Encode and decode each image of the batch."""
    levels = rearrange(to_8bit(images), "b c h w -> b h w c").cpu()
    decoded = []
    for pixels in levels.contiguous().numpy():
        with io.BytesIO() as file:
            Image.fromarray(pixels).save(file, **options)
            decoded.append(np.asarray(open_image(file).convert("RGB")))
    values = rearrange(torch.from_numpy(np.stack(decoded)), "b h w c -> b c h w").to(images).contiguous() / LEVELS
    return straight_through(values, images)
