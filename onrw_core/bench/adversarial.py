"""An adversary with marked pictures, or with the decoder, but without the key.

The keyed mark is periodic, so that folding a marked picture modulo its tile gives an estimate of the mark:

    tile = mean over all tiles of (picture - its local mean)

The better the more pictures there are with the same message: so the marks of the second key here have one for all, and
those of the first key have each their own, of which an average keeps the sync pattern alone. It can be subtracted
(removal) or added to another picture (forgery). Whoever holds a decoder can do more: optimise any picture until it
reads what he wants.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..extractors.keyed import KeyedExtractor
from ..keys import Key
from ..metrics import psnr
from ..rounding import round_8bit
from .cache import Cache, generator_for
from .marking import marked
from .photos import Photo
from .statistics import judge
from .systems import Onrw

__all__ = ["adversarial", "estimated_tile", "tiled"]

TILE = 64  # pixels; public, as the wire format is
MEAN_RADIUS = 4  # pixels of the local mean that an adversary takes off
GAINS = (1.0, 2.0)  # of the subtracted or added estimate
PRESENCE_LIMIT = -6.0  # log10 of the false-positive rate

SURVIVES = "should still be read"
FORGED = "forged if present"


def estimated_tile(images: list[Tensor]) -> Tensor:
    """What repeats every `TILE` pixels in all the pictures, (3, TILE, TILE), mean 0.

    Args:
        images: Pictures (3, H, W), at least one tile large, the tile beginning at the upper left corner.
    """
    tiles = []
    for image in images:
        side = 2 * MEAN_RADIUS + 1
        high = image - F.avg_pool2d(image[None], side, 1, MEAN_RADIUS, count_include_pad=False)[0]
        rows, columns = image.shape[1] // TILE, image.shape[2] // TILE
        high = high[:, : rows * TILE, : columns * TILE]
        tiles.append(high.reshape(3, rows, TILE, columns, TILE).mean((1, 3)))
    tile = torch.stack(tiles).mean(0)
    return tile - tile.mean((1, 2), keepdim=True)


def tiled(tile: Tensor, size: tuple[int, int]) -> Tensor:
    """The tile repeated over (height, width)."""
    rows, columns = -(-size[0] // TILE), -(-size[1] // TILE)
    return tile.repeat(1, rows, columns)[:, : size[0], : size[1]]


def adversarial(system: Onrw, cache: Cache, photos: list[Photo], key: Key, seed: int) -> list[dict[str, Any]]:
    """All cases for one system whose photos have been marked.

    Args:
        system: With the keyed extractor.
        cache: Of that system.
        photos: The photos of the benchmark.
        key: The key.
        seed: Of the benchmark.

    Returns:
        Per case: case, meaning, n, present (rate of presence at 1e-6), bit_accuracy of the message in question, psnr
        of what the adversary made beside what he had.
    """
    found = [(photo, cache.mark(photo)) for photo in photos]
    pictures = [(photo, image, note) for photo, (image, note) in found]
    secret = bytes(torch.randint(256, (32,), generator=generator_for(seed, "second key")).tolist())
    second = replace(
        system,
        name=f"{system.name} second key",
        extractor=KeyedExtractor(Key(secret), system.num_bits),
        fingerprint=Key(secret).fingerprint,
    )
    pixels = system.settings_.with_(space="pixel", attention_weight=0.0, mask="none")
    forger = replace(system, name=f"{system.name} forged", settings_=pixels)
    caches = {s.name: Cache(cache.folder.parent, s, seed) for s in (second, forger)}
    twice = [
        marked(second, caches[second.name], replace(photo, image=image), key, seed, "second", shared=True)
        for photo, image, _ in pictures
    ]
    average = estimated_tile([image for _, image, _ in pictures])
    average_second = estimated_tile([image for image, _ in twice])
    outcomes: dict[tuple[str, str], list[dict]] = {}

    def read(case: str, meaning: str, image: Tensor, before: Tensor, by: Onrw, bits: str) -> None:
        image = round_8bit(image)
        outcome = by.read(image, tuple(image.shape[-2:]))
        record = judge(outcome, torch.tensor([int(b) for b in bits]), key, "")
        record["psnr"] = float(psnr(image[None], before[None]))
        outcomes.setdefault((case, meaning), []).append(record)

    for i, (photo, image, note) in enumerate(pictures):
        other = photos[(i + 1) % len(photos)].image
        again, note_again = twice[i]
        read("marked again with another key: first mark", SURVIVES, again, image, system, note["bits"])
        read("marked again with another key: second mark", SURVIVES, again, image, second, note_again["bits"])
        own = estimated_tile([image])
        for gain in GAINS:
            size = tuple(image.shape[-2:])
            minus = image - gain * tiled(own, size)
            read(f"own tile subtracted x{gain:g}", SURVIVES, minus, image, system, note["bits"])
            if len(pictures) > 1:
                each = f"tile of {len(pictures)} photos, an id each, subtracted x{gain:g}"
                read(each, SURVIVES, image - gain * tiled(average, size), image, system, note["bits"])
                one = f"tile of {len(pictures)} photos, one id, subtracted x{gain:g}"
                read(one, SURVIVES, again - gain * tiled(average_second, size), again, second, note_again["bits"])
                pasted = other + gain * tiled(own, tuple(other.shape[-2:]))
                read(f"own tile pasted elsewhere x{gain:g}", FORGED, pasted, other, system, note["bits"])
        forged, note_forged = marked(forger, caches[forger.name], photo, key, seed, "forged")
        read("pixels optimised with the key in hand", FORGED, forged, photo.image, system, note_forged["bits"])
    return [
        {
            "case": case,
            "meaning": meaning,
            "n": len(records),
            "present": fmean(r["log10_presence"] <= PRESENCE_LIMIT for r in records),
            "bit_accuracy": fmean(r["accuracy"] for r in records),
            "psnr": fmean(r["psnr"] for r in records),
        }
        for (case, meaning), records in outcomes.items()
    ]
