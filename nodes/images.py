"""Between ComfyUI's images, (B, H, W, C) in [0, 1], and the core's, (B, 3, H, W); the part that a latent covers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..onrw_core.imaging.pixels import as_rgb, check_finite, opaque_area
from .adapter import clean

__all__ = ["Region", "latent_region", "from_comfy", "mask_of", "residual", "to_comfy"]

CROP = 8  # VAEEncode crops to multiples of this
ASPECT_TOLERANCE = 0.03
RESIDUAL_GAIN = 10.0


def from_comfy(image: Tensor, name: str = "image", *, min_side: int = 1) -> Tensor:
    """IMAGE (B, H, W, 3 or 4) -> (B, 3, H, W), clamped to [0, 1]; `to_comfy` puts alpha back.

    Raises:
        ValueError: Not of that shape, no images, sides below `min_side`, NaN or infinite values; `name` is the input.
    """
    if image.ndim != 4 or image.shape[-1] not in (3, 4) or image.numel() == 0:
        raise ValueError(
            f"{name}: has shape {tuple(image.shape)}; connect an IMAGE of shape (batch, height, width, 3 or 4) "
            "with at least one image"
        )
    return as_rgb(clean(image)[..., :3].movedim(-1, 1), name, batch=True, min_side=min_side).contiguous()


def to_comfy(images: Tensor, alpha_of: Tensor | None = None) -> Tensor:
    """(B, 3, H, W) -> IMAGE (B, H, W, 3) on the CPU, clamped; with the alpha of the IMAGE `alpha_of` if it has any."""
    colours = images.detach().float().cpu().clamp(0, 1).movedim(1, -1)
    if alpha_of is not None and alpha_of.shape[-1] == 4:
        alpha = clean(alpha_of)[..., 3:].float().cpu().clamp(0, 1)
        check_finite(alpha, "alpha")
        colours = torch.cat([colours, alpha], -1)
    return colours.contiguous()


def mask_of(mask: Tensor | None, index: int, image: Tensor) -> Tensor | None:
    """Where image `index` of an IMAGE may be marked: (1, 1, H, W) in [0, 1], or None for everywhere.

    Args:
        mask: MASK (B, H, W) or (H, W); a single one serves all images. None for everywhere.
        index: Of the image.
        image: IMAGE; where it is transparent, nothing may be marked.

    Raises:
        ValueError: What `opaque_area` refuses.
    """
    alpha = None
    if image.shape[-1] == 4:
        alpha = clean(image)[index, ..., 3].float().clamp(0, 1)
    if mask is None:
        return opaque_area(None, alpha)
    if mask.ndim < 2 or mask.numel() == 0:
        raise ValueError(f"mask: has shape {tuple(mask.shape)}; connect a MASK of shape (batch, height, width)")
    mask = clean(mask).reshape(-1, *mask.shape[-2:])
    return opaque_area(mask[min(index, len(mask) - 1)][None, None], alpha)


def residual(marked: Tensor, original: Tensor) -> Tensor:
    """The change, amplified ten times, on mid-grey."""
    return (0.5 + RESIDUAL_GAIN * (marked - original)).clamp(0, 1)


@dataclass(frozen=True)
class Region:
    """The part of an image that its latent covers.

    Attributes:
        top, left: Upper left corner of the part, in pixels.
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


def latent_region(size: tuple[int, int], working: tuple[int, int]) -> Region:
    """The part of an image of (height, width) `size` that its latent, decoded to size `working`, covers.

    VAEEncode crops sides that are not multiples of 8 about the centre. If the sizes differ by more, the latent is that
    of a resized image.

    Raises:
        ValueError: If the two sizes have different aspect ratios.
    """
    margin = (size[0] - working[0], size[1] - working[1])
    if all(0 <= m < CROP for m in margin):
        return Region(margin[0] // 2, margin[1] // 2, working, working)
    aspect = size[0] * working[1] / (size[1] * working[0])
    if abs(aspect - 1) > ASPECT_TOLERANCE:
        raise ValueError(
            f"image: it is {size[1]}x{size[0]} and its latent decodes to {working[1]}x{working[0]}, another shape; "
            "connect the image that was encoded"
        )
    return Region(0, 0, size, working)
