"""The planes of a picture that a mark is looked for in: the mix of colours in which it is quietest, and its luminance.

Marks change pixels along one colour c (`metrics.LUMA_COLOUR`). Where nobody has touched the colours, what disturbs a
mark is the photo itself, and that varies much less in some colours than in others. With C the covariance of the photo's
own colours,

    quiet plane = v . rgb,   v = C^-1 c / (c . C^-1 c),

is the mix with the least of the photo for the same amount of the mark (Fisher's linear discriminant). JPEG, greys and
shifted hues take it away; luminance stays. No key takes part.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..metrics import LUMA, LUMA_COLOUR

__all__ = ["planes"]

BLOCK = 4  # pixels; differences between such blocks are waves of the mark's band
ROUNDING = 1 / 255  # differences of this size and below count less
LEAST = 1e-4  # of a colour's share in the covariance: no colour is quieter than what rounding and compression leave


def planes(images: Tensor) -> Tensor:
    """The quiet plane and the luminance of one picture.

    Args:
        images: (1, 3, H, W) in [0, 1].

    Returns:
        (2, 1, H, W); an equally strong mark in both. Luminance alone, (1, 1, H, W), where a picture is too small to
        tell its colours apart.
    """
    mixes = [torch.tensor(LUMA)]
    if min(images.shape[-2:]) >= 4 * BLOCK:
        mixes.insert(0, _quiet(images))
    pixels = images.movedim(1, 0).flatten(1)
    return (torch.stack(mixes).to(pixels) @ pixels).view(len(mixes), 1, *images.shape[-2:])


def _quiet(images: Tensor) -> Tensor:
    """v, (3,)."""
    means = F.avg_pool2d(images, BLOCK)
    across, down = means.diff(dim=-1).flatten(2), means.diff(dim=-2).flatten(2)
    changes = torch.cat([across, down], -1)[0].double()
    # Each difference counts about alike: edges would drown the texture that surrounds most of a mark.
    changes = changes / (changes.square().sum(0) + ROUNDING**2).sqrt()
    covariance = changes @ changes.T / changes.shape[1] + LEAST * torch.eye(3, dtype=torch.float64)
    colour = torch.tensor(LUMA_COLOUR, dtype=torch.float64)
    mix = torch.linalg.solve(covariance, colour)
    return (mix / (mix @ colour)).float()
