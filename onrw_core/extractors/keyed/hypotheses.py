"""Hypotheses of a reading: the geometries that are tried, in which projection and order, and each one's weight.

The weight is the hypothesis's share of the false-positive rate. The first are the image as received and the image
resized to the working size. The search adds candidates from the pilot's lattice in the spectrum of each projection, to
be read in that projection: rotations and scales, rotations alone and scales alone for small crops, changes of aspect,
and last, for perspective, all of them in the centre of the image, which is small enough to be nearly affine. They do
not depend on the key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...imaging.geometry import Geometry
from ..base import working_size
from .comb_search import ASPECTS, Candidate, candidates, levels, on_lines

__all__ = ["Hypothesis", "searched", "unsearched"]

# Chosen, not tuned: each candidate takes time and a share of the false-positive rate.
PER_LEVEL, PER_LEVEL_ASPECT = 8, 6  # candidates read per spectrum, without and with aspect changes
PER_LINE = 6  # rotations read at scale 1, and scales without rotation
PER_CENTRE = 4
CENTRE, LEAST_CENTRE = 0.45, 128  # of each side, and pixels
# Shares among the first hypotheses, the rest being the other's: most images have kept their scale, their orientation
# and their sign; a watermark is most often in luminance alone; and a small crop, which has no p-value to spare, is as
# received.
SAME_SCALE, UPRIGHT, IN_LUMINANCE = 0.75, 0.8, 0.75

# Side of the centre that is read, pixels: in the discriminant projection, where fewer tiles suffice, and in luminance.
RECEIVED_SIDES = (384, 2048)  # of an image as received
WORKING_SIDES = (448, 1280)  # of an image at the working size, which is larger for large images
RESAMPLED_SIDES = (448, 640)
CENTRE_SIDES = (256, 256)  # for geometries that hold in the centre only


class Hypothesis(NamedTuple):
    """A geometry to be tried in a projection.

    Attributes:
        projection: Index into `colour_projection.projections`.
        geometry: Received to marked, up to flips, quarter turns and shifts; None for unchanged.
        weight: Its share of the false-positive rate; the weights of all sum to 1 at most.
        side: Largest side of the centre that is read, pixels.
        searched: Whether the search found it.
        score: Of the comb, if the search found it.
        upright: Whether flips, quarter turns and negatives are left out. Most images were only cropped, if anything,
            and of a small crop the pilot has its highest peak at the right shift more often among fewer alternatives.
    """

    projection: int
    geometry: Geometry | None
    weight: float
    side: int
    searched: bool = False
    score: float = 0.0
    upright: bool = False


def unsearched(projections: Tensor, size: int | None, share: float) -> list[Hypothesis]:
    """The image as received, and resized to the working size.

    Args:
        projections: Projections of the image, (P, 1, H, W).
        size: Working size of the marking: the shorter side in pixels; None for the default of the image's size.
        share: Sum of the weights.
    """
    height, width = projections.shape[-2:]
    scale = working_size(size, height, width) / min(height, width)
    same = SAME_SCALE if scale != 1 else 1.0
    geometries = [(None, RECEIVED_SIDES, same), (Geometry.scale(scale), WORKING_SIDES, 1 - same)]
    shares = [1 - IN_LUMINANCE, IN_LUMINANCE] if len(projections) > 1 else [1.0]
    return [
        Hypothesis(index, geometry, share * of_scale * shares[index] * of_sign, sides[index], upright=upright)
        for geometry, sides, of_scale in geometries
        if of_scale
        for index in range(len(projections))
        for upright, of_sign in ((True, UPRIGHT), (False, 1 - UPRIGHT))
    ]


def searched(projections: Tensor, share: float) -> Iterator[list[Hypothesis]]:
    """Candidates of the search, one list for each stage, which is computed when it is requested.

    Args:
        projections: Projections of the image, (P, 1, H, W).
        share: Sum of the weights.
    """
    count = len(projections)
    spectra = [levels(y) for y in projections.split(1)]

    def comb(index: int, aspects: tuple[float, ...], keep: int) -> list[Candidate]:
        return [c for level in spectra[index] for c in candidates(level, aspects, keep=keep)]

    stages: tuple[tuple[int, tuple[int, int], Callable[[int], list[Candidate]]], ...] = (
        (2 * PER_LEVEL, RESAMPLED_SIDES, lambda index: comb(index, (1.0,), PER_LEVEL)),
        (2 * PER_LINE, RESAMPLED_SIDES, lambda index: on_lines(spectra[index][0], PER_LINE)),
        (2 * PER_LEVEL_ASPECT, RESAMPLED_SIDES, lambda index: comb(index, ASPECTS[1:], PER_LEVEL_ASPECT)),
        (PER_CENTRE, CENTRE_SIDES, lambda index: _of_the_centre(projections[index : index + 1])),
    )
    for most, sides, found in stages:
        # The higher the comb's score, the higher the weight: 1, 1/2, 1/3, ...
        first = share / (len(stages) * sum(1 / (i + 1) for i in range(most * count)))
        scored = [(candidate, index) for index in range(count) for candidate in found(index)]
        scored.sort(key=lambda pair: -pair[0].score)
        yield [
            Hypothesis(index, _linear(candidate), first / (i + 1), sides[index], True, candidate.score)
            for i, (candidate, index) in enumerate(scored)
        ]


def _linear(candidate: Candidate) -> Geometry:
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, :2] = candidate.linear
    return Geometry(matrix)


def _of_the_centre(y: Tensor) -> list[Candidate]:
    height, width = (int(CENTRE * side) for side in y.shape[-2:])
    if min(height, width) < LEAST_CENTRE:
        return []
    top, left = (y.shape[-2] - height) // 2, (y.shape[-1] - width) // 2
    return candidates(levels(y[..., top : top + height, left : left + width])[0], ASPECTS, keep=PER_CENTRE)
