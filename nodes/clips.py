"""Batches of images that are the frames of one clip: the widget, and the frames that are read together."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from .schemas import advanced

__all__ = ["ONE_CLIP", "SEPARATE", "frames", "spread"]

SEPARATE, ONE_CLIP = "separate images", "one clip"
MOST = 8  # frames of a clip that are read together


def frames() -> io.Input:
    """Whether a batch is the frames of a clip."""
    return advanced(
        io.Combo.Input,
        "frames",
        options=[SEPARATE, ONE_CLIP],
        default=SEPARATE,
        optional=True,
        tooltip="What a batch is. one clip: the frames of a video, with one watermark that moves with the scene and "
        "does not flicker; they are read together. separate images: each image has its own.",
    )


def spread(images: Tensor) -> Tensor:
    """At most `MOST` of the frames (F, 3, H, W) of a clip, at even distances."""
    count = len(images)
    if count <= MOST:
        return images
    return images[[(2 * i + 1) * count // (2 * MOST) for i in range(MOST)]]
