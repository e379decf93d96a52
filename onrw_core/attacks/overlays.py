"""Attacks that add content over or around the image: text, border, a bordered screenshot."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..imaging.geometry import Geometry
from ..imaging.rounding import LEVELS
from .base import Attacked, register
from .codecs import screenshot

__all__: list[str] = []

CAPTION = "lorem ipsum"
CAPTION_HEIGHT = 0.85  # centre of the text, fraction of the image's height without a generator
BORDER_VALUE = 0.95  # light grey, as the background of a page
SCREENSHOT_BORDER = 0.08  # of the shorter side


@register(
    "text",
    "Write white, black-edged text over the image, at a random height with a generator.",
    default=0.1,
    low=0.02,
    high=0.5,
    unit="size of the letters, fraction of the height",
)
def text(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    height, width = images.shape[-2:]
    draw = CAPTION_HEIGHT if generator is None else torch.rand((), generator=generator).item()
    # The position is rounded so that the cache of captions is of use.
    colour, opacity = _caption(height, width, max(6, round(strength * height)), round(draw, 1))
    return images * (1 - opacity.to(images)) + (colour * opacity).to(images)


@register(
    "border",
    "Put a light grey border around the image.",
    default=0.1,
    low=0.0,
    high=1.0,
    unit="width, fraction of the shorter side",
)
def border(images: Tensor, strength: float, generator: torch.Generator | None) -> Attacked:
    width = round(strength * min(images.shape[-2:]))
    return Attacked(F.pad(images, (width,) * 4, value=BORDER_VALUE), Geometry.shift(-width, -width))


@register(
    "screenshot-border",
    "A screenshot that includes a border of the page around the image.",
    default=0.75,
    low=0.1,
    high=2.0,
    unit="factor of the side",
)
def screenshot_border(images: Tensor, strength: float, generator: torch.Generator | None) -> Attacked:
    page = border(images, SCREENSHOT_BORDER, generator)
    shown = screenshot(page.images, strength, generator)
    return Attacked(shown.images, page.geometry @ shown.geometry)


@lru_cache(maxsize=16)
def _caption(height: int, width: int, size: int, place: float) -> tuple[Tensor, Tensor]:
    """Grey values and opacity of a line of text, both (H, W), in [0, 1]."""
    canvas = Image.new("LA", (width, height), (0, 0))
    ImageDraw.Draw(canvas).text(
        (width / 2, height * place),
        CAPTION,
        fill=(255, 255),
        font=ImageFont.load_default(size),
        anchor="mm",
        stroke_width=max(1, size // 16),
        stroke_fill=(0, 255),
    )
    grey, opacity = torch.from_numpy(np.asarray(canvas, dtype=np.float32) / LEVELS).unbind(-1)
    return grey, opacity
