"""Between ComfyUI's images, (B, H, W, C) in [0, 1], and the core's, (B, 3, H, W); the part that a latent covers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..onrw_core.imaging.pixels import as_rgb, opaque_area
from .adapter import clean, numbered

__all__ = ["Region", "areas", "from_comfy", "latent_region", "residual", "to_comfy"]

CROP = 8  # VAEEncode crops to multiples of this
ASPECT_TOLERANCE = 0.03
RESIDUAL_GAIN = 10.0


def from_comfy(image: Tensor, name: str = "image", *, min_side: int = 1) -> Tensor:
    """IMAGE (B, H, W, 3 or 4) -> (B, 3, H, W), clamped to [0, 1]; `to_comfy` puts alpha back.

    Raises:
        ValueError: Sides below `min_side`, or values that are not floating point; `name` is the input.
    """
    return as_rgb(clean(image)[..., :3].movedim(-1, 1), name, batch=True, min_side=min_side).contiguous()


def to_comfy(images: Tensor, alpha_of: Tensor | None = None) -> Tensor:
    """(B, 3, H, W) -> IMAGE (B, H, W, 3) on the CPU, clamped; with the alpha of the IMAGE `alpha_of` if it has any."""
    colours = images.detach().float().cpu().clamp(0, 1).movedim(1, -1)
    if alpha_of is not None and alpha_of.shape[-1] == 4:
        alpha = clean(alpha_of)[..., 3:].float().cpu().clamp(0, 1)
        colours = torch.cat([colours, alpha], -1)
    return colours.contiguous()


def areas(mask: Tensor | None, image: Tensor, *, frames: bool = False) -> list[Tensor | None]:
    """Where each image of an IMAGE may be marked: (1, 1, H, W) in [0, 1], or None for everywhere.

    Args:
        mask: MASK (B, H, W) or (H, W); a single one serves all images. None for everywhere.
        image: IMAGE; where it is transparent, nothing may be marked.
        frames: Whether the images are frames of a clip, of which some may have no such area: it is all zeros then.

    Raises:
        ValueError: What `opaque_area` refuses, or there is no such area; the image is named.
    """
    masks = None if mask is None else clean(mask).reshape(-1, 1, 1, *mask.shape[-2:])
    found: list[Tensor | None] = []
    for index, one in enumerate(image):
        alpha = clean(one[..., 3]).float().clamp(0, 1) if image.shape[-1] == 4 else None
        own = None if masks is None else masks[min(index, len(masks) - 1)]
        if frames and any(each is not None and not each.any() for each in (alpha, own)):
            found.append(torch.zeros(1, 1, *image.shape[1:3]))
            continue
        try:
            area = opaque_area(own, alpha)
            if area is not None and not frames and not area.any():
                raise ValueError("mask: covers transparent pixels alone; paint an area that is visible")
        except ValueError as error:
            name, _, problem = str(error).partition(": ")
            raise ValueError(f"{numbered(name, index, len(image))}: {problem}") from None
        found.append(area)
    if not any(area is None or area.any() for area in found):
        raise ValueError("image: no frame has an area that may be marked; give one an opaque part inside the mask")
    return found


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
