"""The secret patterns of wire format 1, derived from a key.

The band of the mark is the set of integer frequencies (kx, ky), in cycles per tile of 64 pixels, of one half plane with
4 <= kx^2 + ky^2 <= 118 (0.03 to 0.17 cycles per pixel): 182 frequencies, hence a space of 364 dimensions with the
orthonormal basis

    sqrt(2)/64 cos(2 pi (kx x + ky y) / 64),   sqrt(2)/64 sin(2 pi (kx x + ky y) / 64)

in continuous coordinates (the centre of the first pixel is (0.5, 0.5)). A pattern is a unit vector of coefficients in
this basis. Patterns are rows of integers read from SHAKE-256(key, label), each integer the sum of eight bytes minus
its mean (nearly Gaussian, so that every direction of the band is equally likely), orthonormalised in order in
float64. First come
the five sync patterns, one for each number of bits, then the carriers of the payload: the carriers are the same for
every number of bits, and the sync pattern that is found tells how many of them are in use.

docs/wire-format-1.md pins all of this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

__all__ = ["BIT_COUNTS", "DIMENSIONS", "FREQUENCIES", "KeyStream", "TILE", "Carriers", "band_basis"]

TILE = 64  # pixels
BIT_COUNTS = (32, 48, 64, 96, 128)
RADIUS_SQUARED = (4, 118)  # (cycles per tile)^2
BYTES_PER_INTEGER = 8
BYTE_MEAN_SUM = 1020  # of eight bytes: 8 * 127.5
LABEL = "onrw wire format 1: patterns"


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


class KeyStream(Protocol):
    """A secret that yields independent pseudo-random bytes for each label."""

    def stream(self, label: str, n_bytes: int) -> bytes: ...


def band_basis(tile: int = TILE) -> Tensor:
    """The orthonormal basis of the band, (tile * tile, 364) float64: first all cosines, then all sines.

    Args:
        tile: Pixels per tile and side; another value than 64 draws the same patterns at another size.
    """
    centre = (torch.arange(tile, dtype=torch.float64) + 0.5) / tile
    kx, ky = FREQUENCIES.double().unbind(1)
    phase = 2 * torch.pi * (centre[:, None, None] * ky + centre[None, :, None] * kx).reshape(tile * tile, -1)
    return torch.cat([phase.cos(), phase.sin()], 1) * (2**0.5 / tile)


@dataclass(frozen=True)
class Carriers:
    """The patterns of one key as unit vectors in the band.

    Attributes:
        sync: (5, 364) float64, one row for each of `BIT_COUNTS`.
        payload: (128, 364) float64; a mark of k bits uses the first k rows.
    """

    sync: Tensor
    payload: Tensor

    @classmethod
    def from_key(cls, key: KeyStream) -> Carriers:
        """Derive the patterns of `key`."""
        rows = len(BIT_COUNTS) + max(BIT_COUNTS)
        stream = key.stream(LABEL, rows * DIMENSIONS * BYTES_PER_INTEGER)
        octets = np.frombuffer(stream, dtype=np.uint8).reshape(rows, DIMENSIONS, BYTES_PER_INTEGER)
        integers = octets.sum(2, dtype=np.int64) - BYTE_MEAN_SUM
        # Q of the QR decomposition with a positive diagonal in R is what Gram-Schmidt gives, row after row.
        q, r = torch.linalg.qr(torch.from_numpy(integers).double().T)
        patterns = (q * r.diagonal().sign()).T.contiguous()
        return cls(patterns[: len(BIT_COUNTS)], patterns[len(BIT_COUNTS) :])

    def sync_for(self, num_bits: int) -> Tensor:
        """The sync pattern (364,) of marks of `num_bits` bits."""
        return self.sync[BIT_COUNTS.index(num_bits)]
