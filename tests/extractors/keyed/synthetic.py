"""Synthetic marked images: a smooth random image plus the patterns of both layers, and changes of their geometry."""

import torch
import torch.nn.functional as F

from onrw_core.extractors.keyed.extractor import KeyedExtractor
from onrw_core.imaging.geometry import Geometry, resample
from onrw_core.payload.keys import Key

SIZE = 512
PILOT_SHARE = 0.6  # of the norm of the sync pattern
KEY = Key(bytes(range(32)))
BITS = torch.randint(0, 2, (48,), generator=torch.Generator().manual_seed(4))


def marked(size: int = SIZE, amplitude: float = 0.012) -> torch.Tensor:
    """A smooth random image plus both layers as strong as `amplitude` rms, (1, 3, size, size)."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, size, size, generator=generator) * 0.01 + 0.5
    for cells in (4, 16, 64):
        noise = torch.randn(1, 3, cells, cells, generator=generator)
        image = image + 0.06 * F.interpolate(noise, size=(size, size), mode="bicubic") / cells**0.3
    image = image + amplitude * KeyedExtractor(KEY, place=(7, 31)).pattern(BITS, (size, size), PILOT_SHARE)
    return (image.clamp(0, 1) * 255).round() / 255


def rotated(x: torch.Tensor, degrees: float) -> torch.Tensor:
    return resample(x, Geometry.rotation(degrees, x.shape[-2:]), x.shape[-2:])


def resized(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return F.interpolate(x, size=(height, width), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def luma(x: torch.Tensor) -> torch.Tensor:
    return x.mean(1, keepdim=True)
