"""Search with the key alone: the position of an image in the pattern, without the pilot.

The sync patterns with all their phases are an image of 2048 x 2048 pixels, which repeats. Its correlation with the
whitened image, computed by FFT, is the matched filter for every place in the pattern and every shift at once. It is
evaluated for each number of bits, flip and quarter turn; a colour negative gives a negative peak. The band ends at .17
cycles per pixel, so 28 samples per tile are enough.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...imaging.geometry import Geometry
from .alignment import ORIENTATIONS
from .band import TILE, band_basis
from .secret_layer import BIT_COUNTS, PERIOD, SecretLayer
from .tile_average import host_gain

__all__ = ["AREA", "Peak", "peaks"]

SAMPLES = 28  # per side of a tile: more than twice the 10.9 cycles of the band
STEP = TILE / SAMPLES  # pixels
SIDE = PERIOD * SAMPLES  # samples per side of the pattern
AREA = float((PERIOD * TILE) ** 2)  # shifts that are tried, square pixels


class Peak(NamedTuple):
    """A position with a high correlation.

    Attributes:
        geometry: Received to pattern, a flip or quarter turn and a shift.
        height: The absolute correlation, in standard deviations.
    """

    geometry: Geometry
    height: float


@lru_cache(maxsize=2)
def _templates(layer: SecretLayer) -> Tensor:
    """Spectra of the sync patterns with their phases, (5, SIDE, SIDE / 2 + 1)."""
    basis, gain = band_basis(SAMPLES).float().T, host_gain().repeat(2)
    spectra = []
    for pattern in layer.sync:
        tiles = layer.with_phases((pattern * gain).float(), PERIOD, PERIOD) @ basis
        image = tiles.unflatten(2, (SAMPLES, SAMPLES)).transpose(1, 2).reshape(SIDE, SIDE)
        spectra.append(torch.fft.rfft2(image))
    return torch.stack(spectra)


@lru_cache(maxsize=8)
def _sampling(length: int) -> Tensor:
    """Ideal low-pass filter and sampling of a line, (samples, length)."""
    position = torch.arange(-(-length // STEP)) * STEP
    return torch.sinc((position[:, None] - torch.arange(length)) / STEP) / STEP


def _sampled(w: Tensor) -> Tensor:
    """A whitened image (H, W), low-pass filtered and folded to the period: (SIDE, SIDE)."""
    w = _sampling(w.shape[0]) @ w @ _sampling(w.shape[1]).T
    w = F.pad(w, (0, -w.shape[1] % SIDE, 0, -w.shape[0] % SIDE))
    return w.unflatten(0, (-1, SIDE)).sum(0).unflatten(1, (-1, SIDE)).sum(1)


def _oriented(image: Tensor, orientation: Tensor) -> Tensor:
    """A periodic image in another orientation; sample 0 of each axis stays."""
    if orientation[0, 0] == 0:
        image = image.T
    for dim, row in ((1, 0), (0, 1)):
        if orientation[row].sum() < 0:
            image = image.flip(dim).roll(1, dim)
    return image


@torch.no_grad()
def peaks(w: Tensor, layer: SecretLayer, keep: int, orientations: Tensor = ORIENTATIONS) -> list[Peak]:
    """The highest peaks, the highest first.

    Args:
        w: The whitened image, (H, W).
        layer: The key's patterns.
        keep: Number of peaks.
        orientations: Some of `ORIENTATIONS`.
    """
    templates, sampled = _templates(layer), _sampled(w)
    found: list[tuple[float, Tensor, tuple[int, int]]] = []
    for orientation in orientations:
        spectrum = torch.fft.rfft2(_oriented(sampled, orientation)).conj()
        for count in range(len(BIT_COUNTS)):
            surface = torch.fft.irfft2(templates[count] * spectrum, s=(SIDE, SIDE))
            low, high = (float(value) for value in surface.aminmax())
            norm = float(torch.linalg.vector_norm(surface)) or 1.0  # a flat image has no peak
            height = max(-low, high) / norm * SIDE
            if len(found) < keep or height > found[-1][0]:  # finding the place takes longer than the height
                index = int(surface.argmax() if high > -low else surface.argmin())
                found.append((height, orientation, divmod(index, SIDE)))
                found = sorted(found, key=lambda peak: -peak[0])[:keep]
    return [Peak(_geometry(orientation, *lag), height) for height, orientation, lag in found]


def _geometry(orientation: Tensor, row: int, column: int) -> Geometry:
    """Received to pattern. Samples lie at pixel 1/2 + n `STEP` of the image, and at (n + 1/2) `STEP` of the pattern."""
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, :2] = orientation.double()
    for axis, lag in enumerate((column, row)):
        mirrored = 1.0 if orientation[axis].sum() < 0 else 0.0  # sample 0 stays, at 1/2
        matrix[axis, 2] = mirrored + lag * STEP + (STEP - 1) / 2
    return Geometry(matrix)
