"""Search for the pilot: the geometry of a marked image from its public layer, without any key.

Each of the `hypotheses` is one attempt: its average tile is aligned with the pilot over all shifts, flips, quarter
turns and both signs, and a promising geometry is refined. `detect` stops at the first attempt whose p-value is clearly
below the limit. Every attempt has a weight, fixed beforehand, and the weights sum to 1: then min_j p_j / w_j is a
p-value for all of them together (weighted Bonferroni).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from ...imaging.geometry import Geometry
from ..base import log10_rate
from ..reading import Detection, pose_of
from .alignment import ORIENTATIONS
from .band import TILE
from .hypotheses import Hypothesis, searched, unsearched
from .public_layer import PILOT_DIMENSIONS, PublicMark, read_public
from .refinement import covered_tiles, refined_geometry
from .views import Views

__all__ = ["PREDICTED_GAIN", "PilotAttempt", "PilotSearch", "detect", "moves"]

RECEIVED_WEIGHT = 0.5  # of the image as received and at the working size; the rest goes to the search
# Pixels; smaller corrections are not made. At the band's edge, .17 cycles a pixel, .3 pixels cost 5 %.
NEGLIGIBLE = 0.3
# A correction must raise the cosine by 1 %. Half of that must be predicted by moving whole tiles, which is cheap,
# before anything is resampled.
GAIN, PREDICTED_GAIN = 1.01, 1.005
# Natural logarithm of the pilot's p-value below which a geometry is refined, and read with the key.
PROMISING = math.log(0.3)
LATTICE_SCORE = 6.5  # of the comb; unmarked photos have 4 to 6, see docs/wire-format-2.md
CLEAR = 2  # times log10 fpr: below, the reading tries no further geometry


@dataclass(frozen=True)
class PilotAttempt:
    """The pilot under one hypothesis.

    Attributes:
        hypothesis: The hypothesis.
        geometry: Received to marked, up to whole tiles.
        mark: The public layer there.
    """

    hypothesis: Hypothesis
    geometry: Geometry
    mark: PublicMark

    @property
    def promising(self) -> bool:
        return self.mark.log_p < PROMISING

    @property
    def total_log10_p(self) -> float:
        return min(0.0, self.mark.log_p / math.log(10) - math.log10(self.hypothesis.weight))


class PilotSearch:
    """Pilot attempts on one image."""

    def __init__(self, image: Tensor) -> None:
        """
        Args:
            image: (1, 3, H, W) in [0, 1].
        """
        self.views = Views(image)

    def attempt(self, hypothesis: Hypothesis) -> PilotAttempt:
        """Align the pilot under a geometry that is known up to a shift and, unless `upright`, an orientation."""
        geometry = self.views.placed(hypothesis.geometry)
        tile = self.views.tile(hypothesis.projection, geometry, hypothesis.side, shared=True)
        mark = read_public(tile, hypothesis.upright)
        moved = torch.eye(3, dtype=torch.float64)
        moved[:2, :2] = ORIENTATIONS[mark.orientation].double()
        moved[:2, 2] = torch.stack([mark.x, mark.y]).double()
        return PilotAttempt(hypothesis, self.views.placed(Geometry(moved) @ geometry), mark)

    def refined(self, attempt: PilotAttempt) -> PilotAttempt:
        """The attempt with its geometry refined, if that raises the pilot's cosine; its p-value stays."""
        hypothesis, sign = attempt.hypothesis, -1.0 if attempt.mark.negative else 1.0
        covered = covered_tiles(self.views.rectified(hypothesis.projection, attempt.geometry, hypothesis.side))
        if not len(covered.tiles):
            return attempt
        correction, gain = refined_geometry(sign * covered.tiles, covered.centres, attempt.mark.pattern)
        if gain < PREDICTED_GAIN or not moves(correction, covered.centres):
            return attempt
        geometry = self.views.placed(correction @ attempt.geometry)
        tile = sign * self.views.tile(hypothesis.projection, geometry, hypothesis.side)[0]
        cosine = float(F.cosine_similarity(tile[PILOT_DIMENSIONS], attempt.mark.pattern[PILOT_DIMENSIONS], dim=0))
        if cosine < GAIN * attempt.mark.cosine:
            return attempt
        return replace(attempt, geometry=geometry, mark=attempt.mark.reread(tile))


def moves(correction: Geometry, points: Tensor) -> bool:
    """Whether a correction is worth resampling: exact shifts and quarter turns stay exact without it."""
    return float((correction.apply(points) - points).norm(dim=1).max()) >= NEGLIGIBLE


@torch.no_grad()
def detect(
    image: Tensor, *, search: bool = True, quick: bool = False, fpr: float = 1e-6, size: int | None = None
) -> Detection:
    """Find the public layer and its label.

    Args:
        image: (1, 3, H, W) in [0, 1].
        search: Whether to search all rotations and scales if nothing is detected without a search.
        quick: Search only where the spectrum shows a lattice, for images that were hardly changed.
        fpr: Largest false-positive rate, over all attempts together.
        size: Working size of the marking: the shorter side in pixels; None for the default of the image's size.
    """
    start, limit, finder = time.perf_counter(), log10_rate(fpr), PilotSearch(image)
    projections = finder.views.projections
    share = RECEIVED_WEIGHT if search else 1.0
    best: PilotAttempt | None = None
    stages = [unsearched(projections, size, share)], searched(projections, 1 - share) if search else ()
    for hypothesis in chain.from_iterable(chain(*stages)):
        if quick and hypothesis.searched and hypothesis.score < LATTICE_SCORE:
            break
        attempt = finder.attempt(hypothesis)
        if best is None or attempt.total_log10_p < best.total_log10_p:
            best = attempt
        if best.total_log10_p <= CLEAR * limit:
            break
    assert best is not None
    log10_p = best.total_log10_p
    if log10_p > limit:
        return Detection(False, None, None, log10_p, None, seconds=time.perf_counter() - start)
    best = finder.refined(best)
    pose, mark = pose_of(best.geometry, TILE), best.mark
    seconds = time.perf_counter() - start
    return Detection(True, mark.label, mark.version, log10_p, pose, best.geometry, mark.negative, seconds)
