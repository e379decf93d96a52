"""Blind reading: find the geometry of a marked picture, then its bits, with an honest p-value.

Attempts are made as `proposals` has them. In each, the tile is aligned with the sync patterns over all shifts, flips
and quarter turns; the most promising are polished. The reading stops at the first attempt whose p-value holds clearly.
Its bits are those of the plane in which the mark is clearer.

Every attempt j has a weight w_j, fixed beforehand, and the weights sum to 1. Then min_j p_j / w_j is a p-value for
all of them together (weighted Bonferroni), whenever one stops.
"""

from __future__ import annotations

import math
import time
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
from .folding import shifted
from .looks import PLAIN_SIDE, Looks, average_tile
from .polish import blocks, polished
from .proposals import Proposal, proposals

__all__ = ["WORKING_SIZE", "attempt_tiles", "read"]

WORKING_SIZE = 512  # the shorter side of the frame that pictures are marked in, pixels
POLISH_SIDE = 1536  # of the middle that is looked at last, pixels
GROWTH = 2.0  # of that side from polish to polish: a geometry that holds in the middle may be off further out
NEGLIGIBLE = 0.3  # pixels; corrections below it are not made
CLEAR = 3  # times log10 fpr: a weaker mark is kept, but a better geometry for it is still looked for
SURE = 8  # times log10 fpr: hardly a bit in a thousand is wrong, and no more is looked at
SETTLING = 6  # polishes of a detected mark at most: each reaches a few pixels
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
        side: Of the middle that was looked at, at most, pixels.
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
    searched: bool
    side: int
    still: bool = False

    @property
    def total_log10_p(self) -> float:
        return min(0.0, self.log10_p - math.log10(self.weight))


def _moved(orientation: int, x: Tensor, y: Tensor) -> Geometry:
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, :2] = ORIENTATIONS[orientation].double()
    matrix[:2, 2] = torch.stack([x, y]).double()
    return Geometry(matrix)


class Attempts:
    """Makes and polishes attempts on one picture, (1, 3, H, W)."""

    def __init__(self, image: Tensor, carriers: Carriers):
        self.looks = Looks(image)
        self.carriers = carriers
        self.sync = carriers.sync.to(image)

    def attempt(self, proposal: Proposal) -> Attempt:
        """Read under a geometry that may lack a flip, quarter turns and a shift."""
        geometry = self.looks.placed(proposal.geometry)
        found = presences(self.looks.tile(proposal.plane, geometry, proposal.side), self.carriers)
        moved = _moved(int(found.orientation[0]), found.x[0], found.y[0])
        return Attempt(
            found.tile[0],
            proposal.plane,
            self.looks.placed(moved @ geometry),
            int(found.count[0]),
            float(found.cosine[0]),
            float(found.log_sync[0]),
            float(found.log10_p[0]),
            proposal.weight,
            proposal.searched,
            proposal.side,
        )

    def polish(self, attempt: Attempt, side: int) -> Attempt:
        """Refine an attempt's geometry on a middle of `side` pixels; it stays as it is where that does not help."""
        straight = self.looks.straight(attempt.plane, attempt.geometry, side)
        tiles, centres = blocks(straight.y, straight.weight)
        tiles = shifted(tiles, straight.x0, straight.y0)
        centres = centres + torch.tensor([straight.x0, straight.y0])
        sync = self.sync[attempt.count]
        geometry, tile = attempt.geometry, average_tile(straight)[0]
        cosine = float(F.cosine_similarity(tile, sync, dim=0))
        for perspective in (False, True):
            correction, gain = polished(tiles, centres, sync, perspective)
            if gain < PREDICTED_GAIN:
                continue
            if float((correction.apply(centres) - centres).norm(dim=1).max()) < NEGLIGIBLE:
                continue  # exact shifts and quarter turns stay exact, and cost no resampling
            changed = self.looks.placed(correction @ attempt.geometry)
            new = self.looks.tile(attempt.plane, changed, side)[0]
            similarity = float(F.cosine_similarity(new, sync, dim=0))
            if similarity > cosine * GAIN:
                geometry, tile, cosine = changed, new, similarity
        # The sync pattern was used up by the climb: its p-value stays that of the unpolished tile.
        count, log_sync = torch.tensor([attempt.count]), np.array([attempt.log_sync])
        log10_p = float(presence(tile[None], log_sync, count, self.carriers)[0])
        still = geometry is attempt.geometry and side >= POLISH_SIDE
        return replace(attempt, tile=tile, geometry=geometry, cosine=cosine, log10_p=log10_p, side=side, still=still)

    def settled(self, found: Attempt) -> Attempt:
        """Polish a detected mark, further and further out, until its geometry stands still.

        Then take the plane in which it is clearer. The p-value stays that of the detection.
        """
        log10_p = found.log10_p
        for _ in range(SETTLING):
            if found.still:
                break
            whole = found.side >= POLISH_SIDE
            better = self.polish(found, found.side if whole else _wider(found.side))
            if whole and better.cosine <= found.cosine * GAIN:
                break
            found = better
        for plane in set(range(len(self.looks.planes))) - {found.plane}:
            tile = self.looks.tile(plane, found.geometry, found.side)[0]
            cosine = float(F.cosine_similarity(tile, self.sync[found.count], dim=0))
            if cosine > found.cosine:
                found = replace(found, plane=plane, tile=tile, cosine=cosine)
        return replace(found, log10_p=log10_p)


def _wider(side: int) -> int:
    return min(POLISH_SIDE, round(GROWTH * side))


def attempt_tiles(image: Tensor, size: int = WORKING_SIZE, search: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """What `read` compares with a key's patterns, before any polish: no key takes part in it.

    Args:
        image: (1, 3, H, W) in [0, 1].
        size: See `KeyedExtractor.read`.
        search: Whether to search.

    Returns:
        Average tiles (A, 364), the weights of the attempts (A,), and whether the search proposed them (A,).
    """
    looks = Looks(image)
    made = list(proposals(looks.planes, size, search))
    tiles = [looks.tile(one.plane, looks.placed(one.geometry), one.side)[0] for one in made]
    return torch.stack(tiles), torch.tensor([one.weight for one in made]), torch.tensor([one.searched for one in made])


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

    for proposal in proposals(attempts.looks.planes, size, search):
        attempt = attempts.attempt(proposal)
        tried += 1
        if attempt.log_sync < PROMISING:
            whole = not proposal.searched and not holds(attempt, SURE)
            attempt = attempts.polish(attempt, PLAIN_SIDE if whole else attempt.side)
        if best is None or attempt.total_log10_p < best.total_log10_p:
            best = attempt
        if holds(best, CLEAR):
            break
    assert best is not None
    if holds(best, 1) and (best.searched or not holds(best, SURE)):
        best = attempts.settled(best)
    return _reading(best, carriers, fpr, tried, time.perf_counter() - start)


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
