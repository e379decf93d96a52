"""The keyed extractor: spread spectrum on a periodic tile, found again blindly.

A mark adds to the picture, in every tile of 64 x 64 pixels, the same combination of secret patterns (`carriers`): a
sync pattern that says how many bits there are and where the tile begins, and one carrier per bit with the bit as its
sign. To read, the picture is whitened, set straight, its tiles are averaged (`folding`), and the average tile is
correlated with the patterns. With t the tile's coefficients in the band and c_k the carriers,

    logit_k = sqrt(K) <c_k, t> / |t|

so that a tile which consists of K carriers alone has logits of +-1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..detection import Reading
from ..geometry import Geometry
from ..metrics import luminance
from .base import Extractor
from .carriers import BIT_COUNTS, Carriers, KeyStream
from .folding import HALF, half_tiles, shifted
from .looks import average_tile, tile_of, whitened
from .reader import WORKING_SIZE, read

__all__ = ["KeyedExtractor"]

MARGIN, SYNC_MARGIN = 1.0, 0.5  # of the logits, and of the cosine of sync pattern and tile: what they are pushed to
# Few tiles cannot have that much. A margin within reach turns to the bits that are wrong, not to those that are easy.
WINDOW_MARGIN, WINDOW_SYNC_MARGIN = 0.35, 0.4
WINDOW = 5  # half tiles per side of the windows: about a tenth of a picture of the working size
WINDOW_WEIGHT = 0.65  # the rest is the whole picture's
SHARPNESS = 6.0  # of the hinges
STRENGTH_WEIGHT = 0.05


class KeyedExtractor(Extractor):
    """Marks and reads with a secret key; no weights.

    Attributes:
        name: "keyed".
        num_bits: Bits of the marks that `logits` and `loss` are about; `read` finds the number itself.
        carriers: The key's patterns.
    """

    name = "keyed"

    def __init__(self, key: KeyStream, num_bits: int = 48):
        """
        Args:
            key: The secret; anything with ``stream(label, n_bytes) -> bytes``.
            num_bits: 32, 48, 64, 96 or 128.
        """
        if num_bits not in BIT_COUNTS:
            raise ValueError(f"num_bits is {num_bits}; the keyed extractor carries one of {BIT_COUNTS} bits")
        self.num_bits = num_bits
        self.carriers = Carriers.from_key(key)
        self._sync = self.carriers.sync_for(num_bits).float()
        self._payload = self.carriers.payload[:num_bits].float()

    def tile(self, images: Tensor, geometry: Geometry | None = None) -> Tensor:
        """The average tile in the band, (B, 364), of images with known geometry; differentiable.

        Args:
            images: (B, 3, H, W) in [0, 1].
            geometry: Takes coordinates of the images to those of the marked frame; None for unchanged.
        """
        return tile_of(luminance(images), geometry)

    def logits(self, images: Tensor, geometry: Geometry | None = None) -> Tensor:
        """Soft bits (B, num_bits), about -1 to 1, positive = bit 1; see `Extractor.logits`."""
        return self._logits(self.tile(images, geometry))

    def _logits(self, tile: Tensor) -> Tensor:
        return F.normalize(tile, dim=1) @ self._payload.to(tile).T * math.sqrt(self.num_bits)

    def loss_and_logits(self, images: Tensor, bits: Tensor, geometry: Geometry | None = None) -> tuple[Tensor, Tensor]:
        """Message loss per image, (B,), and the soft bits: see `Extractor.loss_and_logits`.

        The loss is that of the average tile, and of every window of 2.5 x 2.5 tiles as if it were a crop.
        Bits and sync pattern have hinges, which push the weakest bits and a weak sync pattern. The strength term, the
        absolute size of the mark in the tile, makes its repetition stand out (the search finds geometry by it) and
        gives a gradient that does not depend on how far the bits are. The windows make crops readable wherever they
        lie.

        Args:
            images: (B, 3, H, W) in [0, 1].
            bits: (num_bits,) of 0/1.
            geometry: See `logits`.
        """
        straight = whitened(luminance(images), geometry)
        signs = bits.to(images) * 2 - 1
        tile = average_tile(straight)
        pattern = F.normalize(signs @ self._payload.to(tile), dim=0) + self._sync.to(tile)
        whole = self._tile_loss(tile, signs, MARGIN, SYNC_MARGIN) - STRENGTH_WEIGHT * (tile @ pattern)
        rows, columns = -(-straight.y.shape[-2] // HALF), -(-straight.y.shape[-1] // HALF)
        if min(rows, columns) < WINDOW or max(rows, columns) <= WINDOW + 1:
            return whole, self._logits(tile)
        grid = half_tiles(straight.y).permute(0, 3, 1, 2)
        windows = F.avg_pool2d(grid, WINDOW, stride=1).flatten(2).transpose(1, 2)
        if straight.x0 or straight.y0:
            windows = shifted(windows, straight.x0, straight.y0)
        parts = self._tile_loss(windows, signs, WINDOW_MARGIN, WINDOW_SYNC_MARGIN).mean(1)
        return torch.lerp(whole, parts, WINDOW_WEIGHT), self._logits(tile)

    def _tile_loss(self, tile: Tensor, signs: Tensor, margin: float, sync_margin: float) -> Tensor:
        """Hinges of bits and sync pattern for tiles (..., 364): (...)."""
        unit = F.normalize(tile, dim=-1)
        margins = unit @ self._payload.to(tile).T * (math.sqrt(self.num_bits) * signs)
        return _hinge(margins, margin).mean(-1) + _hinge(unit @ self._sync.to(tile), sync_margin)

    @torch.no_grad()
    def read(self, image: Tensor, *, search: bool = True, fpr: float = 1e-6, size: int = WORKING_SIZE) -> Reading:
        """Find a mark of this key, whatever was done to the picture, and read it.

        Args:
            image: (3, H, W) in [0, 1].
            search: Whether to search all rotations and scales where the picture as it is shows no mark.
            fpr: Largest rate of false alarms, everything that is tried taken together.
            size: The shorter side that pictures were brought to when marked, pixels.
        """
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"image has shape {tuple(image.shape)}; give one RGB picture (3, height, width)")
        return read(image[None].float(), self.carriers, search=search, fpr=fpr, size=size)

    def guess(self, reading: Reading) -> Tensor:
        """Soft bits (num_bits,) of a reading as if it were of a mark of `num_bits` bits.

        Where nothing was detected, the number of bits in the reading is as much a guess as the bits.
        """
        return self._logits(reading.tile[None])[0]


def _hinge(value: Tensor, margin: float) -> Tensor:
    return F.softplus(SHARPNESS * (margin - value)) / SHARPNESS
