"""Blind reading: find the geometry of a marked picture, then its bits, with an honest p-value.

Attempts are made in order: the picture as it is, the picture brought to the working size, the geometries that the
search proposes, each in both planes (`planes`). In each attempt, the tile is aligned with the sync patterns over all
shifts, flips and quarter turns; the most promising are polished. The reading stops at the first geometry whose p-value
holds clearly; of the two planes the better one counts.

Every attempt j has a weight w_j, fixed beforehand, and the weights sum to 1. Then min_j p_j / w_j is a p-value for
all of them together (weighted Bonferroni), whenever one stops.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..detection import Reading, confidence
from ..geometry import Geometry
from .alignment import ORIENTATIONS
from .batch import presence, presences
from .carriers import BIT_COUNTS, TILE, Carriers
from .folding import coefficients, fold, shifted
from .frame import MAX_SIDE, Straight, straighten
from .planes import planes
from .polish import blocks, polished
from .search import ASPECTS, Candidate, candidates, levels, on_lines
from .spectrum import BAND, flatten_spectrum
from .whitening import flat_mask, whiten

__all__ = ["attempt_tiles", "average_tile", "read", "tile_of", "whitened"]

WORKING_SIZE = 512  # the shorter side of the frame that pictures are marked in, pixels
# Of the middle that is looked at, pixels, at first: in the quiet plane, where less of a picture says as much, and in
# luminance.
PLAIN_SIDES = (384, 2048)  # of a picture as it is
ATTEMPT_SIDES = (448, 640)  # of a resampled one
PLAIN_SIDE, POLISH_SIDE = 2048, 1536  # the same at last, in both
PLAIN_WEIGHT = 0.5  # of the plain attempts together; the rest goes to the search
PER_LEVEL, PER_LEVEL_ASPECT = 8, 8  # candidates read per spectrum, without and with aspect changes
PER_LINE = 8  # rotations read at scale 1, and scales without rotation
NEGLIGIBLE = 0.3  # pixels; corrections below it are not made
CLEAR = 3  # times log10 fpr: a weaker mark is kept, but a better geometry for it is still looked for
SURE = 8  # times log10 fpr: hardly a bit in a thousand is wrong, and the other plane need not be asked
SETTLING = 4  # polishes of a detected mark at most: each reaches a few pixels
GAIN = 1.01  # in cosine that a correction must bring
PREDICTED_GAIN = 1.005  # by moving whole tiles; below it, no picture is drawn to see
PROMISING = math.log(0.1)  # log_sync that earns an attempt its polish; the payload must not decide that


@dataclass(frozen=True)
class Attempt:
    """A tile read under one geometry.

    Attributes:
        tile: (364,), oriented and shifted into place.
        plane: Index into `planes`.
        geometry: Received to marked.
        count: Index into `BIT_COUNTS`.
        cosine: Of the tile and that sync pattern.
        log_sync: Natural logarithm of the sync pattern's p-value, before any polish.
        log10_p: Presence in this attempt alone.
        weight: w_j.
        searched: Whether the search proposed it.
        still: Whether a polish left it as it was, and would again.
    """

    tile: Tensor
    plane: int
    geometry: Geometry
    count: int
    cosine: float
    log_sync: float
    log10_p: float
    weight: float
    searched: bool = False
    still: bool = False

    @property
    def total_log10_p(self) -> float:
        return min(0.0, self.log10_p - math.log10(self.weight))


def _weight(y: Tensor, weight: Tensor | None) -> Tensor | None:
    flat = flat_mask(y)
    if flat is None or weight is None:
        return flat if weight is None else weight
    return weight * flat


def whitened(y: Tensor, geometry: Geometry | None, limit: int = MAX_SIDE) -> Straight:
    """Set luminance (B, 1, H, W) straight and whiten it; what is flat or outside of the picture has weight 0."""
    straight = straighten(y, geometry, limit)
    weight = _weight(straight.y, straight.weight)
    flat = flatten_spectrum(whiten(straight.y, weight), BAND)
    return straight._replace(y=flat if weight is None else flat * weight, weight=weight)


def _plain(y: Tensor, limit: int) -> Straight:
    """The middle of a picture as it is, whitened."""
    top, left = (max(0, (side - limit) // 2) for side in y.shape[-2:])
    middle = whitened(y[..., top : top + limit, left : left + limit], None)
    return middle._replace(x0=float(left), y0=float(top))


def average_tile(straight: Straight) -> Tensor:
    """The average tile in the band, (B, 364), of a whitened picture."""
    tile = coefficients(fold(straight.y, straight.weight))
    return tile if straight.x0 == straight.y0 == 0 else shifted(tile, straight.x0, straight.y0)


def tile_of(y: Tensor, geometry: Geometry | None, limit: int = MAX_SIDE) -> Tensor:
    """The average tile in the band, (B, 364), of luminance (B, 1, H, W) with known geometry; differentiable."""
    return average_tile(whitened(y, geometry, limit))


def _placed(orientation: int, x: Tensor, y: Tensor) -> Geometry:
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, :2] = ORIENTATIONS[orientation].double()
    matrix[:2, 2] = torch.stack([x, y]).double()
    return Geometry(matrix)


def _in_frame(geometry: Geometry, shape: tuple[int, int]) -> Geometry:
    """The same geometry moved by whole tiles, so that the picture begins in the marked frame's first tile."""
    height, width = shape
    corners = geometry.apply(torch.tensor([[0, 0], [width, 0], [0, height], [width, height]]))
    x, y = (-(corners.min(0).values / TILE).floor() * TILE).tolist()
    return Geometry.shift(x, y) @ geometry


class Attempts:
    """Makes and polishes attempts on one picture."""

    def __init__(self, image: Tensor, carriers: Carriers):
        self.planes = planes(image)
        self.carriers = carriers
        self.sync = carriers.sync.to(image)
        self.shape = (image.shape[-2], image.shape[-1])
        self.plain: dict[tuple[int, int], Straight] = {}

    def attempt(self, plane: int, geometry: Geometry | None, weight: float, searched: bool = False) -> Attempt:
        """Read a plane under a geometry that may lack a flip, quarter turns and a shift."""
        geometry = _in_frame(geometry or Geometry.identity(), self.shape)
        tile = average_tile(self._straight(plane, geometry, ATTEMPT_SIDES[plane]))
        found = presences(tile, self.carriers)
        placed = _placed(int(found.orientation[0]), found.x[0], found.y[0])
        return Attempt(
            found.tile[0],
            plane,
            _in_frame(placed @ geometry, self.shape),
            int(found.count[0]),
            float(found.cosine[0]),
            float(found.log_sync[0]),
            float(found.log10_p[0]),
            weight,
            searched,
        )

    def polish(self, attempt: Attempt, limit: int = POLISH_SIDE) -> Attempt:
        """Refine an attempt's geometry; it stays as it is where that does not help."""
        straight = self._straight(attempt.plane, attempt.geometry, limit)
        tile = average_tile(straight)[0]
        tiles, centres = blocks(straight.y, straight.weight)
        tiles = shifted(tiles, straight.x0, straight.y0)
        centres = centres + torch.tensor([straight.x0, straight.y0])
        sync = self.sync[attempt.count]
        geometry, cosine = attempt.geometry, float(F.cosine_similarity(tile, sync, dim=0))
        for perspective in (False, True):
            correction, gain = polished(tiles, centres, sync, perspective)
            if gain < PREDICTED_GAIN:
                continue
            if float((correction.apply(centres) - centres).norm(dim=1).max()) < NEGLIGIBLE:
                continue  # exact shifts and quarter turns stay exact, and cost no resampling
            changed = _in_frame(correction @ attempt.geometry, self.shape)
            new = tile_of(self._plane(attempt.plane), changed, limit)[0]
            similarity = float(F.cosine_similarity(new, sync, dim=0))
            if similarity > cosine * GAIN:
                geometry, tile, cosine = changed, new, similarity
        # The sync pattern was used up by the climb: its p-value stays that of the unpolished tile.
        count, log_sync = torch.tensor([attempt.count]), np.array([attempt.log_sync])
        log10_p = float(presence(tile[None], log_sync, count, self.carriers)[0])
        still = geometry is attempt.geometry and limit == POLISH_SIDE
        return replace(attempt, tile=tile, geometry=geometry, cosine=cosine, log10_p=log10_p, still=still)

    def _plane(self, plane: int) -> Tensor:
        return self.planes[plane : plane + 1]

    def _straight(self, plane: int, geometry: Geometry, limit: int) -> Straight:
        """`whitened`, made once for all shifts of the picture as it is."""
        shift = geometry.matrix[:2, 2].tolist()
        if not torch.equal(geometry.matrix, Geometry.shift(*shift).matrix):
            return whitened(self._plane(plane), geometry, limit)
        side = PLAIN_SIDE if limit == POLISH_SIDE else PLAIN_SIDES[plane]
        if (plane, side) not in self.plain:
            self.plain[plane, side] = _plain(self._plane(plane), side)
        plain = self.plain[plane, side]
        return plain._replace(x0=shift[0] + plain.x0, y0=shift[1] + plain.y0)


def _attempts(seen: Tensor, size: int, search: bool) -> Iterator[tuple[int, Geometry | None, float, bool]]:
    """(plane, geometry, weight, searched) of the planes (P, 1, H, W) in the order in which they are tried."""
    for geometry, weight, searched in _geometries(seen, size, search):
        for plane in range(len(seen)):
            yield plane, geometry, weight / len(seen), searched


def _geometries(seen: Tensor, size: int, search: bool) -> Iterator[tuple[Geometry | None, float, bool]]:
    share = PLAIN_WEIGHT if search else 1.0
    scale = size / min(seen.shape[-2:])
    plain = [None] if scale == 1 else [None, Geometry.scale(scale)]
    for geometry in plain:
        yield geometry, share / len(plain), False
    if not search:
        return
    spectra = levels(seen)

    def comb(aspects: tuple[float, ...], keep: int) -> list[Candidate]:
        return [c for level in spectra for c in candidates(level, aspects, keep=keep)]

    stages = (
        (PER_LEVEL * len(spectra), lambda: comb((1.0,), PER_LEVEL)),
        (2 * PER_LINE, lambda: on_lines(spectra[0], PER_LINE)),
        (PER_LEVEL_ASPECT * len(spectra), lambda: comb(ASPECTS[1:], PER_LEVEL_ASPECT)),
    )
    for most, found in stages:
        # The more comb-like, the more of the weight: 1, 1/2, 1/3, ...
        first = (1 - share) / (len(stages) * sum(1 / (i + 1) for i in range(most)))
        for i, candidate in enumerate(sorted(found(), key=lambda c: -c.score)):
            matrix = torch.eye(3, dtype=torch.float64)
            matrix[:2, :2] = candidate.linear
            yield Geometry(matrix), first / (i + 1), True


def attempt_tiles(image: Tensor, size: int = WORKING_SIZE, search: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """What `read` compares with a key's patterns, before any polish: no key takes part in it.

    Args:
        image: (1, 3, H, W) in [0, 1].
        size: See `KeyedExtractor.read`.
        search: Whether to search.

    Returns:
        Average tiles (A, 364), the weights of the attempts (A,), and whether the search proposed them (A,).
    """
    seen = planes(image)
    shape = (image.shape[-2], image.shape[-1])
    tiles, weights, searched = [], [], []
    for plane, geometry, weight, proposed in _attempts(seen, size, search):
        y = seen[plane : plane + 1]
        if geometry is None:
            straight = _plain(y, PLAIN_SIDES[plane])
        else:
            straight = whitened(y, _in_frame(geometry, shape), ATTEMPT_SIDES[plane])
        tiles.append(average_tile(straight)[0])
        weights.append(weight)
        searched.append(proposed)
    return torch.stack(tiles), torch.tensor(weights), torch.tensor(searched)


def read(
    image: Tensor, carriers: Carriers, *, search: bool = True, fpr: float = 1e-6, size: int = WORKING_SIZE
) -> Reading:
    """Find and read a mark in a picture (1, 3, H, W); see `KeyedExtractor.read`."""
    start = time.perf_counter()
    attempts = Attempts(image, carriers)
    best: Attempt | None = None
    tried = 0

    def holds(attempt: Attempt, times: float) -> bool:
        return attempt.total_log10_p <= times * math.log10(fpr)

    for plane, geometry, weight, searched in _attempts(attempts.planes, size, search):
        attempt = attempts.attempt(plane, geometry, weight, searched)
        tried += 1
        if attempt.log_sync < PROMISING:
            first_look = searched or holds(attempt, SURE)
            attempt = attempts.polish(attempt, ATTEMPT_SIDES[plane] if first_look else POLISH_SIDE)
        if best is None or attempt.total_log10_p < best.total_log10_p:
            best = attempt
        last = plane == len(attempts.planes) - 1
        if holds(best, CLEAR if last else SURE):
            break
    assert best is not None
    if holds(best, 1) and (best.searched or not holds(best, SURE)):
        best = _settled(attempts, best)
    return _reading(best, carriers, fpr, tried, time.perf_counter() - start)


def _settled(attempts: Attempts, found: Attempt) -> Attempt:
    """Polish a detected mark until its geometry stands still; the p-value stays that of the detection."""
    log10_p = found.log10_p
    for _ in range(SETTLING):
        if found.still:
            break
        better = attempts.polish(found)
        if better.cosine <= found.cosine * GAIN:
            break
        found = better
    return replace(found, log10_p=log10_p)


def _reading(best: Attempt, carriers: Carriers, fpr: float, tried: int, seconds: float) -> Reading:
    tile = best.tile.double()
    num_bits = BIT_COUNTS[best.count]
    logits = (carriers.payload[:num_bits] @ tile / tile.norm().clamp(min=1e-12) * math.sqrt(num_bits)).float()
    linear = best.geometry.matrix[:2, :2]
    determinant = float(torch.linalg.det(linear))
    flipped = determinant < 0
    # Mirrored first, then turned: linear = flip @ turn.
    across = linear[:, 0] * torch.tensor([-1.0 if flipped else 1.0, 1.0])
    corner = best.geometry.apply(torch.zeros(2)) % TILE
    return Reading(
        detected=best.total_log10_p <= math.log10(fpr),
        log10_p=best.total_log10_p,
        bits=(logits > 0).long(),
        logits=logits,
        num_bits=num_bits,
        geometry=best.geometry,
        rotation=math.degrees(math.atan2(float(across[1]), float(across[0]))),
        scale=abs(determinant) ** -0.5,
        shift=(float(corner[0]), float(corner[1])),
        flipped=flipped,
        confidence=confidence(logits),
        seconds=seconds,
        searched=best.searched,
        tile=best.tile,
        tried=tried,
    )
