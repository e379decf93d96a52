"""Views of an image: rectified by a geometry, whitened, and averaged over all tiles. They do not depend on the key."""

from __future__ import annotations

import torch
from torch import Tensor

from ...imaging.geometry import Geometry
from .band import TILE
from .colour_projection import projections
from .rectify import MAX_SIDE, Rectified, rectify, signed_permutation
from .spectral_flattening import BAND, flatten_spectrum
from .tile_average import coefficients, mean_tile, shifted
from .whitening import flat_mask, whiten

__all__ = ["RECEIVED_SIDE", "Views", "average_tile", "tile_of", "whitened"]

RECEIVED_SIDE = 2048  # pixels per side of an image as received that are read at most: 1024 tiles leave little noise


def whitened(y: Tensor, geometry: Geometry | None, limit: int = MAX_SIDE) -> Rectified:
    """Rectify and whiten a colour projection (B, 1, H, W); flat areas and those outside of the image have weight 0."""
    rectified = rectify(y, geometry, limit)
    weight = _weight(rectified.y, rectified.weight)
    flat = flatten_spectrum(whiten(rectified.y, weight), BAND)
    return rectified._replace(y=flat if weight is None else flat * weight, weight=weight)


def _weight(y: Tensor, weight: Tensor | None) -> Tensor | None:
    flat = flat_mask(y)
    if flat is None or weight is None:
        return flat if weight is None else weight
    return weight * flat


def average_tile(rectified: Rectified) -> Tensor:
    """The average tile in the band, (B, 364), of a whitened image."""
    tile = coefficients(mean_tile(rectified.y, rectified.weight))
    return tile if rectified.x0 == rectified.y0 == 0 else shifted(tile, rectified.x0, rectified.y0)


def tile_of(y: Tensor, geometry: Geometry | None) -> Tensor:
    """The average tile in the band, (B, 364), of a projection (B, 1, H, W) with known geometry; differentiable."""
    return average_tile(whitened(y, geometry))


class Views:
    """Views of one image, or of a clip, under several geometries; shared results are computed once.

    The frames of a clip are whitened one by one and averaged: they have one watermark, and their errors of compression
    differ. Which geometries are tried follows from the mean frame.

    Attributes:
        projections: (P, 1, H, W), see `colour_projection.projections`; of a clip, those of its mean frame.
    """

    def __init__(self, images: Tensor) -> None:
        """
        Args:
            images: (1, 3, H, W) in [0, 1]; or the frames of a clip, (F, 3, H, W), of one geometry (`aligned`).
        """
        self.projections = projections(_mean_frame(images))
        single = self.projections[:, None]
        self._frames = single if len(images) == 1 else torch.stack([projections(each) for each in images.split(1)], 1)
        self._received: dict[tuple[int, int], Rectified] = {}
        self._last: dict[int, tuple[int, Geometry, Rectified]] = {}  # projection -> limit, geometry, view

    def placed(self, geometry: Geometry | None, period: int = TILE) -> Geometry:
        """Moved by multiples of `period` pixels, so that the image begins in the first; None for unchanged."""
        geometry = geometry or Geometry.identity()
        height, width = self.projections.shape[-2:]
        corners = geometry.apply(torch.tensor([[0, 0], [width, 0], [0, height], [width, height]]))
        x, y = (-(corners.min(0).values / period).floor() * period).tolist()
        return Geometry.shift(x, y) @ geometry

    def rectified(self, projection: int, geometry: Geometry, limit: int, shared: bool = False) -> Rectified:
        """The centre of the image, of at most `limit` pixels a side, rectified and whitened.

        Args:
            projection: Index into `projections`.
            geometry: Received to marked. All that are shifts, flips or quarter turns share the whitened image as
                received.
            limit: Pixels.
            shared: Take the last such view of another geometry, if they differ in a shift, flip or quarter turn: faster
                and resampled at other fractions of a pixel.
        """
        found = None
        if signed_permutation(geometry) is not None:
            view = projection, min(limit, RECEIVED_SIDE)
            if view not in self._received:
                self._received[view] = _pooled(_centre(self._frames[projection], view[1]))
            found = self._received[view].moved(geometry)
        elif shared and projection in self._last:
            of, start, last = self._last[projection]
            found = last.moved(geometry @ start.inverse()) if of == limit else None
        if found is None:
            found = _pooled(whitened(self._frames[projection], geometry, limit))
            if shared:
                self._last[projection] = limit, geometry, found
        return found

    def tile(self, projection: int, geometry: Geometry, limit: int, shared: bool = False) -> Tensor:
        """The average tile in the band, (1, 364); see `rectified`."""
        return average_tile(self.rectified(projection, geometry, limit, shared))


def _mean_frame(images: Tensor) -> Tensor:
    """The mean of frames (F, 3, H, W) where they are not black, (1, 3, H, W)."""
    if len(images) == 1:
        return images
    inside = (images.amax(1, keepdim=True) > 0).to(images)
    return (images * inside).sum(0, keepdim=True) / inside.sum(0, keepdim=True).clamp(min=1)


def _pooled(frames: Rectified) -> Rectified:
    """The mean of whitened frames (F, 1, H, W), as of one image."""
    if len(frames.y) == 1:
        return frames
    weight = None if frames.weight is None else frames.weight.amax(0, keepdim=True)
    return frames._replace(y=frames.y.mean(0, keepdim=True), weight=weight)


def _centre(y: Tensor, limit: int) -> Rectified:
    """The centre of a projection as received, whitened."""
    top, left = (max(0, (side - limit) // 2) for side in y.shape[-2:])
    centre = whitened(y[..., top : top + limit, left : left + limit], None)
    return centre._replace(x0=float(left), y0=float(top))
