"""Between ComfyUI's images, (B, H, W, C) in [0, 1], and the core's, (B, 3, H, W); and pictures at the latent's size."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .adapter import clean

__all__ = ["Frame", "frame", "from_comfy", "mask_of", "residual", "to_comfy"]

CROP = 8  # VAEEncode crops to multiples of this
ASPECT_TOLERANCE = 0.03
RESIDUAL_GAIN = 10.0


def from_comfy(image: Tensor) -> Tensor:
    """IMAGE (B, H, W, 3 or 4) -> (B, 3, H, W)."""
    return clean(image)[..., :3].float().movedim(-1, 1).contiguous()


def to_comfy(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> IMAGE (B, H, W, 3) on the CPU, clamped."""
    return images.detach().float().cpu().clamp(0, 1).movedim(1, -1).contiguous()


def mask_of(mask: Tensor | None, index: int) -> Tensor | None:
    """MASK (B, H, W) -> (1, 1, H, W) of image `index`; a single mask serves all."""
    if mask is None:
        return None
    mask = clean(mask).float()
    mask = mask if mask.ndim == 3 else mask.reshape(-1, *mask.shape[-2:])
    return mask[min(index, len(mask) - 1)][None, None]


def residual(marked: Tensor, original: Tensor) -> Tensor:
    """The change, ten times as strong, around grey."""
    return (0.5 + RESIDUAL_GAIN * (marked - original)).clamp(0, 1)


@dataclass(frozen=True)
class Frame:
    """The part of an image that its latent shows.

    Attributes:
        top, left: Where it begins.
        size: (height, width) of the part.
        working: (height, width) that the latent decodes to.
    """

    top: int
    left: int
    size: tuple[int, int]
    working: tuple[int, int]

    def cut(self, image: Tensor) -> Tensor:
        """The part, (B, C, height, width)."""
        return image[..., self.top : self.top + self.size[0], self.left : self.left + self.size[1]]

    def paste(self, part: Tensor, image: Tensor) -> Tensor:
        """The image with the part put back."""
        out = image.clone()
        self.cut(out).copy_(part)
        return out

    def shrink(self, image: Tensor) -> Tensor:
        """The part at working size."""
        part = self.cut(image)
        if self.size == self.working:
            return part
        return F.interpolate(part, self.working, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def frame(size: tuple[int, int], working: tuple[int, int]) -> Frame:
    """Where in an image of (height, width) `size` the picture lies that its latent decodes to, of size `working`.

    VAEEncode crops sides that are no multiple of 8 about the centre. A picture of any other size comes from a resized
    image.

    Raises:
        ValueError: If the image has another aspect than the picture.
    """
    margin = (size[0] - working[0], size[1] - working[1])
    if all(0 <= m < CROP for m in margin):
        return Frame(margin[0] // 2, margin[1] // 2, working, working)
    aspect = size[0] * working[1] / (size[1] * working[0])
    if abs(aspect - 1) > ASPECT_TOLERANCE:
        raise ValueError(
            f"image: it is {size[1]}x{size[0]} and its latent shows {working[1]}x{working[0]}, another shape; "
            "connect the "
            "image that was encoded"
        )
    return Frame(0, 0, size, working)
