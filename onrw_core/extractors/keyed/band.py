"""The band of watermarks, and unit patterns in it that are derived from a byte stream.

The band is the set of integer frequencies (kx, ky), in cycles per tile of 64 pixels, of one half plane with
4 <= kx^2 + ky^2 <= 118 (0.03 to 0.17 cycles per pixel): 182 frequencies, hence a space of 364 dimensions with the
orthonormal basis

    sqrt(2)/64 cos(2 pi (kx x + ky y) / 64),   sqrt(2)/64 sin(2 pi (kx x + ky y) / 64)

in continuous coordinates (the centre of the first pixel is (0.5, 0.5)). A pattern is a unit vector of coefficients in
this basis. docs/wire-format-2.md specifies all of this.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "BYTES_PER_INTEGER",
    "DIMENSIONS",
    "FREQUENCIES",
    "RADIUS_SQUARED",
    "TILE",
    "band_basis",
    "orthonormal_rows",
    "phase_shifted",
]

TILE = 64  # pixels
RADIUS_SQUARED = (4, 118)  # (cycles per tile)^2
BYTES_PER_INTEGER = 8
BYTE_MEAN_SUM = 1020  # of eight bytes: 8 * 127.5


def _frequencies() -> Tensor:
    """The half plane ky > 0 or (ky = 0 and kx > 0), ordered by ky, then kx: (182, 2) of (kx, ky), int64."""
    low, high = RADIUS_SQUARED
    reach = int(high**0.5)
    return torch.tensor(
        [
            (kx, ky)
            for ky in range(reach + 1)
            for kx in range(-reach, reach + 1)
            if low <= kx * kx + ky * ky <= high and (ky > 0 or kx > 0)
        ]
    )


FREQUENCIES = _frequencies()
DIMENSIONS = 2 * len(FREQUENCIES)


def band_basis(tile: int = TILE) -> Tensor:
    """The orthonormal basis of the band, (tile * tile, 364) float64: first all cosines, then all sines.

    Args:
        tile: Side of a tile in pixels; another value than 64 gives the same patterns at another size.
    """
    centre = (torch.arange(tile, dtype=torch.float64) + 0.5) / tile
    kx, ky = FREQUENCIES.double().unbind(1)
    phase = 2 * torch.pi * (centre[:, None, None] * ky + centre[None, :, None] * kx).reshape(tile * tile, -1)
    return torch.cat([phase.cos(), phase.sin()], 1) * (2**0.5 / tile)


def orthonormal_rows(stream: bytes, rows: int) -> Tensor:
    """Orthonormal patterns from a byte stream: (rows, n) float64, n = the stream's length / rows / 8.

    Each eight bytes give an integer, their sum minus its mean: nearly Gaussian, so that every direction is equally
    likely. The rows are orthonormalised in order (Gram-Schmidt, each row's own direction positive), in float64.
    """
    octets = np.frombuffer(stream, dtype=np.uint8).reshape(rows, -1, BYTES_PER_INTEGER)
    integers = octets.sum(2, dtype=np.int64) - BYTE_MEAN_SUM
    # Gram-Schmidt on the rows: Q of the QR decomposition whose R has a positive diagonal.
    q, r = torch.linalg.qr(torch.from_numpy(integers).double().T)
    return (q * r.diagonal().sign()).T.contiguous()


def phase_shifted(coefficients: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Coefficients (..., 364) whose waves are delayed by the phases with these cosines and sines, (..., 182).

    cos(u - p) = cos(u) cos(p) + sin(u) sin(p), sin(u - p) = sin(u) cos(p) - cos(u) sin(p).
    """
    a, b = coefficients.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
