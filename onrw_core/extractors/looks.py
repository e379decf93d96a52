"""Looking at a picture under a geometry: set straight, whitened, and all its tiles averaged. No key takes part."""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry import Geometry
from .carriers import TILE
from .folding import coefficients, fold, shifted
from .frame import MAX_SIDE, Straight, straighten
from .planes import planes
from .spectrum import BAND, flatten_spectrum
from .whitening import flat_mask, whiten

__all__ = ["Looks", "average_tile", "tile_of", "whitened"]

PLAIN_SIDE = 2048  # pixels: more than that of a picture as it is says nothing new


def whitened(y: Tensor, geometry: Geometry | None, limit: int = MAX_SIDE) -> Straight:
    """Set a plane (B, 1, H, W) straight and whiten it; what is flat or outside of the picture has weight 0."""
    straight = straighten(y, geometry, limit)
    weight = _weight(straight.y, straight.weight)
    flat = flatten_spectrum(whiten(straight.y, weight), BAND)
    return straight._replace(y=flat if weight is None else flat * weight, weight=weight)


def _weight(y: Tensor, weight: Tensor | None) -> Tensor | None:
    flat = flat_mask(y)
    if flat is None or weight is None:
        return flat if weight is None else weight
    return weight * flat


def average_tile(straight: Straight) -> Tensor:
    """The average tile in the band, (B, 364), of a whitened picture."""
    tile = coefficients(fold(straight.y, straight.weight))
    return tile if straight.x0 == straight.y0 == 0 else shifted(tile, straight.x0, straight.y0)


def tile_of(y: Tensor, geometry: Geometry | None) -> Tensor:
    """The average tile in the band, (B, 364), of a plane (B, 1, H, W) with known geometry; differentiable."""
    return average_tile(whitened(y, geometry))


class Looks:
    """One picture, looked at again and again.

    Attributes:
        planes: (P, 1, H, W), see `planes.planes`.
    """

    def __init__(self, image: Tensor) -> None:
        """
        Args:
            image: (1, 3, H, W) in [0, 1].
        """
        self.planes = planes(image)
        self._plain: dict[tuple[int, int], Straight] = {}

    def placed(self, geometry: Geometry | None) -> Geometry:
        """Moved by whole tiles, so that the picture begins in the marked frame's first tile; None for unchanged."""
        geometry = geometry or Geometry.identity()
        height, width = self.planes.shape[-2:]
        corners = geometry.apply(torch.tensor([[0, 0], [width, 0], [0, height], [width, height]]))
        x, y = (-(corners.min(0).values / TILE).floor() * TILE).tolist()
        return Geometry.shift(x, y) @ geometry

    def straight(self, plane: int, geometry: Geometry, limit: int) -> Straight:
        """The middle of the picture, of at most `limit` pixels a side, whitened.

        Args:
            plane: Index into `planes`.
            geometry: Received to marked. All that are shifts share one look at the picture as it is.
            limit: Pixels.
        """
        shift = geometry.matrix[:2, 2].tolist()
        if not torch.equal(geometry.matrix, Geometry.shift(*shift).matrix):
            return whitened(self._plane(plane), geometry, limit)
        look = plane, min(limit, PLAIN_SIDE)
        if look not in self._plain:
            self._plain[look] = _middle(self._plane(plane), look[1])
        plain = self._plain[look]
        return plain._replace(x0=shift[0] + plain.x0, y0=shift[1] + plain.y0)

    def tile(self, plane: int, geometry: Geometry, limit: int) -> Tensor:
        """The average tile in the band, (1, 364); see `straight`."""
        return average_tile(self.straight(plane, geometry, limit))

    def _plane(self, plane: int) -> Tensor:
        return self.planes[plane : plane + 1]


def _middle(y: Tensor, limit: int) -> Straight:
    """The middle of a plane as it is, whitened."""
    top, left = (max(0, (side - limit) // 2) for side in y.shape[-2:])
    middle = whitened(y[..., top : top + limit, left : left + limit], None)
    return middle._replace(x0=float(left), y0=float(top))
