"""What a key's patterns say of average tiles, one geometry each: the best alignment, and presence as a p-value.

A tile's best shift, orientation and number of bits follow from the sync patterns alone, and the payload is looked at
afterwards, so any number of tiles go through alignment, refinement and both p-values together.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..detection import energy_log_p, product_log_p, sync_log_p
from .alignment import ORIENTATIONS, align, oriented, refine, roughness
from .carriers import BIT_COUNTS, DIMENSIONS, TILE, Carriers
from .folding import shifted

__all__ = ["Presences", "presence", "presences"]


class Presences(NamedTuple):
    """What was found in each of N tiles.

    Attributes:
        tile: (N, 364), oriented and shifted into place.
        orientation: (N,), index into `alignment.ORIENTATIONS`.
        x, y: (N,), pixels that the oriented tile was moved right and down.
        count: (N,), index into `carriers.BIT_COUNTS`.
        cosine: (N,), of the tile and that sync pattern.
        log_sync: (N,) float64, natural logarithm of the sync pattern's p-value.
        log10_p: (N,) float64, presence in this tile alone.
    """

    tile: Tensor
    orientation: Tensor
    x: Tensor
    y: Tensor
    count: Tensor
    cosine: Tensor
    log_sync: np.ndarray
    log10_p: np.ndarray


@torch.no_grad()
def presences(tiles: Tensor, carriers: Carriers, rough: Tensor | None = None) -> Presences:
    """Presence of a key's mark in average tiles, one geometry each.

    Args:
        tiles: (N, 364) float32.
        carriers: The key's patterns.
        rough: (N, 2) from `alignment.roughness`, where it is known from another key.
    """
    sync = carriers.sync.to(tiles)
    found = align(tiles, sync)
    count = found.cosine.argmax(1)
    best = torch.arange(len(tiles)), count
    orientation = found.orientation[best]
    turned = oriented(tiles)[best[0], orientation]
    x, y, cosine = refine(turned, sync[count], found.x[best], found.y[best])
    moved = shifted(turned, x, y)
    rough = roughness(tiles) if rough is None else rough
    tries = len(ORIENTATIONS) * len(BIT_COUNTS)
    log_sync = sync_log_p(cosine.numpy(), rough.numpy(), DIMENSIONS, TILE * TILE, tries)
    log10_p = presence(moved, log_sync, count, carriers)
    return Presences(moved, orientation, x, y, count, cosine, log_sync, log10_p)


def presence(tiles: Tensor, log_sync: np.ndarray, count: Tensor, carriers: Carriers) -> np.ndarray:
    """Base-10 logarithm of presence, (N,) float64: the sync pattern's chance and the payload's energy together.

    Args:
        tiles: (N, 364), oriented and shifted into place.
        log_sync: (N,), natural logarithms.
        count: (N,), indices into `carriers.BIT_COUNTS`.
        carriers: The key's patterns.
    """
    unit = F.normalize(tiles.double(), dim=1)
    free = 1 - (unit @ carriers.sync.T).square().sum(1)  # without the sync parts
    held = (unit @ carriers.payload.T).square().cumsum(1)
    log10_p = np.empty(len(tiles))
    for index, num_bits in enumerate(BIT_COUNTS):
        of = (count == index).numpy()
        if of.any():
            fraction = (held[:, num_bits - 1] / free.clamp(min=1e-12)).numpy()[of]
            energy = energy_log_p(fraction, num_bits, DIMENSIONS - len(BIT_COUNTS))
            log10_p[of] = product_log_p(log_sync[of], energy) / math.log(10)
    return log10_p
