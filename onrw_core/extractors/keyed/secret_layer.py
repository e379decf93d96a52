"""The secret layer: the patterns of a key, and keyed phases that differ from tile to tile.

A watermark of K bits is, in tile (i, j) of the pattern's frame and at frequency k,

    i^D[i mod 32, j mod 32, k] * (sync_K + sum_n (2 bit_n - 1) carrier_n)_k

with integers D of 0 to 3 from SHAKE-256(key). So nothing repeats for whoever lacks the key: neither averages of tiles
nor of images estimate the watermark. Multiplication by a power of i is exact and commutes with shifts in a tile. A
reader multiplies each tile by the conjugate phases and averages them; the average is what the tiles of a periodic
watermark would give, and so are its statistics.

Each image has another place in the pattern, derived from key and pixels, so that images of one key and one
message do not add up. The reader tries all 32 x 32 places by one FFT correlation over the lattice of tiles, and each
counts in the p-value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...payload.keys import Key
from .alignment import refine, roughness
from .band import BYTES_PER_INTEGER, DIMENSIONS, FREQUENCIES, orthonormal_rows, phase_shifted
from .rectify import Rectified
from .statistics import energy_log_p, product_log_p, sync_log_p
from .tile_average import coefficients, placed_tiles, shifted

__all__ = ["BIT_COUNTS", "PERIOD", "Found", "SecretLayer", "find_each", "log10_presence_of_each"]

BIT_COUNTS = (32, 48, 64, 96, 128)
PERIOD = 32  # tiles per side of the lattice of phases
PATTERNS, PHASES = "onrw wire format 2: patterns", "onrw wire format 2: phases"
PLACE = "onrw wire format 2: place"
TINY = 1e-12
SIGNS = 2  # a colour negative has the watermark with the opposite sign
SHIFT_AREA = 9.0  # square pixels: shifts to which a position that is known is uncertain


class Found(NamedTuple):
    """The best place in the pattern for a grid of tiles.

    Attributes:
        tile: (364,), the average of all tiles with their phases removed, shifted into place, not negated.
        row, column: Of the first tile in the pattern.
        x, y: Pixels that the tiles were moved right and down.
        length: Index into `BIT_COUNTS`.
        negative: Whether the image is a negative.
        cosine: Of that tile and that sync pattern.
        log_sync: Natural logarithm of the sync pattern's p-value.
    """

    tile: Tensor
    row: int
    column: int
    x: float
    y: float
    length: int
    negative: bool
    cosine: float
    log_sync: float


@dataclass(frozen=True, eq=False)
class SecretLayer:
    """The patterns and phases of one key.

    Attributes:
        sync: (5, 364) float64, one row for each of `BIT_COUNTS`.
        payload: (128, 364) float64; a watermark of k bits uses the first k rows.
        phases: (32, 32, 182) of 0 to 3, uint8: quarter turns of the phase.
    """

    sync: Tensor
    payload: Tensor
    phases: Tensor

    @classmethod
    def from_key(cls, key: Key) -> SecretLayer:
        """Derive the layer of `key`."""
        rows = len(BIT_COUNTS) + max(BIT_COUNTS)
        patterns = orthonormal_rows(key.stream(PATTERNS, rows * DIMENSIONS * BYTES_PER_INTEGER), rows)
        count = PERIOD**2 * len(FREQUENCIES)
        octets = np.frombuffer(key.stream(PHASES, count // 4), dtype=np.uint8)
        # Four phases a byte, the lowest two bits first.
        phases = torch.from_numpy(octets[:, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3)
        phases = phases.reshape(PERIOD, PERIOD, len(FREQUENCIES))
        return cls(patterns[: len(BIT_COUNTS)], patterns[len(BIT_COUNTS) :], phases)

    def sync_for(self, num_bits: int) -> Tensor:
        """The sync pattern (364,) of watermarks of `num_bits` bits."""
        return self.sync[BIT_COUNTS.index(num_bits)]

    def without_phases(self, tiles: Tensor, row: int, column: int, per_tile: int = 1) -> Tensor:
        """Multiply tiles by the conjugates of their phases.

        Args:
            tiles: (B, rows, columns, 364).
            row, column: Of the first of them in the pattern.
            per_tile: How many make a tile along each axis: 2 for `tile_average.half_tiles`.
        """
        return _turned(tiles, -self._quarters(tiles, row, column, per_tile))

    def each_without_phases(self, tiles: Tensor, places: Tensor) -> Tensor:
        """The same for single tiles (T, 364) at places (T, 2) of row and column."""
        rows, columns = (places % PERIOD).unbind(1)
        return _turned(tiles, -self.phases[rows, columns].to(tiles))

    def with_phases(self, pattern: Tensor, rows: int, columns: int, place: tuple[int, int] = (0, 0)) -> Tensor:
        """A pattern (364,) in `rows` x `columns` tiles from a place of the pattern on: (rows, columns, 364)."""
        tiles = pattern.expand(1, rows, columns, -1)
        return _turned(tiles, self._quarters(tiles, *place, 1))[0]

    def _quarters(self, tiles: Tensor, row: int, column: int, per_tile: int) -> Tensor:
        rows, columns = (
            (start + torch.arange(number)) // per_tile % PERIOD
            for start, number in zip((row, column), tiles.shape[1:3], strict=True)
        )
        return self.phases[rows][:, columns].to(tiles)

    def average(self, rectified: Rectified) -> Tensor:
        """The sum of all tiles of a whitened image without their phases, (B, 364), its frame being the pattern's."""
        placed = placed_tiles(rectified.y, rectified.x0, rectified.y0)
        tiles = self.without_phases(coefficients(placed.tiles), placed.row, placed.column)
        return shifted(tiles.sum((1, 2)), placed.x, placed.y)

    def find(self, tiles: Tensor, tries: float = 1.0, area: float = SHIFT_AREA, pilot: Tensor | None = None) -> Found:
        """The best place of a grid of tiles among all, with each number of bits and both signs; see `find_each`."""
        return find_each([self], tiles, tries, area, pilot)[0]

    def at_every_place(self, tiles: Tensor) -> Tensor:
        """The sum of tiles (rows, columns, 364) without phases, a + ib, for each place of the first: (182, 32 * 32)."""
        return self._summed(_spectrum(tiles))

    def _summed(self, spectrum: Tensor) -> Tensor:
        """`at_every_place` for the `_spectrum` of the tiles."""
        # t(o) = sum_x conj(L(x + o)) z(x), with L the powers of i: a correlation, by FFT for each frequency.
        return torch.fft.fft2(self._conjugate_spectrum * spectrum, norm="forward").flatten(1)

    @cached_property
    def _conjugate_spectrum(self) -> Tensor:
        """Conjugate spectra over the lattice of the powers of i, (182, 32, 32)."""
        angle = self.phases.permute(2, 0, 1).float() * (math.pi / 2)
        return torch.fft.fft2(torch.complex(angle.cos().round(), angle.sin().round())).conj().resolve_conj()

    def _best(self, spectrum: Tensor) -> tuple[Tensor, int, int, float]:
        """The tile (364,) with the largest cosine, its place and number of bits, and the cosine with its sign."""
        sums = self._summed(spectrum)
        a, b = self.sync.to(sums.real).chunk(2, 1)
        length = torch.view_as_real(sums).flatten(1).square().sum(0).view(-1, 2).sum(1).sqrt().clamp_min(TINY)
        cosines = (torch.complex(a, -b) @ sums).real / length
        count, place = divmod(int(cosines.abs().argmax()), PERIOD**2)
        return torch.cat([sums[:, place].real, sums[:, place].imag]), place, count, float(cosines[count, place])

    def log10_presence(self, tile: Tensor, log_sync: float, count: int) -> float:
        """Base-10 logarithm of presence: the sync pattern and the payload's energy combined.

        Args:
            tile: (364,), without phases and shifted into place.
            log_sync: Natural logarithm of the sync pattern's p-value.
            count: Index into `BIT_COUNTS`.
        """
        energy = energy_log_p(self.held(tile, count), BIT_COUNTS[count], DIMENSIONS - len(BIT_COUNTS))
        return float(product_log_p(np.array([log_sync]), energy)[0]) / math.log(10)

    def held(self, tile: Tensor, count: int) -> float:
        """The part that the carriers have of a tile's energy outside of the sync patterns, 0 to 1."""
        unit = F.normalize(tile.double(), dim=0)
        free = 1 - (self.sync @ unit).square().sum()
        return float((self.payload[: BIT_COUNTS[count]] @ unit).square().sum() / free.clamp(min=TINY))

    @staticmethod
    def place(key: Key, digest: bytes) -> tuple[int, int]:
        """Row and column in the pattern of the first tile of an image.

        Args:
            key: The key.
            digest: Of the image's pixels.
        """
        row, column = key.stream(f"{PLACE} {digest.hex()}", 2)
        return row % PERIOD, column % PERIOD


@torch.no_grad()
def find_each(
    layers: Sequence[SecretLayer],
    tiles: Tensor,
    tries: float = 1.0,
    area: float = SHIFT_AREA,
    pilot: Tensor | None = None,
) -> list[Found]:
    """The best place of a grid of tiles for each key, among all places, with each number of bits and both signs.

    Args:
        layers: Those of the keys.
        tiles: (rows, columns, 364), the content in place within the tiles.
        tries: Alternatives that the caller chose from by the key's patterns, for the p-value.
        area: Shifts that were tried, square pixels. If it is larger than `SHIFT_AREA`, the shift is refined by the
            sync pattern, which a payload biases by up to a quarter of a pixel.
        pilot: (364,), refines the shift together with the sync pattern.
    """
    spectrum = _spectrum(tiles)
    best, places, counts, signed = zip(*(layer._best(spectrum) for layer in layers), strict=True)
    tile, cosine = torch.stack(best), torch.tensor(signed)
    rough, sign = roughness(tile).numpy(), cosine.sign()
    cosine, x, y = cosine.abs(), torch.zeros(len(layers)), torch.zeros(len(layers))
    if area > SHIFT_AREA:
        sync = torch.stack([layer.sync[count] for layer, count in zip(layers, counts, strict=True)]).to(tile)
        beside = None if pilot is None else (tiles.sum((0, 1)), pilot)
        x, y, cosine = refine(sign[:, None] * tile, sync, x, y, beside)
    tries *= PERIOD**2 * len(BIT_COUNTS) * SIGNS
    log_sync = sync_log_p(cosine.numpy(), rough, DIMENSIONS, area, tries)
    moved = shifted(tile, x, y)
    return [
        Found(
            moved[i],
            places[i] // PERIOD,
            places[i] % PERIOD,
            float(x[i]),
            float(y[i]),
            counts[i],
            signed[i] < 0,
            float(cosine[i]),
            float(log_sync[i]),
        )
        for i in range(len(layers))
    ]


def log10_presence_of_each(layers: Sequence[SecretLayer], found: Sequence[Found]) -> np.ndarray:
    """`SecretLayer.log10_presence` of what `find_each` found, (number of keys,)."""
    counts = np.array([one.length for one in found])
    held = np.array([layer.held(one.tile, one.length) for layer, one in zip(layers, found, strict=True)])
    energy = np.empty(len(found))
    for count in np.unique(counts):
        chosen = counts == count
        energy[chosen] = energy_log_p(held[chosen], BIT_COUNTS[count], DIMENSIONS - len(BIT_COUNTS))
    return product_log_p(np.array([one.log_sync for one in found]), energy) / math.log(10)


def _spectrum(tiles: Tensor) -> Tensor:
    """Spectra of tiles (rows, columns, 364), a + ib, over the lattice of phases: (182, 32, 32)."""
    z = torch.complex(*tiles.movedim(-1, 0).chunk(2))
    if max(z.shape[1:]) > PERIOD:  # tiles that are a period apart have the same phases
        rows, columns = (-(-side // PERIOD) for side in z.shape[1:])
        z = F.pad(z, (0, columns * PERIOD - z.shape[2], 0, rows * PERIOD - z.shape[1]))
        z = z.reshape(-1, rows, PERIOD, columns, PERIOD).sum((1, 3))
    return torch.fft.fft2(z, s=(PERIOD, PERIOD))


def _turned(tiles: Tensor, quarters: Tensor) -> Tensor:
    """Coefficients a + ib (..., 364) multiplied by i to these powers, (..., 182)."""
    angle = quarters * (math.pi / 2)
    return phase_shifted(tiles, angle.cos().round(), angle.sin().round())
