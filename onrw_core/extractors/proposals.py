"""Which geometries a reading tries, in which plane and order, and each one's part of the false-positive rate.

First the picture as it is, and brought to the working size; then what the search finds in the spectrum of a plane, and
is read in that plane: rotations and scales, those of the two lines for small crops, changes of aspect, and last, for
perspective, all of them in the middle of the picture, which is small enough to be nearly affine. No key takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..geometry import Geometry
from .search import ASPECTS, Candidate, candidates, levels, on_lines

__all__ = ["Proposal", "proposals"]

PLAIN_WEIGHT = 0.5  # of the picture as it is; the rest goes to the search
PER_LEVEL, PER_LEVEL_ASPECT = 8, 6  # candidates read per spectrum, without and with aspect changes
PER_LINE = 6  # rotations read at scale 1, and scales without rotation
PER_MIDDLE = 4
MIDDLE, LEAST_MIDDLE = 0.45, 128  # of each side, and pixels

# Of the middle that is looked at, pixels: in the quiet plane, where less of a picture says as much, and in luminance.
PLAIN_SIDES = (384, 2048)  # of a picture as it is
RESAMPLED_SIDES = (448, 640)
MIDDLE_SIDES = (256, 256)  # where the geometry may be another further out


class Proposal(NamedTuple):
    """A geometry to be tried in a plane.

    Attributes:
        plane: Index into `planes`.
        geometry: Received to marked, up to flips, quarter turns and shifts; None for unchanged.
        weight: Its part of the false-positive rate; the weights of all sum to 1 at most.
        side: Of the middle that is looked at, at most, pixels.
        searched: Whether it takes a search.
    """

    plane: int
    geometry: Geometry | None
    weight: float
    side: int
    searched: bool = False


def proposals(planes: Tensor, size: int, search: bool) -> Iterator[Proposal]:
    """What is tried, in order; the search begins where it is asked for its first.

    Args:
        planes: Of the picture, (P, 1, H, W).
        size: The shorter side that pictures were brought to when marked, pixels.
        search: Whether to search.
    """
    count = len(planes)
    share = PLAIN_WEIGHT if search else 1.0
    scale = size / min(planes.shape[-2:])
    plain = [(None, PLAIN_SIDES)] + ([] if scale == 1 else [(Geometry.scale(scale), RESAMPLED_SIDES)])
    for geometry, sides in plain:
        for plane in range(count):
            yield Proposal(plane, geometry, share / (len(plain) * count), sides[plane])
    if not search:
        return
    spectra = [levels(plane) for plane in planes.split(1)]

    def comb(plane: int, aspects: tuple[float, ...], keep: int) -> list[Candidate]:
        return [c for level in spectra[plane] for c in candidates(level, aspects, keep=keep)]

    stages: tuple[tuple[int, tuple[int, int], Callable[[int], list[Candidate]]], ...] = (
        (2 * PER_LEVEL, RESAMPLED_SIDES, lambda plane: comb(plane, (1.0,), PER_LEVEL)),
        (2 * PER_LINE, RESAMPLED_SIDES, lambda plane: on_lines(spectra[plane][0], PER_LINE)),
        (2 * PER_LEVEL_ASPECT, RESAMPLED_SIDES, lambda plane: comb(plane, ASPECTS[1:], PER_LEVEL_ASPECT)),
        (PER_MIDDLE, MIDDLE_SIDES, lambda plane: _of_the_middle(planes[plane : plane + 1])),
    )
    for most, sides, found in stages:
        # The more comb-like, the more of the weight: 1, 1/2, 1/3, ...
        first = (1 - share) / (len(stages) * sum(1 / (i + 1) for i in range(most * count)))
        listed = [(candidate, plane) for plane in range(count) for candidate in found(plane)]
        for i, (candidate, plane) in enumerate(sorted(listed, key=lambda one: -one[0].score)):
            matrix = torch.eye(3, dtype=torch.float64)
            matrix[:2, :2] = candidate.linear
            yield Proposal(plane, Geometry(matrix), first / (i + 1), sides[plane], searched=True)


def _of_the_middle(plane: Tensor) -> list[Candidate]:
    height, width = (int(MIDDLE * side) for side in plane.shape[-2:])
    if min(height, width) < LEAST_MIDDLE:
        return []
    top, left = (plane.shape[-2] - height) // 2, (plane.shape[-1] - width) // 2
    return candidates(levels(plane[..., top : top + height, left : left + width])[0], ASPECTS, keep=PER_MIDDLE)
