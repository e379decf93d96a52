"""Local visible error: how far a marked image is seen to differ from its original, place by place.

The change in the opponent colours X, Y and B - Y is split into four bands of spatial frequency by differences of
Gaussians. With e_bc the mean square of band b of colour c around a place,

    d^2 = sum_b (sum_c w_bc e_bc) / m_b^2,   m_b = (1 + a_b . activity) exp(l_b Y + q_b Y^2)

where the activity is that of the original's two fine bands of Y, eroded, so that an edge does not mask the flat area
beside it, and Y its local mean (visual masking, luminance adaptation). What masks is the original's alone, so d grows
in proportion to the change.

The structure is a small part of that of butteraugli (Alakuijala et al. 2017, libjxl 0.7), and the constants were fitted
to its distance maps, of 112 changes of 16 training images and drawings: on places of images left out of the fit the
correlation of the logarithms is 0.946 and their root mean square difference 0.30. So d is in butteraugli's units, as an
estimate.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from .convolve import gaussian_blur
from .ssimulacra2 import linear_light, opponent

__all__ = ["VisibleError", "norm"]

SCALES = (1.5, 3.2, 7.0)  # pixels: the Gaussians between the four bands
POOLING = 1.8  # pixels: over which a band's error is averaged
ACTIVITY_POOLING = 2.7
EROSION = 3  # pixels of the half-size image
ADAPTATION = 3.0  # pixels: of the local mean of Y

WEIGHTS = ((388.0, 4450.0, 293.0), (195.0, 8.02e4, 513.0), (224.0, 5.48e4, 1900.0), (1980.0, 1510.0, 3230.0))
MASKING = ((23.8, 35.4), (16.2, 52.0), (11.1, 42.6), (9.3, 27.7))  # by the two fine bands of the original's Y
LUMINANCE = ((-0.981, -0.398), (-1.417, 0.298), (-1.399, 0.16), (-1.188, -0.819))  # l_b, q_b
DARK = 0.156  # Y + DARK is what the constants of luminance were fitted for
TINY = 1e-8  # keeps the root's derivative finite where nothing differs
POWERS = (3, 6, 12)
STEP = 1 / 255


class VisibleError:
    """Local visible error against one original, whose masking is computed once."""

    def __init__(self, original: Tensor) -> None:
        """
        Args:
            original: (1, 3, H, W) in [0, 1], sRGB.
        """
        self._original = original.detach()
        with torch.no_grad():
            self._opponent = _opponent(self._original)
            uhf, hf, *_ = _bands(self._opponent)
            fine = torch.cat([_halved(uhf[:, 1:2].abs()), hf[:, 1:2].abs()], dim=1)
            activity = -F.max_pool2d(-gaussian_blur(fine, ACTIVITY_POOLING / 2), EROSION, 1, EROSION // 2)
            luminance = gaussian_blur(_halved(self._opponent[:, 1:2]), ADAPTATION / 2) + DARK
            masking = 1 + torch.einsum("bf,nfhw->nbhw", original.new_tensor(MASKING), activity)
            linear, square = original.new_tensor(LUMINANCE).T[..., None, None]
            self._gain = (masking * torch.exp(linear * luminance + square * luminance.square())) ** -2

    def map(self, marked: Tensor) -> Tensor:
        """Visible error of images (B, 3, H, W) in [0, 1]: (B, 1, ceil(H / 2), ceil(W / 2)), differentiable."""
        uhf, *others = _bands(_opponent(marked) - self._opponent)
        squares = [_halved(uhf.square()), *(band.square() for band in others)]
        weights = marked.new_tensor(WEIGHTS)
        weighted = [torch.einsum("c,nchw->nhw", w, band) for w, band in zip(weights, squares, strict=True)]
        pooled = gaussian_blur(self._gain * torch.stack(weighted, dim=1), POOLING / 2)
        return (pooled.sum(1, keepdim=True) + TINY).sqrt()

    def sensitivity(self, colour: Tensor) -> Tensor:
        """Visible error per unit of a change along a colour, at medium spatial frequencies.

        Args:
            colour: Direction in R, G, B, (1, 3, 1, 1) or (1, 3, H, W).

        Returns:
            (1, 1, H, W), without gradient.
        """
        with torch.no_grad():
            step = STEP * colour
            change = _halved((_opponent(self._original + step) - self._opponent) / STEP).square()
            weighted = torch.einsum("bc,nchw->nbhw", change.new_tensor(WEIGHTS[1:3]), change)
            square = (self._gain[:, 1:3] * weighted).mean(1, keepdim=True)
            size = self._original.shape[-2:]
            return F.interpolate(square.sqrt(), size=size, mode="bilinear", align_corners=False)


def norm(error: Tensor, weight: Tensor | None = None) -> Tensor:
    """One figure for a map of visible error: the mean of its 3-, 6- and 12-norm, as `butteraugli_main` prints.

    Args:
        error: (B, 1, h, w), as of `VisibleError.map`.
        weight: (1, 1, h, w), not negative: the share of each place; None for all alike.

    Returns:
        (B,), differentiable.
    """
    share = torch.ones_like(error) if weight is None else weight.to(error)
    share = share / share.mean((1, 2, 3), keepdim=True)
    return torch.stack([(share * error**p).mean((1, 2, 3)) ** (1 / p) for p in POWERS]).mean(0)


def _opponent(images: Tensor) -> Tensor:
    return torch.cat(opponent(linear_light(images), [0, 1, 2]), dim=1)


def _bands(planes: Tensor) -> list[Tensor]:
    """Four bands, fine to coarse; the first at full size, the others, which are smooth, at half of it."""
    smooth = gaussian_blur(planes, SCALES[0])
    halves = [_halved(smooth)]
    for before, after in pairwise(SCALES):
        halves.append(gaussian_blur(halves[-1], (after**2 - before**2) ** 0.5 / 2))
    return [planes - smooth, *(fine - coarse for fine, coarse in pairwise(halves)), halves[-1]]


def _halved(planes: Tensor) -> Tensor:
    return F.avg_pool2d(planes, 2, ceil_mode=True, count_include_pad=False)
