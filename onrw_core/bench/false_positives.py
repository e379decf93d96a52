"""How often the keyed reader cries wolf: unmarked photos, plain and attacked, read with many wrong keys.

The average tile of a picture does not depend on the key. So it is made once for each picture, and compared with the
patterns of as many keys as wanted; one geometry each, and the p-value counts the shifts, orientations and bit counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..attacks import attack, suite
from ..detection import energy_log_p, product_log_p, sync_log_p
from ..extractors.alignment import ORIENTATIONS, align, oriented, refine, roughness
from ..extractors.carriers import BIT_COUNTS, DIMENSIONS, TILE, Carriers
from ..extractors.folding import shifted
from ..extractors.keyed import KeyedExtractor
from ..keys import Key
from .cache import generator_for
from .photos import Photo

__all__ = ["RATES", "false_positives", "presence"]

RATES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)
REPORT_EVERY = 50  # keys


def false_positives(
    photos: list[Photo], key: Key, readings: int, seed: int, tell: Callable[..., None] = lambda *_: None
) -> dict[str, Any]:
    """Read unmarked photos with wrong keys.

    Args:
        photos: Unmarked.
        key: Any key; wrong ones are derived from it.
        readings: At least so many.
        seed: Of the attacks' random draws.
        tell: Called with a text now and then.

    Returns:
        readings, keys, photos, and counts and rates of p-values at or below each of `RATES`.
    """
    reader = KeyedExtractor(key)
    tiles = []
    for photo in photos:
        for action in [attack("identity"), *suite("onrw12")]:
            attacked = action(photo.image[None], generator_for(seed, photo.name, "unmarked", str(action)))
            with torch.no_grad():
                tiles.append(reader.tile(attacked.images)[0])
    stack = torch.stack(tiles)
    keys = math.ceil(readings / len(stack))
    values = []
    for i in range(keys):
        wrong = Key(key.stream(f"wrong key {i}", 32))
        values.append(presence(stack, Carriers.from_key(wrong)))
        if (i + 1) % REPORT_EVERY == 0:
            tell(f"wrong key {i + 1}/{keys}")
    log10_p = torch.stack(values)
    counts = {f"{rate:g}": int((log10_p <= math.log10(rate)).sum()) for rate in RATES}
    return {
        "readings": log10_p.numel(),
        "keys": keys,
        "photos": len(photos),
        "counts": counts,
        "rates": {rate: count / log10_p.numel() for rate, count in counts.items()},
        "lowest_log10_p": float(log10_p.min()),
    }


@torch.no_grad()
def presence(tiles: Tensor, carriers: Carriers) -> Tensor:
    """Presence p-values (base-10 logarithm, (N,)) of tiles (N, 364) under one key, one geometry each."""
    sync = carriers.sync.to(tiles)
    found = align(tiles, sync)
    counts = found.cosine.argmax(1)
    rough = roughness(tiles)
    turned = oriented(tiles)
    cosines, fractions = torch.empty(len(tiles)), torch.empty(len(tiles))
    for i, count in enumerate(counts.tolist()):
        tile = turned[i, found.orientation[i, count]]
        x, y, cosines[i] = refine(tile, sync[count], found.x[i, count], found.y[i, count])
        tile = F.normalize(shifted(tile, x, y).double(), dim=0)
        energy = 1 - (carriers.sync @ tile).square().sum()
        fractions[i] = (carriers.payload[: BIT_COUNTS[count]] @ tile).square().sum() / energy
    tries = len(ORIENTATIONS) * len(BIT_COUNTS)
    log_p = np.empty(len(tiles))
    for count, num_bits in enumerate(BIT_COUNTS):
        of = (counts == count).numpy()
        if of.any():
            first = sync_log_p(cosines.numpy()[of], rough.numpy()[of], DIMENSIONS, TILE * TILE, tries)
            second = energy_log_p(fractions.numpy()[of], num_bits, DIMENSIONS - len(BIT_COUNTS))
            log_p[of] = product_log_p(first, second)
    return torch.from_numpy(log_p / math.log(10))
